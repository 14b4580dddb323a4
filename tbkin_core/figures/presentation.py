"""How the answers of a task are shown: all that figures and the page need to know of a task.

The one place where figures tell tasks apart by name; no torch here, as drawing a trace again loads none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Presentation:
    """How the answers of a task are shown.

    Attributes:
        title: Name of the task, as the page has it above the text.
        answer_heading: Heads the column of answers.
        aggregate: How attention is summed up by default, one of `tbkin_core.figures.views.AGGREGATES`.
        answers_are_regions: Answers are "region 3", which figures call by the region's own name.
    """

    title: str
    answer_heading: str = "answer"
    aggregate: str = "last"
    answers_are_regions: bool = False


_PRESENTATIONS = {
    "vqa": Presentation("Visual question answering"),
    "rec": Presentation(
        "Referring expression", answer_heading="region", aggregate="rollout", answers_are_regions=True
    ),
    "pretrain": Presentation("Image and text", answer_heading="image and text"),
}


def presentation_of(task: str) -> Presentation:
    """The presentation of a task; of one that is not known, under its own name."""
    return _PRESENTATIONS.get(task, Presentation(task))
