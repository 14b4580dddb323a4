"""Directories of runs: what has been made, what was interrupted, and what a later stage finds."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tbkin_core.errors import CheckpointError, DataError, TbkinError
from tbkin_core.settings import (
    FinetuneConfig,
    PretrainConfig,
    StageConfig,
    config_values,
    dump_config,
    fields_of,
    kept_check,
)
from tbkin_core.shipped import shipped_for
from tbkin_core.support.devices import join_ranks, launch, resolve_devices
from tbkin_core.support.files import other_entries, real_path, write_json, write_text
from tbkin_core.support.places import Content, free_place, open_place, place_of, put_in_place
from tbkin_core.support.ranks import rank, wait_for_ranks
from tbkin_core.support.schema import (
    anything,
    list_of,
    mapping_of,
    maybe,
    number,
    one_of,
    path_text,
    read_checked,
    record,
    text,
)

logger = logging.getLogger("tbkin")

Config = TypeVar("Config", bound=StageConfig)

RUN_FILE = "run.json"
SWEEP_FILE = "sweep.json"
ROOT = Path("runs")
FINISHED_BEFORE = "this run had finished already; --overwrite trains it again"
# Settings that name a place; one that is no absolute path is looked for from where the run was made.
_PLACES = ("data", "features", "graphs", "answers", "init")
# What a run's directory holds. Whatever else is there is somebody's.
_RUN_NAMES = frozenset(
    (RUN_FILE, "config.yaml", "metrics.jsonl", "config.json", "model.safetensors",
     "generation_config.json", "tokenizer.json", "tokenizer_config.json", "state/", "state/model.pt",
     "state/optimizer.pt", "state/progress.json", "tensorboard/")
)  # fmt: skip
CARD = "README.md"
CARD_START = "---\nlibrary_name: tbkin\n"
"""How the card of a model begins; a README of somebody's own does not."""
CURVES = re.compile(r"training(-column)?\.(png|svg|pdf)")
_EVENTS = re.compile(r"tensorboard/events\.out\.tfevents\.[^/]*")
_RUN_SPLIT_FILE = re.compile(r"(results|predictions)-[^/]*\.json")
# What run.json holds, and besides that of a finished run.
_OBJECT = mapping_of(anything)
_SETTINGS = {"pretrain": kept_check(PretrainConfig), "finetune": kept_check(FinetuneConfig)}
_RUN = record(
    {"stage": one_of(*_SETTINGS), "status": text, "settings": _OBJECT},
    {"made_in": maybe(path_text), "made_from": maybe(_OBJECT)},
)
_SCORE = maybe(number())  # null where it was not finite
_SCORES = mapping_of(_SCORE)
_ENTRY = record(
    {"split": text, "model": text, "n": number(whole=True), "order": number(whole=True)},
    {
        **dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high"), _SCORE),
        "part": text,
        "also": mapping_of(record({"value": number()}, dict.fromkeys(("low", "high"), number()))),
    },
)
_RESULTS_OF = {
    "pretrain": {"validation": _SCORES, "best_epoch": number(whole=True)},
    "finetune": {"report": list_of(_ENTRY)},
}
_SOME_RESULTS = {
    **dict.fromkeys(("contents", "computed_on"), maybe(_OBJECT)),
    **dict.fromkeys(("reason", "type_split"), maybe(text)),
    **dict.fromkeys(("accuracy", "per_question_type", "questions_per_type"), maybe(_SCORES)),
}
_FINISHED = {
    stage: record(
        {
            **dict.fromkeys(("started", "finished"), number()),
            "results": record({"problems": list_of(text), "seconds": number(), **needed}, _SOME_RESULTS),
        }
    )
    for stage, needed in _RESULTS_OF.items()
}
# Settings that do not change what a run computes.
_NO_RESULT = (
    "out", "overwrite", "resume", "save_minutes", "max_minutes", "devices", "tensorboard", "wandb", "mlflow",
    "predict", "compile", "kernels", "keep_features", "format", "column",
)  # fmt: skip


def run_settings(config: StageConfig) -> dict[str, Any]:
    """The settings that a run's results follow from."""
    return {name: value for name, value in config_values(config).items() if name not in _NO_RESULT}


