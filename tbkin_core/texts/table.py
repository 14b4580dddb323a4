"""Many tokenised texts as arrays, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.support.shards import ragged_gather, ragged_offsets
from tbkin_core.texts.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class TextTable:
    """N tokenised texts end to end, [CLS] and [SEP] included."""

    ids: NDArray[np.int32]  # (M,)
    word_ids: NDArray[np.int32]  # (M,) the word each piece belongs to; -1 for [CLS] and [SEP]
    offsets: NDArray[np.int64]  # (N+1,)
    cut: int  # texts that were longer than allowed
    unknown: NDArray[np.bool_]  # (N,) texts without one known word: all unknown or spelt letter by letter

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens a text."""
        return np.diff(self.offsets)

    def part(self, rows: NDArray) -> TextTable:
        """Some of the texts."""
        flat, _, _ = ragged_gather(self.offsets, rows)
        offsets = ragged_offsets(self.lengths[rows])
        return TextTable(self.ids[flat], self.word_ids[flat], offsets, 0, self.unknown[rows])

    def padded(self, rows: NDArray) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """`input_ids` (B, T), `attention_mask` (B, T) and `word_ids` (B, T, -1 where none) of some rows."""
        flat, row, column = ragged_gather(self.offsets, rows)
        shape = (len(rows), int(column.max(initial=0)) + 1)
        input_ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        word_ids = np.full(shape, -1, np.int64)
        input_ids[row, column] = self.ids[flat]
        word_ids[row, column] = self.word_ids[flat]
        mask[row, column] = True
        return input_ids, mask, word_ids


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str] | Sequence[Sequence[str]], max_tokens: int
) -> TextTable:
    """Tokenise texts, or texts already split into words, to at most `max_tokens` pieces each."""
    if max_tokens < 3:
        raise DataError(
            f"text length: at least 3 tokens are needed for [CLS], a word and [SEP], got {max_tokens}"
        )
    pretokenized = bool(texts) and not isinstance(texts[0], str)
    # Every letter is in a vocabulary built from data, so a word spelt letter by letter is an unknown one.
    size = tokenizer.get_vocab_size()
    long, letter = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    for piece, number in tokenizer.get_vocab().items():
        text = piece.removeprefix("##")
        long[number] = len(text) > 1 and piece not in SPECIAL_TOKENS
        letter[number] = len(text) == 1 and text.isalnum()
    separator = tokenizer.token_to_id("[SEP]") or 0
    ids = [np.zeros(0, np.int32)]
    words = [np.zeros(0, np.int32)]
    lengths: list[int] = []
    unknown = np.zeros(len(texts), np.bool_)
    cut = 0
    for begin in range(0, len(texts), 4096):
        # As lists: a pretokenised tuple of two would be taken for a pair of texts.
        chunk = [text if isinstance(text, str) else list(text) for text in texts[begin : begin + 4096]]
        own: list[tuple[NDArray, NDArray]] = []
        for index, encoding in enumerate(tokenizer.encode_batch(chunk, is_pretokenized=pretokenized)):
            pieces = np.array(encoding.ids, np.int32)
            word = np.array([-1 if number is None else number for number in encoding.word_ids], np.int32)
            if len(pieces) > max_tokens:
                cut += 1
                pieces, word = pieces[:max_tokens].copy(), word[:max_tokens].copy()
                pieces[-1], word[-1] = separator, -1
            inside = word >= 0
            alone = np.bincount(word[inside], minlength=1)[word] == 1  # a word of one piece
            unknown[begin + index] = not np.any(inside & (long[pieces] | (letter[pieces] & alone)))
            own.append((pieces, word))
        lengths += [len(pieces) for pieces, _ in own]
        ids.append(np.concatenate([pieces for pieces, _ in own]))
        words.append(np.concatenate([word for _, word in own]))
    return TextTable(np.concatenate(ids), np.concatenate(words), ragged_offsets(lengths), cut, unknown)
