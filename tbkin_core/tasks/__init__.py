"""What a model can be trained for: one row and one module per task. Importing this loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tbkin_core.tasks.base import FinetuneTask, Task

TASKS = {
    "vqa": "tbkin_core.tasks.vqa:VqaTask",
    "rec": "tbkin_core.tasks.rec:RecTask",
    "pretrain": "tbkin_core.tasks.pretraining:PretrainTask",
}
FINETUNE_TASKS = tuple(name for name in TASKS if name != "pretrain")
"""What `--task` takes."""


def task_named(name: str) -> Task:
    """The task of a name among `TASKS`; loads its module, and with it torch."""
    module, _, kind = TASKS[name].partition(":")
    task: Any = getattr(import_module(module), kind)
    return task()


def finetune_task(name: str) -> FinetuneTask:
    """The task of a name among `FINETUNE_TASKS`."""
    task: Any = task_named(name)
    return task