def open_run(
    config: StageConfig, stage: str, default: Path, stack: contextlib.ExitStack
) -> tuple[Path, Path, dict[str, Any] | None]:
    """The directory for a run: a new one, an interrupted one of the same settings, or a finished one.

    Without --out, runs of other settings are left alone and a number is appended to the name. A run that
    replaces another is made beside it (`tbkin_core.support.places`) and gone on with there.

    Args:
        stack: Keeps other processes out of the directory for as long as it is open.

    Returns:
        The directory, where to make the run, and the results of one that has finished there.

    Raises:
        DataError: --out names a run of other settings, another process is at work there, or it cannot be
            written to.
    """
    path = config.out or free_place(default, lambda place: _found_at(place, stage, config).content)

    def look(place: Path) -> Content:
        content = _found_at(place, stage, config).content
        # With --overwrite the first rank begins it anew, and the others follow there.
        restarts = place != path and not (getattr(config, "resume", True) or config.overwrite)
        return Content.OTHER if restarts and content is Content.BEGUN else content

    overwrite = config.overwrite and rank() == 0
    work = open_place(path, look, is_of_run, overwrite, stack, follows=rank() > 0)
    found = _found_at(work, stage, config)
    if found.content is Content.NOTHING:
        _begin(work, stage, config)
    elif found.content in (Content.OTHER, Content.FOREIGN):
        raise found.refusal(path, stage)
    if found.content is not Content.WHOLE:
        return path, work, None
    _forget_state(path, found.run["results"])  # where a kill came before
    return path, work, found.run["results"]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a directory holds."""

    content: Content
    run: Mapping[str, Any] = field(default_factory=dict)  # its run.json
    changed: Sequence[str] = ()  # names of the settings that differ

    def refusal(self, path: Path, stage: str) -> DataError:
        """Why no run of `stage` is made there."""
        if self.content is Content.FOREIGN:
            hint = "choose another place with --out DIR"
            if (path / RUN_FILE).exists():
                try:
                    read_run(path)
                except DataError as error:  # says what is wrong with it
                    return DataError(error.message, hint=hint)
            some = ", ".join(other_entries(path)[:3])
            return DataError(f"{path}: holds something else than a run ({some})", hint=hint)
        there = self.run["stage"]
        other = f" with other settings ({', '.join(self.changed)})" if there == stage else ""
        hint = "use --overwrite to replace it, or another --out DIR"
        if self.changed and set(self.changed) <= {"epochs", "max_minutes"}:
            hint += f"; --init {path} --out DIR trains it further"
        return DataError(f"{path}: holds a run of {there}{other}", hint=hint)


def _found_at(path: Path, stage: str, config: StageConfig) -> _Found:
    run = _read_run(path)
    if run is None:
        return _Found(Content.FOREIGN if other_entries(path) else Content.NOTHING)
    kept = _as_now(run["settings"], config)
    changed = _changed_settings(kept, run_settings(config), path, run.get("made_in"))
    if run["stage"] != stage or changed:
        return _Found(Content.OTHER, run, changed)
    finished = run["status"] == "finished" and not _has_more_time(config, run["results"])
    return _Found(Content.WHOLE if finished else Content.BEGUN, run)


def _begin(path: Path, stage: str, config: StageConfig) -> None:
    """Make a directory known as that of a run."""
    content = {"stage": stage, "status": "running", "settings": run_settings(config), "started": time.time()}
    # As the run sees it, so that both can be moved together.
    content["made_in"] = os.path.relpath(Path.cwd(), path)
    write_json(path / RUN_FILE, content)  # first: by this the directory is known
    write_text(path / "config.yaml", dump_config(config))


def is_of_run(directory: Path, name: str) -> bool:
    """Whether tbkin writes what has a name in a run's directory; one that ends in "/" is of a directory."""
    if _RUN_SPLIT_FILE.fullmatch(name) and (directory / name).is_file():  # a pipe would be waited for
        with contextlib.suppress(OSError), (directory / name).open("rb") as file:
            return file.read(20).startswith((b'{"task": ', b'[{"question_id": ', b'[{"sent_id": ', b"[]"))
    if name == CARD and (directory / name).is_file():
        with contextlib.suppress(OSError), (directory / name).open("rb") as file:
            return file.read(len(CARD_START)) == CARD_START.encode()
    return name in _RUN_NAMES or any(known.fullmatch(name) for known in (_EVENTS, CURVES))


def _as_now(kept: Any, config: StageConfig) -> Any:
    """Settings that a run kept; those that came since have their defaults, by which it was made."""
    if not isinstance(kept, dict):
        return kept
    defaults = {name: field.default for name, field in fields_of(type(config)).items()}
    known = {name: defaults[name] for name in run_settings(config) if name in defaults} | kept
    if "match_hidden" in known and "match_hidden" not in kept:
        known["match_hidden"] = True  # it was always so
    if known.get("init") == "auto" and getattr(config, "init", None) == "none":
        known["init"] = "none"  # pretraining kept "auto" when that was always at random
    return known


