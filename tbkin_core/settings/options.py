"""The kinds of options: each heading of `--help`, and what several subcommands have."""

from __future__ import annotations

from functools import partial

from tbkin_core.selection import SELECTIONS
from tbkin_core.settings.base import Group, option
from tbkin_core.tasks.table import FINETUNE_TASKS, TASKS

# A setting under each heading of --help.
data = partial(option, group=Group.DATA)
regions = partial(option, group=Group.REGIONS)
graphs = partial(option, group=Group.GRAPHS)
questions = partial(option, group=Group.QUESTIONS)
model = partial(option, group=Group.MODEL)
selection = partial(option, group=Group.SELECTION)
training = partial(option, group=Group.TRAINING)
sweep = partial(option, group=Group.SWEEP)
figure = partial(option, group=Group.FIGURE)
server = partial(option, group=Group.SERVER)
run = partial(option, group=Group.RUN)
output = partial(option, group=Group.OUTPUT)

# What several subcommands have.
_named = [f"{TASKS[name].samples} ({name})" for name in FINETUNE_TASKS]
_tasks = f"{', '.join(_named[:-1])} or {_named[-1]}"
task = partial(data, help=f"What to learn: {_tasks}.", choices=FINETUNE_TASKS, required=True)
features = partial(data, help="Feature store.", unset="DATA/features")
sample_set = partial(
    data,
    help="Which set, where there are several: refcoco, refcoco+, refcocog-google; vqa-v2, vqa, ...",
)
_own = "Fine-tuned model, or one that comes with tbkin: photo-answers, photo-search."
checkpoint = partial(model, help=_own, unset="the latest, else these")
rule = partial(
    selection,
    help="Rule by which attention keeps keys; sparsemax and entmax15 have no threshold.",
    choices=SELECTIONS,
)
threshold = partial(selection, help="τ of the selection rule, or k of topk; 0 is the dense model.")
vqa = partial(option, only_for=("vqa",))
figure_format = partial(
    figure, help="Format of the figures; pdf and svg hold text.", choices=("png", "svg", "pdf")
)
column = partial(figure, help="Figures as wide as one column of a paper, 3.4 inches.")
made = partial(questions, only_with="questions")
refit = partial(sweep, only_with="refit", unset="the checkpoint's")
chance = partial(option, low=0, high=1)
