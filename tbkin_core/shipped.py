"""The models that come with tbkin, known by name wherever a checkpoint's directory is asked for.

Each is a checkpoint in `resources/models/NAME`, with a model card and `about.json`, which say what it learnt
and how good it is. They are for people who have trained none: a directory of one's own goes before them.
`examples/shipped_models/photo_models.py` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from tbkin_core.errors import CheckpointError
from tbkin_core.support.schema import one_of, read_checked, record, text
from tbkin_core.tasks.table import FINETUNE_TASKS

_ABOUT = record({"task": one_of(*FINETUNE_TASKS), "about": text})
_HINT = "install tbkin again"


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """A model that comes with tbkin."""

    name: str  # what it is asked for by, such as "photo-answers"
    task: str  # what it was fine-tuned for
    about: str  # what it learnt and how good it is, in a clause


@cache
def shipped_models() -> tuple[ShippedModel, ...]:
    """All of them, by name.

    Raises:
        CheckpointError: What is installed is damaged.
    """
    found = []
    for place in sorted(_models().iterdir()) if _models().is_dir() else []:
        if (place / "about.json").exists():
            about = read_checked(place / "about.json", _ABOUT, _HINT, CheckpointError)
            found.append(ShippedModel(place.name, about["task"], about["about"]))
    return tuple(found)


def shipped_model(checkpoint: Path | str | None) -> ShippedModel | None:
    """The model of a name; None of one's own checkpoints, which may have such a name too.

    A directory without a model hides none: it may be that of a run which is to begin from this one.
    """
    if checkpoint is None or Path(checkpoint).is_file() or (Path(checkpoint) / "config.json").is_file():
        return None
    return next((model for model in shipped_models() if model.name == str(checkpoint)), None)


def shipped_for(task: str) -> ShippedModel | None:
    """The model for a task that no directory of the same name hides; None where there is none."""
    return next((it for it in shipped_models() if it.task == task and shipped_model(it.name)), None)


def located(checkpoint: Path) -> Path:
    """The directory of a checkpoint: itself, or where the model of that name is installed."""
    model = shipped_model(checkpoint)
    return checkpoint if model is None else _models() / model.name


def _models() -> Path:
    return Path(str(resources.files("tbkin_core"))) / "resources" / "models"
