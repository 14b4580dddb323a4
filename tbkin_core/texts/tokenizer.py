"""Word-piece tokenizers: built from texts, extended, loaded and saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tbkin_core.errors import CheckpointError, TbkinError
from tbkin_core.support.pretrained import load_pretrained

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_VOCABULARY = 30522
# What the tokenizers library calls the settings of transformers.
_NORMALIZER_SETTINGS = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}


def words_of(text: str, tokenizer: Tokenizer | None = None) -> list[str]:
    """Words and punctuation as a tokenizer splits them, by default BERT's: lower case, without accents."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer = tokenizer.normalizer if tokenizer else BertNormalizer(lowercase=True)
    plain = normalizer.normalize_str(text) if normalizer else text
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(plain)]


def build_tokenizer(texts: Iterable[str], limit: int = MAX_VOCABULARY) -> Tokenizer:
    """A WordPiece tokenizer from the data itself: its words whole, any other word by characters.

    Small data knows few words; a vocabulary of 30,522 would leave most of the model's parameters
    untrained. Deterministic in the multiset of texts; the most frequent words are kept.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words_of(text))
    characters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789?'.,").union(*counts))
    pieces = [*characters, *(f"##{character}" for character in characters)]
    known = set(pieces)
    words = sorted((word for word in counts if word not in known), key=lambda word: (-counts[word], word))
    return tokenizer_of([*SPECIAL_TOKENS, *pieces, *words][:limit])


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
    """Append the words that a data-built tokenizer lacks, and count them; ids already given stay."""
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

    A `tokenizer_config.json` beside it says whether it lowers case and strips accents, as in transformers.
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
            tokenizer = tokenizer_of((directory / "vocab.txt").read_text(encoding="utf-8").splitlines())
        elif directory.exists():
            raise CheckpointError(f"{path}: has no tokenizer.json and no vocab.txt")
        else:
            from transformers import AutoTokenizer

            tokenizer = load_pretrained(AutoTokenizer, str(path)).backend_tokenizer
        _configure(tokenizer, directory / "tokenizer_config.json")
    except TbkinError:
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


def _configure(tokenizer: Tokenizer, file: Path) -> None:
    """What a tokenizer_config.json says of case, accents and Chinese characters, where there is one."""
    from tokenizers.normalizers import BertNormalizer

    normalizer = tokenizer.normalizer
    if not file.is_file() or not isinstance(normalizer, BertNormalizer):
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    for name, setting in _NORMALIZER_SETTINGS.items():
        if setting in settings:
            setattr(normalizer, name, settings[setting])
    tokenizer.normalizer = normalizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write tokenizer.json and its configuration in the layout of transformers."""
    (path / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
