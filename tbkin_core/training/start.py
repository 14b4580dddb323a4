"""Where training starts: initial weights, their tokenizer, and the features they fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbkin_core.errors import CheckpointError, DataError
from tbkin_core.features.store import FeatureStore, feature_kind
from tbkin_core.modeling.checkpoint import load_init, load_model_config
from tbkin_core.runs import finished_runs
from tbkin_core.settings import FinetuneConfig, TrainingConfig
from tbkin_core.shipped import located, shipped_for
from tbkin_core.support.files import file_content
from tbkin_core.support.ranks import rank
from tbkin_core.support.shards import MANIFEST
from tbkin_core.tasks.base import finetune_task
from tbkin_core.texts.tokenizer import build_tokenizer, extend_tokenizer, load_tokenizer
from tbkin_core.texts.word_vectors import (
    PIP_LINE,
    WEIGHTS,
    WordVectors,
    installed_vectors,
    require_vectors,
    word_vectors,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger("tbkin")


@dataclass(frozen=True, slots=True)
class Start:
    """What a run begins from."""

    source: str  # path or hub id of the weights, "words" or "none"
    tokenizer: Tokenizer  # of the weights, or built from the training texts
    weights: dict[str, Any] = field(default_factory=dict)  # by name; empty where they begin at random
    values: dict[str, Any] | None = None  # configuration of the weights; None where they begin at random
    # Vectors that tokens begin as: of "words" all of them, else those that the weights do not know.
    words: WordVectors | None = None

    @property
    def weights_are_random(self) -> bool:
        """Whether they are, those of words perhaps aside."""
        return self.values is None

    @property
    def answers(self) -> list[str]:
        """What the rows of answers in the weights stand for; empty where they have none."""
        return list(((self.values or {}).get("id2label") or {}).values())

    def knows_words(self, width: int) -> bool:
        """Whether the weights know which words are said of images, in vectors of some width."""
        table = self.weights.get("direct.vocabulary.weight")  # (V, W)
        return table is not None and table.shape[1] == width

    def recorded(self) -> dict[str, str]:
        """What a run's results say of it."""
        begin = self.words is not None and self.weights_are_random  # not those of a few new words alone
        vectors = {"word_vectors": self.words.source} if begin and self.words else {}
        return {"initialised_from": self.source, **vectors}


def starting_point(source: str, texts: Sequence[str], new_texts: Sequence[str] = ()) -> Start:
    """Weights and tokenizer of a source, as `initial_source` gives it.

    A new tokenizer is built from `texts`; one that was built from other data gets the words of `new_texts`.

    Raises:
        CheckpointError: They cannot be loaded.
    """
    if source in ("none", "words"):
        tokenizer = build_tokenizer(texts)
        if source == "none":
            return Start(source, tokenizer)
        words = word_vectors(tokenizer.get_vocab())
        known = f"{len(words.ids)} of {tokenizer.get_vocab_size()}"
        logger.info("word vectors of %s: %s tokens begin with theirs", words.source, known)
        return Start(source, tokenizer, words=words)
    weights, values = load_init(source)
    tokenizer = load_tokenizer(located(Path(source)))
    if not values.get("data_vocabulary"):
        return Start(source, tokenizer, weights, values)
    before = tokenizer.get_vocab()
    tokenizer, added = extend_tokenizer(tokenizer, new_texts)
    if not added:
        return Start(source, tokenizer, weights, values)
    logger.info("%d words of the training texts were added to the vocabulary", added)
    new = {token: number for token, number in tokenizer.get_vocab().items() if token not in before}
    vectors = word_vectors(new) if installed_vectors() else None
    return Start(source, tokenizer, weights, values, vectors)


def initial_source(config: TrainingConfig, store: FeatureStore | None = None) -> str:
    """What a run begins from: a path, name or hub id, "words" or "none"; "auto" is resolved.

    Args:
        store: Of fine-tuning: features that a checkpoint to begin from must fit.

    Raises:
        MissingDependencyError: Of "words": their package is not installed.
    """
    if config.init == "words":
        require_vectors()
    if config.init != "auto":
        return config.init
    if isinstance(config, FinetuneConfig) and store and not config.blind:
        found = _matching_checkpoint(store, config.task, config.size)
        if found is not None:
            return found
        if (model := shipped_for(config.task)) and _fits(Path(model.name), store, config.size):
            return model.name
    if installed_vectors() is not None:
        return "words"
    if rank() == 0:
        logger.info("words begin at random; `%s` brings vectors that say what they mean", PIP_LINE)
    return "none"


def weights_file(source: str) -> Path:
    """The file with the weights of a source of `initial_source`; of a hub's and of none it does not exist."""
    place = (installed_vectors() or Path(source)) if source == "words" else located(Path(source))
    files = (place, place / WEIGHTS, place / "pytorch_model.bin")
    return next((file for file in files if file.is_file()), place / WEIGHTS)


def weights_content(source: str) -> int | None:
    """A number that changes with the weights; None of a hub's, of none, and where they are gone."""
    return file_content(weights_file(source))


def _matching_checkpoint(store: FeatureStore, task: str, size: str) -> str | None:
    """The latest model of this size made from features of this kind, those that the task prefers first."""
    better = finetune_task(task).starts_from
    runs = [path for path, run in finished_runs("finetune") if run["settings"].get("task") in better]
    for path in (*runs, *(path for path, _ in finished_runs("pretrain"))):
        if _fits(path, store, size):
            return str(path)
    return None


def _fits(checkpoint: Path, store: FeatureStore, size: str) -> bool:
    """Whether a checkpoint is of a size and knows features of a store's kind; no broken one does."""
    try:
        found = load_model_config(checkpoint)
    except CheckpointError:
        return False
    same = feature_kind(found.extractor or {}) == feature_kind(store.settings)
    return same and size in ("auto", size_of(found.to_dict()))


def size_of(values: Mapping[str, Any]) -> str:
    """The size whose training settings suit a model of this width."""
    width = int(values["hidden_size"])
    return "tiny" if width <= 128 else "small" if width <= 384 else "base"


# ---- features -----------------------------------------------------------------------------------


def feature_place(features: Path | None, data: Path) -> Path:
    """The feature store of a dataset; DataError where there is none."""
    place = features or data / "features"
    if not (place / MANIFEST).exists():
        raise DataError(f"{place}: holds no features", hint=f"make them with `tbkin extract-features {data}`")
    return place


def check_feature_kind(trained_on: Mapping[str, Any] | None, store: FeatureStore, checkpoint: object) -> None:
    """DataError where features are of another kind than those that the named checkpoint was trained on.

    `trained_on` is its note of its features, `extractor` in its configuration.
    """
    expected, found = feature_kind(trained_on or {}), feature_kind(store.settings)
    if expected and expected != found:
        changed = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        raise DataError(
            f"{store.path}: features of kind {found['extractor']!r}, size {found['feature_size']};"
            f" {checkpoint} was trained on {expected.get('extractor')!r}, size"
            f" {expected.get('feature_size')} (other: {', '.join(changed)})",
            hint="use the features the checkpoint was trained on, or fine-tune on these",
        )
