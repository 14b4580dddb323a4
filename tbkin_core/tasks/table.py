"""The table of tasks: one row each. It imports nothing, for the command line and figures read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Presentation:
    """How the answers of a task are shown, also where its module is not loaded."""

    title: str  # name of the task, as the page has it above the text
    answer_heading: str = "answer"  # heads the column of answers
    aggregate: str = "last"  # attention summed up over all layers ("rollout") or the "last"
    answers_are_regions: bool = False  # "region 3", which figures call by the region's own name, with a box


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task: its class, as "module:class", and how its answers are shown."""

    kind: str
    presentation: Presentation


TASKS = {
    "vqa": TaskRow("tbkin_core.tasks.vqa:VqaTask", Presentation("Visual question answering")),
    "rec": TaskRow(
        "tbkin_core.tasks.rec:RecTask",
        Presentation("Referring expression", "region", aggregate="rollout", answers_are_regions=True),
    ),
    "pretrain": TaskRow(
        "tbkin_core.tasks.pretraining:PretrainTask", Presentation("Image and text", "image and text")
    ),
}
FINETUNE_TASKS = tuple(name for name in TASKS if name != "pretrain")
"""What `--task` takes."""


def presentation_of(name: str) -> Presentation:
    """How the answers of a task are shown; of one that is not known, under its own name."""
    return TASKS[name].presentation if name in TASKS else Presentation(name)
