"""Threshold sweep of a fine-tuned model: accuracy, sparsity and speed for every τ."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tbkin_core.errors import DataError, TbkinError
from tbkin_core.evaluation.attribution import DIRECTIONS, AttentionMeter
from tbkin_core.evaluation.intervals import bootstrap_interval, paired_difference
from tbkin_core.features.store import FeatureStore
from tbkin_core.modeling.acceleration import accelerate
from tbkin_core.modeling.checkpoint import load_model
from tbkin_core.results import SweepConclusion
from tbkin_core.selection import SELECTIONS, Selection
from tbkin_core.shipped import located, shipped_model
from tbkin_core.support.files import file_content, write_json
from tbkin_core.support.ranks import rank
from tbkin_core.support.schema import Fault, list_of, number, one_of, record, row_of
from tbkin_core.tasks.base import FinetuneTask
from tbkin_core.tasks.inputs import InputSource, evaluation_order, to_device
from tbkin_core.training.start import check_feature_kind

logger = logging.getLogger("tbkin")

DENSE = ("dense", 0.0)


@dataclass(slots=True)
class Samples:
    """What a split is made of: N image ids and, for VQA, N answer types, "" where unknown."""

    images: list[Any]
    answer_types: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Measurement:
    """One model under one selection over all samples."""

    selection: str  # name of the rule; "dense" for threshold 0
    threshold: float  # τ
    seed: int  # of the training run; one number where the same weights are evaluated throughout
    scores: list[float]  # N scores in [0, 1]
    kept: dict[str, list[list[float]]]  # by direction, a (kept, total) pair a layer, over some samples
    entropy: float  # mean entropy of attention in nats, over the same samples
    seconds: float  # what the evaluation took
    trained: float = 0.0  # when the weights were written
    recorded: int = 0  # samples that `kept` and `entropy` are of; 0 where an earlier version chose them
    regions: int = 0  # of an image at most; 0 for as many as the model was trained on

    @property
    def key(self) -> tuple[str, float, int]:
        return self.selection, self.threshold, self.regions


_COUNT = number(0, 1e15, whole=True)
_MEASUREMENT = record(
    {
        "selection": one_of(DENSE[0], *SELECTIONS),
        "threshold": number(),
        "seed": number(whole=True),
        "scores": list_of(number(0, 1), least=1),
        "kept": record(dict.fromkeys(DIRECTIONS, list_of(row_of(number(0), number(0)), least=1))),
        "entropy": number(0),
        "seconds": number(1e-9),
    },
    {"trained": number(0), "recorded": _COUNT, "regions": _COUNT},
)


def read_measurements(file: Path, entries: Any, samples: Mapping[int, Samples]) -> list[Measurement]:
    """What a sweep's file holds of some samples, by seed; a DataError where it is damaged."""
    try:
        list_of(_MEASUREMENT)(entries, "measurements")
        for place, entry in enumerate(entries):
            own = samples.get(entry["seed"])
            layers = {len(counts) for counts in entry["kept"].values()}
            layers |= {len(counts) for counts in entries[0]["kept"].values()}
            if (own and len(own.images) != len(entry["scores"])) or len(layers) > 1:
                raise Fault(f"measurements[{place}]", "scores of its samples, kept of all layers", entry)
    except Fault as fault:
        hint = f"remove {file.name}: its thresholds are measured again"
        raise DataError(f"{file}: {fault}", hint=hint) from fault
    known = [entry.name for entry in fields(Measurement)]
    return [Measurement(**{name: entry[name] for name in known if name in entry}) for entry in entries]


def modified(path: Path) -> float:
    """When a file was written last; 0 where there is none."""
    return path.stat().st_mtime if path.exists() else 0.0


def trained_at(checkpoint: Path) -> float:
    """When the weights of a checkpoint were written; of one that comes with tbkin a number of its content."""
    file = located(checkpoint) / "model.safetensors"
    return modified(file) if shipped_model(checkpoint) is None else float(file_content(file) or 0)


