"""Texts to token arrays, and batches in a fixed order: tokenisation, padding, length bucketing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import CheckpointError, DataError
from tbkin_core.runtime import mix
from tbkin_core.shards import ragged_gather, ragged_offsets

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_VOCABULARY = 30522


# ---- tokenizer ----------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """Lower-case words and punctuation without accents, as BERT's uncased tokenizer splits them."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    plain = BertNormalizer(lowercase=True).normalize_str(text)
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(plain)]


def build_tokenizer(texts: Iterable[str], limit: int = MAX_VOCABULARY) -> Tokenizer:
    """A WordPiece tokenizer from the data itself: its words whole, any other word by characters.

    Small data knows few words; a vocabulary of 30,522 would leave most of the model's parameters
    untrained. Deterministic in the multiset of texts.

    Args:
        texts: Training texts.
        limit: Largest vocabulary; the most frequent words are kept.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words_of(text))
    characters = sorted(
        {character for word in counts for character in word} | set("abcdefghijklmnopqrstuvwxyz0123456789?'.,")
    )
    pieces = [*characters, *(f"##{character}" for character in characters)]
    known = set(pieces)
    words = sorted((word for word in counts if word not in known), key=lambda word: (-counts[word], word))
    vocabulary = [*SPECIAL_TOKENS, *pieces, *words][:limit]
    return tokenizer_of(vocabulary)


def tokenizer_of(vocabulary: Sequence[str]) -> Tokenizer:
    """An uncased BERT tokenizer over a list of word pieces; a piece's place is its id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing

    ids = {piece: number for number, piece in enumerate(vocabulary)}
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise CheckpointError(
            f"vocabulary: lacks {', '.join(missing)}", hint="use a BERT WordPiece vocabulary"
        )
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=64))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return tokenizer


def extend_tokenizer(
    tokenizer: Tokenizer, texts: Iterable[str], limit: int = MAX_VOCABULARY
) -> tuple[Tokenizer, int]:
    """Append the words of `texts` that a data-built tokenizer lacks; ids already given stay.

    Returns:
        The tokenizer and how many words were added.
    """
    known = tokenizer.get_vocab()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word in words_of(text) if word not in known)
    words = sorted(counts, key=lambda word: (-counts[word], word))[: max(limit - len(known), 0)]
    if not words:
        return tokenizer, 0
    return tokenizer_of([*sorted(known, key=known.__getitem__), *words]), len(words)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory (tokenizer.json or vocab.txt) or of a hub id.

    Of a file of weights, such as ROSITA's, it is the one in its directory, else that of bert-base-uncased.

    Raises:
        CheckpointError: None there, or it lacks BERT's special tokens.
    """
    from tokenizers import Tokenizer

    directory = Path(path)
    if directory.is_file():
        beside = any((directory.parent / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        try:
            return load_tokenizer(directory.parent if beside else "bert-base-uncased")
        except CheckpointError as error:
            raise CheckpointError(
                f"{path}: needs a tokenizer: {error.message}",
                hint=f"put the vocab.txt of bert-base-uncased into {directory.parent}",
            ) from error
    try:
        if (directory / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
        elif (directory / "vocab.txt").is_file():
            return tokenizer_of((directory / "vocab.txt").read_text(encoding="utf-8").splitlines())
        elif directory.exists():
            raise CheckpointError(f"{path}: has no tokenizer.json and no vocab.txt")
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(path)).backend_tokenizer
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path}: its tokenizer cannot be loaded ({error})") from error
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise CheckpointError(
            f"{path}: its tokenizer lacks {', '.join(missing)}",
            hint="a BERT-type (WordPiece) tokenizer is needed",
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write tokenizer.json and its configuration in the layout of transformers."""
    (path / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


# ---- token arrays -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextTable:
    """N tokenised texts end to end, [CLS] and [SEP] included.

    Attributes:
        ids: (M,) int32.
        word_ids: (M,) int32, the word each piece belongs to; -1 for [CLS] and [SEP].
        offsets: (N+1,) int64.
        cut: Texts that were longer than allowed.
        unknown: (N,) bool, texts without one known word: all of it unknown or spelt letter by letter.
    """

    ids: NDArray[np.int32]
    word_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    cut: int
    unknown: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens a text."""
        return np.diff(self.offsets)

    def padded(
        self, rows: NDArray, pad: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """`input_ids` (B, T), `attention_mask` (B, T) and `word_ids` (B, T, -1 where none) of some rows."""
        flat, row, column = ragged_gather(self.offsets, rows)
        shape = (len(rows), int(column.max(initial=0)) + 1)
        input_ids = np.full(shape, pad, np.int64)
        mask = np.zeros(shape, np.bool_)
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
    ids: list[NDArray] = []
    words: list[NDArray] = []
    lengths: list[int] = []
    unknown = np.zeros(len(texts), np.bool_)
    cut = 0
    for begin in range(0, len(texts), 4096):
        # As lists: a pretokenised tuple of two would be taken for a pair of texts.
        chunk = [text if isinstance(text, str) else list(text) for text in texts[begin : begin + 4096]]
        own: list[NDArray] = []
        own_words: list[NDArray] = []
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
            own.append(pieces)
            own_words.append(word)
        lengths += map(len, own)
        ids.append(np.concatenate(own))
        words.append(np.concatenate(own_words))
    return TextTable(
        ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
        word_ids=np.concatenate(words) if words else np.zeros(0, np.int32),
        offsets=ragged_offsets(lengths),
        cut=cut,
        unknown=unknown,
    )


# ---- order --------------------------------------------------------------------------------------


def epoch_order(
    lengths: NDArray, batch_size: int, seed: int, epoch: int, bucket: int = 32
) -> list[NDArray[np.int64]]:
    """Shuffled batches of similar length; a function of (seed, epoch) alone.

    Rows are shuffled, sorted by length within windows of `bucket` batches so that little is padded,
    and the batches shuffled again. The last batch may be smaller.

    Args:
        lengths: (N,) length of each row.
        batch_size: Rows a batch.
        bucket: Batches a window; 1 turns bucketing off.
    """
    generator = np.random.default_rng(mix(seed, epoch, 1))
    order = generator.permutation(len(lengths))
    window = batch_size * max(bucket, 1)
    batches: list[NDArray[np.int64]] = []
    for begin in range(0, len(order), window):
        rows = order[begin : begin + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]
