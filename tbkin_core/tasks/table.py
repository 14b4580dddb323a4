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
    """A task: its class as "module:class", what it is learnt from, and how its answers are shown."""

    kind: str
    samples: str
    presentation: Presentation
    example: str = "a dog jumps into the water"  # of what its model is asked
    pipeline: str = "image-feature-extraction"  # what hubs call it


TASKS = {
    "vqa": TaskRow(
        "vqa:VqaTask",
        "VQA questions",
        Presentation("Visual question answering"),
        "what color is the dog?",
        "visual-question-answering",
    ),
    "rec": TaskRow(
        "rec:RecTask",
        "referring expressions",
        Presentation("Referring expression", "region", "rollout", answers_are_regions=True),
        "the dog on the left",
        "object-detection",
    ),
    "retrieval": TaskRow(
        "retrieval:RetrievalTask",
        "captions of images",
        Presentation("Image and text", "image and text"),
    ),
    "pretrain": TaskRow(
        "pretraining:PretrainTask", "captions", Presentation("Image and text", "image and text")
    ),
}
FINETUNE_TASKS = tuple(name for name in TASKS if name != "pretrain")
"""What `--task` takes."""


def presentation_of(name: str) -> Presentation:
    """How the answers of a task are shown; of one that is not known, under its own name."""
    return TASKS[name].presentation if name in TASKS else Presentation(name)