@dataclass
class Evaluation:
    """Evaluates models on one split: `use` chooses the model, calling it measures a selection."""

    task: FinetuneTask
    items: Mapping[int, list[Any]]  # by seed: samples that can be scored, all with features
    store: FeatureStore  # their features
    device: torch.device
    batch_size: int  # samples at once

    def __post_init__(self) -> None:
        self.samples: dict[int, Samples] = {}
        for seed, found in self.items.items():
            kinds = [self.task.kind(item) for item in found]
            self.samples[seed] = Samples([item.image_id for item in found], kinds)

    def use(self, checkpoint: Path, seed: int) -> None:
        """Evaluate a checkpoint from now on, on the samples of a seed; a TbkinError where it does not fit."""
        model, tokenizer = load_model(checkpoint, self.task.name)
        check_feature_kind(model.config.extractor, self.store, checkpoint)
        self.use_model(model, tokenizer, seed, trained_at(checkpoint))

    def use_model(self, model: Any, tokenizer: Any, seed: int, trained: float = 0.0) -> None:
        """The same for a model in memory."""
        accelerate(model, self.device)
        self.model, self.seed, self.trained, self.tokenizer = model, seed, trained, tokenizer
        self._own_regions = model.config.max_regions
        self._give(0)

    def _give(self, regions: int) -> None:
        """Give the model so many regions of an image at most; 0 for as many as it was trained on."""
        model, self.regions = self.model, regions
        model.config.max_regions = regions or self._own_regions
        self.store.keeps_whole_image = bool(regions)
        source = InputSource(
            self.store, self.tokenizer, model.config.max_text_tokens, model.config.max_regions
        )
        self.split = self.task.build_split(self.items[self.seed], source, blind=not model.config.use_regions)
        # The first batch pays for memory that the others find ready: it counts for no selection's speed.
        batches = evaluation_order(self.split.inputs, self.batch_size)
        first = batches[len(self.split) // self.batch_size // 2]
        with torch.inference_mode():
            self.model(**to_device(self.split.inputs.batch(first), self.device))

    def __call__(self, selection: Selection, regions: int = 0) -> Measurement:
        """Scores, sparsity and time of the model under a selection, with so many regions of an image."""
        if regions != self.regions:
            self._give(regions)
        self.model.tbkin.selection = selection
        inputs = self.split.inputs
        meter = AttentionMeter(self.model, len(inputs))
        started = time.perf_counter()
        predictions = self.task.predict(meter, inputs, self.device, self.batch_size)
        seconds = time.perf_counter() - started
        scores = self.task.scores(self.split, predictions)
        name = DENSE[0] if selection.threshold == 0 else selection.rule
        rounded = [round(float(score), 6) for score in scores]
        found = rounded, meter.kept(), meter.entropy(), seconds, self.trained, meter.recorded, regions
        return Measurement(name, float(selection.threshold), self.seed, *found)


class Keeper:
    """What is measured, on disk after every threshold."""

    def __init__(self, file: Path, identity: dict[str, Any], done: Sequence[Measurement]) -> None:
        self.file, self.identity = file, identity
        self.found = {(*entry.key, entry.seed): entry for entry in done}
        if done:
            logger.info("measured already: %d", len(done))

    @contextlib.contextmanager
    def forgotten_if_empty(self) -> Iterator[None]:
        """Where the first thing fails, leave no directory that stands in the way of another try."""
        try:
            yield
        except TbkinError:
            if not self.found and rank() == 0:
                self.file.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    (self.file.parent / "refit").rmdir()
            raise

    def add(self, entry: Measurement) -> None:
        self.found[(*entry.key, entry.seed)] = entry
        self.write({})

    def write(self, results: dict[str, Any]) -> None:
        measurements = [asdict(entry) for entry in self.found.values()]
        content = {"identity": self.identity, **results, "measurements": measurements}
        write_json(self.file, content, indent=None)


def summarise(
    measurements: Sequence[Measurement],
    samples: Mapping[int, Samples],
    keys: Sequence[tuple[str, float]],
    seed: int = 0,
    regions: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
    """One row a selection and number of regions, compared sample by sample over all seeds.

    Args:
        measurements: Each of `keys`, and ("dense", 0), with each number of regions, under each seed.
        samples: By seed: what its scores are of.
        keys: (rule, threshold) in the order of the rows; the dense model comes first.
        seed: Of the bootstrap.
        regions: Of an image at most; 0 for as many as the model was trained on.

    Returns:
        Rows with selection, threshold, accuracy and its 95 % interval in percent, difference to dense with
        its interval and p value, accuracy by answer type (VQA), kept_fraction, kept (for each direction the
        share a layer, None where there is nothing to keep), entropy, samples_per_second; with several seeds
        also the accuracy under each and their standard deviation. Where numbers of regions were asked for,
        "regions"; from the second on also "lost", the points that are lost against the first, with its
        interval, and of thresholds "lost_more", how many more than dense loses, with interval and p value.
    """
    found = {(*entry.key, entry.seed): entry for entry in measurements}
    seeds = sorted(samples)
    images = [str(image) for number in seeds for image in samples[number].images]
    groups = np.unique(np.array(images), return_inverse=True)[1]
    runs = np.concatenate([np.full(len(samples[number].images), number) for number in seeds])
    types = np.array([name for number in seeds for name in samples[number].answer_types], dtype=object)
    rest = [key for key in dict.fromkeys(keys) if key[1] != 0]
    # Enough resamples to tell the level that the conclusion asks of each of many.
    draws = max(1000, 50 * len(rest))

    def scores_of(key: tuple[str, float], count: int) -> NDArray[np.float64]:
        return np.concatenate([found[(*key, count, number)].scores for number in seeds])

    def compared(name: str, one: NDArray, other: NDArray, p_value: str = "") -> dict[str, float]:
        """Points of one above another, with interval and, where it has a name, the p value."""
        values = paired_difference(one, other, groups, runs, samples=draws, seed=seed)
        ends = {f"{name}_low": 100 * values.low, f"{name}_high": 100 * values.high}
        return {name: 100 * values.difference, **ends, **({p_value: values.p_value} if p_value else {})}

    rows = []
    for count in regions:
        dense, dense_first = scores_of(DENSE, count), scores_of(DENSE, regions[0])
        for key in [DENSE, *rest]:
            entries = [found[(*key, count, number)] for number in seeds]
            scores = scores_of(key, count)
            low, high = bootstrap_interval(scores, groups, runs, samples=draws, seed=seed)
            row: dict[str, Any] = {"selection": key[0], "threshold": key[1]}
            row |= {"regions": count} if count else {}
            row |= {"accuracy": 100 * float(scores.mean())}
            row |= {"accuracy_low": 100 * max(low, 0.0), "accuracy_high": 100 * min(high, 1.0)}
            if len(seeds) > 1:
                each = [100 * float(np.mean(entry.scores)) for entry in entries]
                row |= {"accuracy_by_seed": each, "accuracy_spread": float(np.std(each, ddof=1))}
            if key[1] != 0:
                row |= compared("difference", scores, dense, "p_value")
            if count != regions[0]:
                lost = scores_of(key, regions[0]) - scores
                row |= compared("lost", lost, np.zeros_like(lost))
                if key[1] != 0:
                    row |= compared("lost_more", lost, dense_first - dense, "lost_more_p")
            row |= _attention(entries, scores, types)
            rows.append(row)
    return rows


def _attention(entries: Sequence[Measurement], scores: NDArray[np.float64], types: NDArray) -> dict[str, Any]:
    """What a row says of answer types, of attention and of speed."""
    row: dict[str, Any] = {}
    # As in the official evaluation, a sample without a type counts for none.
    if names := sorted(filter(None, set(types.tolist()))):
        row["answer_types"] = {name: 100 * float(scores[types == name].mean()) for name in names}
    kept = {name: np.sum([entry.kept[name] for entry in entries], axis=0) for name in DIRECTIONS}
    total = np.sum([counts.sum(axis=0) for counts in kept.values()], axis=0)
    return row | {
        "kept_fraction": float(total[0] / max(total[1], 1)),
        "kept": {
            name: [float(share[0] / share[1]) if share[1] else None for share in counts]
            for name, counts in kept.items()
        },
        "entropy": float(np.mean([entry.entropy for entry in entries])),
        "samples_per_second": len(scores) / sum(entry.seconds for entry in entries),
    }


def with_regions_of(one: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that were measured with as many regions as one of them; all, where no number was asked for."""
    return [row for row in rows if row.get("regions") == one.get("regions")]


def conclude(rows: Sequence[dict[str, Any]], refit: bool = False) -> SweepConclusion:
    """The best threshold of `summarise`'s rows, and an honest word on whether it beats the dense model.

    Of several numbers of regions the first one tells; then comes who loses least with the most regions.
    With `refit` each row was trained by itself, so that a difference may be the noise of training.
    """
    first = with_regions_of(rows[0], rows)
    best = max(first, key=lambda row: round(row["accuracy"], 9))
    dense = next(row for row in first if row["threshold"] == 0)
    accuracies = [row["accuracy"] for row in first]
    all_alike = len(first) > 1 and max(accuracies) - min(accuracies) < 1e-9
    tried = sum(row["threshold"] != 0 for row in first)
    # The best of many is best partly by luck: the level is divided by how many were tried (Bonferroni).
    differs = best["threshold"] != 0 and best["p_value"] * tried < 0.05 and best["difference"] > 0
    seeds = len(best.get("accuracy_by_seed", [0]))
    noise = "noise" if not refit else f"the noise of images and {seeds} seeds"
    counted = f"{tried} setting{'s' if tried > 1 else ''} tried"
    if refit and seeds == 1:
        noise = "the noise of images"
        counted += "; one seed, the noise of training is not counted: --seeds 3 does"
    if not tried:
        text = f"only the dense model was measured ({dense['accuracy']:.2f} %), no threshold beside 0"
    elif all_alike:
        text = (
            f"all {len(first)} settings give the same accuracy ({dense['accuracy']:.2f} %): on these samples"
            " the thresholds tried make no difference"
        )
    elif best["threshold"] == 0:
        text = f"the dense model is best ({dense['accuracy']:.2f} %); no threshold improves on it ({counted})"
    else:
        verdict = "above" if differs else "but does not differ from"
        text = (
            f"{_named(best)} is best ({best['accuracy']:.2f} %), {verdict} dense ({dense['accuracy']:.2f} %)"
            f" beyond {noise} (p {p_text(best['p_value'], '= ')}, {counted})"
        )
    return SweepConclusion(best, differs, all_alike, text + _regions_concluded(rows, noise))


def _regions_concluded(rows: Sequence[dict[str, Any]], noise: str) -> str:
    """A sentence on what the most regions cost in place of the fewest; "" where one number was measured."""
    most = with_regions_of(rows[-1], rows)
    if "lost" not in most[0]:
        return ""

    def changes(row: dict[str, Any]) -> str:
        if row["lost"] < 0:
            return f"gains {-row['lost']:.2f} ({-row['lost_high']:.2f} to {-row['lost_low']:.2f})"
        return f"loses {row['lost']:.2f} ({row['lost_low']:.2f} to {row['lost_high']:.2f})"

    dense, *others = most
    text = f"; with {dense['regions']} regions in place of {rows[0]['regions']} dense {changes(dense)} points"
    if not others:
        return text
    least = min(others, key=lambda row: row["lost"])
    better = least["lost_more"] < 0 and least["lost_more_p"] * len(others) < 0.05
    verdict = "better" if better else "no better"
    p_value = p_text(least["lost_more_p"], "= ")
    return (
        f"{text}; of all thresholds {_named(least)} bears them best and {changes(least)}: {verdict} than"
        f" dense beyond {noise} (p {p_value})"
    )


def _named(row: Mapping[str, Any]) -> str:
    """ "relative τ = 0.3"."""
    return Selection(row["selection"], row["threshold"]).name


def p_text(p_value: float, equals: str = "") -> str:
    """ "0.012", or "< 0.001" where rounding would leave nothing."""
    return f"{equals}{p_value:.3f}" if p_value >= 0.0005 else "< 0.001"
