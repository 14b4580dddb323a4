"""Which model answers where none was named: the one that suits, which need not be the latest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tbkin_core.features.pictures import count_photos
from tbkin_core.features.store import feature_kind
from tbkin_core.runs import RUN_FILE, find_checkpoint, finished_runs, read_run, settings_of
from tbkin_core.shipped import shipped_for, shipped_model
from tbkin_core.tasks.base import OWN_ROW, finetune_task, task_named
from tbkin_core.tasks.table import FINETUNE_TASKS

MOST_PICTURES = 20
"""That are looked at, to tell photographs from drawings."""


@dataclass(frozen=True)
class _Run:
    """A finished run of fine-tuning."""

    path: Path
    content: dict[str, Any]  # its run.json

    @property
    def results(self) -> dict[str, Any]:
        return self.content["results"]  # type: ignore[no-any-return]

    @property
    def accuracy(self) -> float | None:
        """On validation data, in percent."""
        return (self.results.get("accuracy") or {}).get("val")

    @property
    def lowest(self) -> float:
        """The lower end of its 95 % interval; the mean of several parts."""
        ends = [
            entry["accuracy_low"]
            for entry in self.results["report"]
            if (entry["split"], entry["order"]) == ("val", OWN_ROW) and entry.get("accuracy_low") is not None
        ]
        return sum(ends) / len(ends) if ends else self.accuracy or 0.0

    @cached_property
    def extractor(self) -> dict[str, Any]:
        """What its features were made by; {} where that cannot be read."""
        try:
            known = json.loads((self.path / "config.json").read_text(encoding="utf-8"))["extractor"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}  # whoever loads it says what is wrong
        return known if isinstance(known, dict) else {}

    @property
    def is_whole(self) -> bool:
        """Whether its weights are there."""
        return (self.path / "config.json").is_file() and (self.path / "model.safetensors").is_file()

    @property
    def is_for_drawings(self) -> bool:
        """Whether its features are those that see little in photographs."""
        return self.extractor.get("extractor") == "builtin" and not self.extractor.get("backbone")


def suited_model(
    given: Path | None, asks: bool, pictures: Sequence[Path] = (), stored: bool = False
) -> tuple[Path, list[str]]:
    """The checkpoint that answers, and what is to be said of the choice.

    Of one's own models for such texts it is the latest, but for those whose features are for drawings where
    photographs are asked about, and those that are clearly worse than another of the same data: an experiment
    takes no better model's place.

    Args:
        given: The one that was asked for.
        asks: Whether the texts are questions, rather than expressions.
        pictures: Files that are asked about.
        stored: Whether their features are in a store that was named; then it is the latest.
    """
    if given is not None:
        return given, []
    order = sorted(FINETUNE_TASKS, key=lambda name: task_named(name).asks != asks)
    if found := best_run(order[0], pictures, stored):
        return found
    checkpoint = find_checkpoint([*order, "pretrain"], prefer=order[0])
    suited, model = shipped_for(order[0]), shipped_model(checkpoint)
    task = model.task if model else str(settings_of(checkpoint).get("task") or "pretraining")
    if suited is None or task == suited.task:
        return checkpoint, []
    return checkpoint, [
        f"{checkpoint} is for {task}, not for {suited.task}, as this text is; `--checkpoint {suited.name}`,"
        " which comes with tbkin, is"
    ]


def model_for(task: str, given: Path | None = None, stored: bool = False) -> tuple[Path, list[str]]:
    """The model for a task, and notes: the one asked for, else one's own, else what comes with tbkin.

    Raises:
        CheckpointError: There is none.
    """
    if given is not None:
        return given, []
    return best_run(task, stored=stored) or (find_checkpoint([task]), [])


def best_run(task: str, pictures: Sequence[Path] = (), stored: bool = False) -> tuple[Path, list[str]] | None:
    """One's own model for a task and pictures, as `suited_model` chooses, and notes; None without any."""
    found = [
        _Run(path, content)
        for path, content in finished_runs("finetune")
        if content["settings"].get("task") == task and not content["settings"].get("blind")
    ]
    runs = [run for run in found if run.is_whole]
    if not runs:
        return None
    if stored:
        return runs[0].path, []
    fitting, notes = _for_photos(runs, task, pictures)
    latest = fitting[0]
    content, kind = latest.results.get("content"), feature_kind(latest.extractor)
    # Of other data an accuracy tells nothing; a run of before noted none, and stands alone. Regions of other
    # features may not be there to be had.
    alike = [
        run
        for run in fitting
        if run is latest
        or (run.results.get("content") == content is not None and feature_kind(run.extractor) == kind)
    ]
    measured = [run for run in alike if run.accuracy is not None]
    best = max(measured, key=lambda run: run.accuracy or 0.0, default=latest)
    if latest.accuracy is None or latest.accuracy >= best.lowest:
        return latest.path, notes
    chosen = next((run for run in measured if (run.accuracy or 0.0) >= best.lowest), best)
    notes.append(
        f"{latest.path} is later, but worse on the same data ({latest.accuracy:.1f} % on val, this model"
        f" {chosen.accuracy:.1f} %); --checkpoint names it"
    )
    return chosen.path, notes


def _for_photos(runs: list[_Run], task: str, pictures: Sequence[Path]) -> tuple[list[_Run], list[str]]:
    """Of photographs the runs that are not for drawings, where there is any, and notes on the others.

    Not the other way round: no drawing of 100 was taken for a photograph, 15 photographs of 300 for drawings.
    """
    if not any(run.is_for_drawings for run in runs) or not pictures:
        return runs, []
    photos, looked_at = count_photos(list(pictures[:MOST_PICTURES]))
    if 2 * photos <= looked_at:
        return runs, []
    fitting = [run for run in runs if not run.is_for_drawings]
    what = "this is a photograph" if len(pictures) == 1 else "these are photographs"
    if not fitting:
        note = f"{what}, and this model's features (builtin) see little in photographs"
        suited = shipped_for(task)
        return runs, [
            note + (f"; `--checkpoint {suited.name}` comes with tbkin for photographs" if suited else "")
        ]
    if fitting[0] is runs[0]:
        return fitting, []
    return fitting, [f"{runs[0].path} is later, but its features (builtin) see little in photographs"]


def described(checkpoint: Path) -> str:
    """Which model it is, and where its run tells, what it learnt from and how good it is."""
    if not (checkpoint / RUN_FILE).is_file():
        return str(checkpoint)
    run = read_run(checkpoint)
    if run["stage"] != "finetune" or run["status"] != "finished":
        return str(checkpoint)
    settings, accuracy = settings_of(checkpoint), run["results"].get("accuracy") or {}
    if not settings.get("data") or settings.get("task") not in FINETUNE_TASKS:
        return str(checkpoint)
    split = next((name for name in ("val", *accuracy) if accuracy.get(name) is not None), None)
    metric = finetune_task(settings["task"]).metric
    worth = "" if split is None else f", {metric} {accuracy[split]:.1f} % on {split}"
    return f"{checkpoint}, fine-tuned on {settings['data']}{worth}"