def _changed_settings(
    kept: Mapping[str, Any], settings: Mapping[str, Any], run: Path, made_in: str | None
) -> list[str]:
    """Names of the settings that differ; a place is the same by whatever path it is named."""

    def place(base: Path, typed: Any) -> Any:
        if isinstance(typed, list):
            return [place(base, entry) for entry in typed]
        return real_path(base.absolute() / typed) if typed and isinstance(typed, str) else typed

    def same(name: str) -> bool:
        one, other = kept.get(name), settings.get(name)
        if one == other or made_in is None or name not in _PLACES:
            return one == other
        return bool(one and other) and place(run / made_in, one) == place(Path(), other)

    return sorted(name for name in {*kept, *settings} if not same(name))


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Rank 0 is the first to go through the block, the others follow it, and all leave together."""
    if rank() > 0:
        wait_for_ranks()
    yield
    if rank() == 0:
        wait_for_ranks()
    wait_for_ranks()


def train_together(
    config: Config,
    stage: str,
    default: Path,
    train: Callable[[Config, Path], None],
    stack: contextlib.ExitStack,
) -> tuple[Path, dict[str, Any]]:
    """Train in the directory of a run unless it has finished there already; its place and its results.

    `train` is called in one process per device, and leaves results in the directory (`finish_run`). Where
    several processes were started from outside (torchrun), rank 0 is the first to open the directory. The
    `stack` keeps the commands of other processes out of it for as long as it is open.
    """
    devices = resolve_devices(config.devices)
    join_ranks(devices)
    with rank_zero_first():
        path, work, found = open_run(config, stage, default, stack)
    if found is None:
        with _forgotten_if_empty(work):
            launch(train, devices, config, work)
            wait_for_ranks()
        if work != path and rank() == 0:
            put_in_place(path, is_of_run)
        wait_for_ranks()
    results: dict[str, Any] = read_run(path)["results"]
    if found is not None:
        results["problems"].insert(0, FINISHED_BEFORE)
    return path, results


@contextlib.contextmanager
def _forgotten_if_empty(path: Path) -> Iterator[None]:
    """Empty the directory of a run that fails before it saved anything, so that it is in nobody's way."""
    try:
        yield
    except TbkinError:
        if rank() == 0 and set(other_entries(path)) <= {RUN_FILE, "config.yaml"}:
            for name in other_entries(path):
                (path / name).unlink(missing_ok=True)
        raise


def _has_more_time(config: StageConfig, results: dict[str, Any]) -> bool:
    """Whether a run that --max-minutes, or the minutes chosen for it, cut short may now train longer."""
    if results.get("reason") != "minutes":
        return False
    minutes = getattr(config, "max_minutes", None)
    return not results.get("minutes_chosen") if minutes is None else 60 * minutes > results["seconds"]


def finish_run(path: Path, results: dict[str, Any]) -> None:
    """Mark a run finished; its state is removed, unless more time would let it go on."""
    content = read_run(path)
    content |= {"status": "finished", "finished": time.time(), "results": results}
    write_json(path / RUN_FILE, content)
    _forget_state(path, results)


def _forget_state(path: Path, results: Mapping[str, Any]) -> None:
    if results.get("reason") == "minutes" or rank() > 0 or not (path / "state").is_dir():
        return
    for file in filter(lambda name: name.startswith("state/") and name != "state/", _RUN_NAMES):
        (path / file).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where something of somebody's is in it
        (path / "state").rmdir()


def settings_of(checkpoint: Path, stage: str = "") -> dict[str, Any]:
    """The settings of the run that made a checkpoint; empty where it was made elsewhere.

    Their paths lead from the working directory of now to what the run was made from. Where a stage is named,
    they are empty of a run of another one.
    """
    if not os.path.exists(checkpoint / RUN_FILE):  # noqa: PTH110 - says no to what is no path
        return {}
    content = read_run(checkpoint)
    settings: dict[str, Any] = content["settings"]
    if stage not in ("", content["stage"]):
        return {}
    if (made_in := content.get("made_in")) is None:  # an earlier version did not keep it
        return settings

    def found(typed: Any) -> Any:
        if isinstance(typed, list):
            return [found(entry) for entry in typed]
        if not typed or not isinstance(typed, str):
            return typed
        place = Path(os.path.normpath(checkpoint.absolute() / made_in / typed))
        elsewhere = os.path.exists(place) and real_path(place) != real_path(Path(typed))  # noqa: PTH110
        return os.path.relpath(place) if elsewhere else typed

    return settings | {name: found(settings[name]) for name in _PLACES if name in settings}


def datasets_of(checkpoint: Path) -> list[Path]:
    """Datasets that the run which made a checkpoint learnt from; none where it was made elsewhere."""
    data = settings_of(checkpoint).get("data")
    return [Path(entry) for entry in (data if isinstance(data, list) else [data]) if entry]


def note_inputs(path: Path, made_from: Mapping[str, int | None], resume: bool) -> None:
    """Keep in its run.json what a run that begins is made from; each process of the run calls this.

    Args:
        made_from: For each input, as messages call it, a number that changes with it; None of one that cannot
            be looked at.
        resume: Whether a run goes on where it has a state; then it must be made from the same.

    Raises:
        DataError: The run goes on, and some of that has changed since it began.
    """
    if resume and (path / "state").is_dir():
        check_inputs(path, made_from)
    elif rank() == 0:
        write_json(path / RUN_FILE, read_run(path) | {"made_from": dict(made_from)})


def check_inputs(path: Path, made_from: Mapping[str, int | None]) -> None:
    """DataError where a run was made from other inputs than those of now: it tells nothing about these."""
    if changed := changed_inputs(path, made_from):
        raise DataError(
            f"{place_of(path)}: its inputs have changed since this run began ({', '.join(changed)}); what it"
            " learnt is of those before",
            hint="--overwrite trains it again; --out DIR keeps both; results that it has are in its run.json",
        )


def changed_inputs(run: Path, made_from: Mapping[str, int | None]) -> list[str]:
    """Inputs of a run that are not those of now; new ones and what cannot be looked at aside."""
    kept = (_read_run(run) or {}).get("made_from") or kept_contents(run)
    now = {name: made_from.get(name, -1) for name in kept}
    return [name for name, value in kept.items() if None not in (value, now[name]) and value != now[name]]


def kept_contents(run: Path) -> dict[str, int]:
    """What a finished run noted of its samples, by split (`samples_content`); {} where it noted nothing."""
    found: dict[str, int] = ((_read_run(run) or {}).get("results") or {}).get("contents") or {}
    return found


def finished_runs(stage: str) -> list[tuple[Path, dict[str, Any]]]:
    """Finished runs of a stage, the latest first; those of threshold sweeps are left out."""
    found = []
    for file in sorted(ROOT.glob(f"**/{RUN_FILE}")) if ROOT.is_dir() else []:
        if _is_aside(file.parent):
            continue
        try:
            content = read_run(file.parent)
        except DataError as error:
            logger.warning("passed over: %s", error.message)
            continue
        if content["stage"] == stage and content["status"] == "finished":
            found.append((file.parent, content))
    return sorted(found, key=lambda entry: entry[1]["finished"], reverse=True)


def _is_aside(path: Path) -> bool:
    """Whether a run waits to be replaced, or is one of many that a sweep trained: nothing to build on."""
    return path.name.startswith(".") or (path.parent.parent / SWEEP_FILE).exists()


def find_checkpoint(tasks: Sequence[str], prefer: str | None = None, shipped: bool = True) -> Path:
    """The latest checkpoint made for one of the tasks ("pretrain", "vqa", "rec"), fine-tuned ones first.

    Those of the task `prefer` come before all others, however old; question-only models are left out. Where
    nothing is found, it is the name of one that comes with tbkin, for the first task that has one, unless
    `shipped` is False.

    Raises:
        CheckpointError: There is none; the message names the command that makes one.
    """
    finetuned = finished_runs("finetune")
    for path, content in sorted(finetuned, key=lambda entry: entry[1]["settings"].get("task") != prefer):
        if content["settings"].get("task") in tasks and not content["settings"].get("blind"):
            return path
    if "pretrain" in tasks and (pretrained := finished_runs("pretrain")):
        return pretrained[0][0]
    for task in tasks if shipped else ():
        if model := shipped_for(task):
            return Path(model.name)
    hint = "make one with `tbkin pretrain DATA`"
    if wanted := [task for task in tasks if task != "pretrain"]:
        hint = f"make one with `tbkin finetune --task {wanted[0]}`, or name one with --checkpoint DIR"
    raise CheckpointError(f"no finished checkpoint for {' or '.join(tasks)} below {ROOT}/", hint=hint)


def _read_run(path: Path) -> dict[str, Any] | None:
    """The run.json of a directory; None where there is none, or none that is whole."""
    try:
        return read_run(path)
    except DataError:
        return None


def read_run(path: Path) -> dict[str, Any]:
    """What run.json in the directory of a run says: "stage", "settings", "status" and, finished, "results".

    Raises:
        DataError: It is missing, or damaged.
    """
    hint = "name another, or train that run again with another --out DIR"
    content: dict[str, Any] = read_checked(path / RUN_FILE, _check_run, hint)
    return content


def _check_run(content: Any, where: str) -> None:
    _RUN(content, where)
    _SETTINGS[content["stage"]](content["settings"], "settings")
    if content["status"] == "finished":
        _FINISHED[content["stage"]](content, where)
