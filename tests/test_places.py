"""Directories that commands write to: for one process at a time, never half replaced, nothing lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import ENVIRONMENT, abandoned, fails, files_below, leftovers, succeeds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tbkin_core.datasets.layout import Layout
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.runs import open_run
from tbkin_core.settings import FinetuneConfig, ThresholdSweepConfig
from tbkin_core.stages.threshold_sweep import _open_sweep
from tbkin_core.support import files, places
from tbkin_core.support.files import atomic_directory, atomic_path, tidy, write_json, write_text
from tbkin_core.support.interruption import interruptible
from tbkin_core.support.places import Content, open_place, place_of, put_in_place, put_right, replacement
from tbkin_core.support.shards import StoreKind, StoreWriter, read_shard, store_place_held, write_shard

KIND = StoreKind("numbers", "numbers", "tbkin count")


def look(place: Path) -> Content:
    """Results of the tests are a file `result` that holds "whole" or "begun"."""
    names = files.other_entries(place)
    if "result" not in names:
        return Content.FOREIGN if names else Content.NOTHING
    return {"whole": Content.WHOLE, "begun": Content.BEGUN}.get((place / "result").read_text(), Content.OTHER)


def is_own(directory: Path, name: str) -> bool:
    return name in ("result", "weights", "deep/", "deep/ours")


def opened(path: Path, overwrite: bool = False) -> Path:
    with contextlib.ExitStack() as stack:
        return open_place(path, look, is_own, overwrite, stack)


# ---- leftovers ----------------------------------------------------------------------------------


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    mine = [".env", ".gitignore", ".state-12345678", ".x.tbkin", ".tbkin", ".a.0123abcd-1-0123abcd.tbkinx"]
    alive = [abandoned("g", ".jsonl", os.getppid()), abandoned("h", ".png", host="00000000")]
    for name in [*mine, *alive, abandoned("g", ".jsonl"), abandoned("a.b", "", os.getpid())]:
        (tmp_path / name).write_text("")
    (tmp_path / abandoned("state")).mkdir()
    (tmp_path / abandoned("state") / "model.pt").write_text("")
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".git", *mine, *alive])


def test_what_a_dead_writer_put_aside_comes_back(tmp_path: Path) -> None:
    for stem in ("state", "gone"):
        (tmp_path / abandoned(stem, "-old")).mkdir()
        (tmp_path / abandoned(stem, "-old") / stem).write_text("old")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "new").write_text("")
    tidy(tmp_path)
    assert files_below(tmp_path) == {"state/new": b"", "gone/gone": b"old"}


@pytest.mark.parametrize("suffix", ["", ".jsonl", ".png"])
def test_a_killed_writer_leaves_what_the_next_one_removes(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"figure{suffix}"
    code = (
        "import os, sys, pathlib; from tbkin_core.support.files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, target], env=ENVIRONMENT, check=False)
    assert ended.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1 and not target.exists()
    files.make_directory(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_replace_what_a_link_leads_to_and_have_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.json").symlink_to("elsewhere/real.json")
    (tmp_path / "directory").symlink_to("elsewhere/graphs")
    write_text(tmp_path / "link.json", "1")
    with atomic_directory(tmp_path / "directory") as place:
        (place / "a").write_text("2")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "directory").is_symlink()
    assert files_below(tmp_path / "elsewhere") == {"real.json": b"1", "graphs/a": b"2"}
    assert (tmp_path / "elsewhere/real.json").stat().st_mode & 0o777 == 0o666 & ~files._umask()
    with atomic_path(tmp_path / ("x" * 250)) as long:
        long.write_text("")
    assert (tmp_path / ("x" * 250)).exists() and leftovers(tmp_path) == []


# ---- one process at a time ----------------------------------------------------------------------


HOLD = """
import pathlib, sys
from tbkin_core.support.places import held
with held(pathlib.Path(sys.argv[1]), shared=sys.argv[2] == "True"):
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(directory: Path, shared: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Another process is at work in a directory."""
    line = [sys.executable, "-c", HOLD, directory, str(shared)]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, env=ENVIRONMENT, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process  # it ends when its input is closed


def test_a_second_process_is_told_who_is_at_work(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with held_elsewhere(place) as other:
        for shared in (False, True):
            with pytest.raises(DataError, match=rf"run: process {other.pid} on .* is at work here"):
                places.held(place, shared).__enter__()
    assert not place.exists(), "nothing was made in it"
    with held_elsewhere(place) as other:
        other.kill()
        other.wait()
        with places.held(place):
            (place / "result").write_text("")
    assert [path.name for path in place.iterdir()] == ["result"]


def test_an_interruption_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = places._is_still

    def interrupted(lock: Path, handle: int) -> bool:
        monkeypatch.setattr(places, "_is_still", still)
        signal.raise_signal(signal.SIGINT)
        return still(lock, handle)

    with pytest.raises(KeyboardInterrupt), interruptible(), places.held(tmp_path / "run"):
        monkeypatch.setattr(places, "_is_still", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_one_run_are_let_in_together(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, shared=True):
        with places.held(tmp_path, shared=True):
            pass
        with pytest.raises(DataError, match="at work here"), places.held(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_commands_refuse_a_directory_at_work(workspace: Path) -> None:
    lines = {
        "coco/features": ["extract-features", "coco"],
        "coco/graphs": ["build-graphs", "coco"],
        "runs/finetune/vqa": ["finetune", "--task", "vqa", "--data", "coco"],
    }
    succeeds(*lines["coco/features"], "--workers", "0", cwd=workspace)
    for place, line in lines.items():
        before = files_below(workspace)
        with held_elsewhere(workspace / place):
            fails(*line, cwd=workspace, code=1, says=(place, "process", "at work here", "--out DIR"))
        assert files_below(workspace) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_others_are_kept_out_until_all_is_written(
    trained_workspace: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Settings, exports, predictions and curves come last, when the result has its place already."""
    writers: list[str] = []

    def guarded(stage: str, writer: str, place: str) -> None:
        module = sys.modules[f"tbkin_core.stages.{stage}"]
        known = getattr(module, writer)

        def writes(*args: object) -> object:
            with pytest.raises(DataError, match="is at work here"), places.held(trained_workspace / place):
                pass
            writers.append(writer)
            return known(*args)

        monkeypatch.setattr(module, writer, writes)

    short = ["--init", "none", "--epochs", "0", "--devices", "cpu", "--out"]
    lines = {
        "extract-features coco --workers 0": ("coco/features", ["write_text"]),
        "build-graphs coco --export g.jsonl --networkx g.graphml": (
            "coco/graphs",
            ["write_text", "export_jsonl", "export_networkx"],
        ),
        " ".join(["pretrain coco", *short, "p"]): ("p", ["draw_training_curves"]),
        " ".join(["finetune --task rec --data coco --predict val", *short, "f"]): (
            "f",
            ["write_predictions", "draw_training_curves"],
        ),
    }
    for line, (place, names) in lines.items():
        command = line.split()
        if overwrite and place in ("p", "f"):
            succeeds(*command, cwd=trained_workspace)
        with monkeypatch.context():
            stage = command[0].replace("-", "_")
            for name in names:
                guarded(stage, name, place)
            writers.clear()
            succeeds(*command, *["--overwrite"] * overwrite, cwd=trained_workspace)
            assert writers == names
        assert leftovers(trained_workspace / place) == []
        assert not (trained_workspace / place / ".tbkin-lock").exists()


# ---- replacing ----------------------------------------------------------------------------------


def test_a_result_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert opened(path) == path and not path.exists()
    path.mkdir()
    (path / "result").write_text("whole")
    assert opened(path) == path and opened(path, overwrite=True) == replacement(path)
    (path / "result").write_text("other")
    for at_work in ("begun", "whole"):
        assert opened(path, overwrite=True) == replacement(path)
        replacement(path).mkdir()
        (replacement(path) / "result").write_text(at_work)
        (replacement(path) / "weights").write_text("new")
        if at_work == "begun":
            assert opened(path) == replacement(path), "gone on with"
            assert files_below(path) == {"result": b"other"}
            assert opened(path, overwrite=True) == replacement(path) and not replacement(path).exists()
        else:
            assert opened(path) == path, "a kill came before it was put in its place"
            assert files_below(tmp_path) == {"run/result": b"whole", "run/weights": b"new"}
    (path / "notes.txt").write_text("mine")
    assert opened(path / "notes", overwrite=True) == path / "notes"


def test_nothing_takes_the_place_of_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "result").write_text("whole")
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(ConfigError, match="mount point"):
        opened(tmp_path, overwrite=True)
    monkeypatch.undo()
    (tmp_path / "a").mkdir()
    for inside in (tmp_path, tmp_path / "a"):
        monkeypatch.chdir(inside)
        for path in (Path(os.path.relpath(tmp_path)), tmp_path):
            assert opened(path) == path
            with pytest.raises(ConfigError, match="working directory"):
                opened(path, overwrite=True)
    assert files_below(tmp_path) == {"result": b"whole"}


def test_something_else_in_the_place_of_a_result_stays(tmp_path: Path) -> None:
    """A kill between two renames, and then somebody puts a copy there."""
    path = tmp_path / "run"
    new, old = places.beside(path)
    for place, content in ((path, "copy"), (old, "other"), (new, "whole")):
        place.mkdir()
        (place / "result").write_text(content)
    assert opened(path) == path
    kept = {"run/result": b"copy", "run-before-1/result": b"other", ".run.tbkin-new/result": b"whole"}
    assert files_below(tmp_path) == kept


@pytest.mark.parametrize("waiting", ["begun", "whole"])
@pytest.mark.parametrize("content", ["other", "whole", "weights alone"])
def test_what_has_come_to_lie_in_the_place_is_not_replaced(
    tmp_path: Path, waiting: str, content: str
) -> None:
    """An interrupted replacement, and the old result is moved away meanwhile."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "result").write_text("other")
    new = opened(path, overwrite=True)
    new.mkdir()
    (new / "result").write_text(waiting)
    path.rename(tmp_path / "kept")
    path.mkdir()
    (path / ("weights" if content == "weights alone" else "result")).write_text(content)
    before = files_below(tmp_path)
    assert opened(path) == path and files_below(tmp_path) == before
    if content == "weights alone":
        assert opened(path, overwrite=True) == path and files_below(tmp_path) == before
    else:  # that is asked for
        assert opened(path, overwrite=True) == new and not new.exists()
        new.mkdir()
        (new / "result").write_text("whole")
        (path / "result").write_text("changed while it was made")
        put_in_place(path, is_own)
        after = {"run/result": b"whole", "run-before-1/result": b"changed while it was made"}
        assert files_below(tmp_path) == {**after, "kept/result": b"other"}


def test_an_interrupted_replacement_goes_on_where_the_old_result_was(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "result").write_text("other")
    new = opened(path, overwrite=True)
    new.mkdir()
    (new / "result").write_text("begun")
    (path / "notes").write_text("mine")
    assert opened(path) == new
    path.rename(tmp_path / "kept")
    assert opened(path) == new, "nothing is there to be lost"
    (new / "result").write_text("whole")
    assert opened(path) == path
    assert files_below(tmp_path) == {"run/result": b"whole", "kept/result": b"other", "kept/notes": b"mine"}


def test_a_name_that_leaves_no_room_for_a_replacement(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    assert opened(path) == path
    path.mkdir()
    (path / "result").write_text("whole")
    with pytest.raises(DataError, match="cannot write here"):
        opened(path, overwrite=True)
    assert opened(path) == path


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@given(moment=st.integers(0, 12), linked=st.booleans())
def test_a_kill_at_any_moment_loses_nothing(
    moment: int, linked: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("kill")
    path, real = place / "run", place / ("real" if linked else "run")
    if linked:
        path.symlink_to("real")
    (real / "deep").mkdir(parents=True)
    for name, content in {"result": "other", "weights": "old", "deep/ours": "old"}.items():
        (real / name).write_text(content)
    for name in (".git", "notes", "deep/notes"):
        (real / name).write_text("mine")
    opened(path, overwrite=True).mkdir()
    for name, content in {"result": "whole", "weights": "new"}.items():
        (replacement(path) / name).write_text(content)
    steps = 0

    def step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps > moment:
            raise Killed

    with pytest.MonkeyPatch.context() as patched, contextlib.suppress(Killed):
        for owner, name in ((Path, "replace"), (files.shutil, "rmtree"), (os, "rename"), (os, "unlink")):
            known = getattr(owner, name)
            patched.setattr(owner, name, lambda *a, known=known, **k: (step(), known(*a, **k))[1])
        put_in_place(path, is_own)
    found = [folder for folder in place.iterdir() if folder.is_dir() and not folder.is_symlink()]
    both = [(folder / "weights").exists() for folder in found]
    assert any(both) and (real.exists() or len(both) == 2)
    put_right(path, is_own)
    assert opened(path) == path
    mine = dict.fromkeys((".git", "notes", "deep/notes"), b"mine")
    assert files_below(real) == {"result": b"whole", "weights": b"new", **mine}
    assert path.is_symlink() is linked and sorted(p.name for p in place.iterdir()) == sorted(
        {path.name, real.name}
    )


def test_where_a_replacement_belongs() -> None:
    assert place_of(Path("runs/.a.tbkin-new/refit/b")) == Path("runs/a/refit/b")
    assert place_of(replacement(Path("runs/a"))) == Path("runs/a")
    assert place_of(Path("runs/.a.tbkin-newer/.tbkin-new")) == Path("runs/.a.tbkin-newer/.tbkin-new")


# ---- stores -------------------------------------------------------------------------------------


def fill(path: Path, value: int, overwrite: bool = False, whole: bool = True) -> None:
    settings = {"value": value}
    with store_place_held(path, KIND, settings, overwrite, alone=True) as place:
        writer = StoreWriter(place, KIND, settings)
        write_shard(place / "shard-00000.safetensors", {"numbers": np.full(3, value)}, {})
        writer.list_shards([0], complete=whole)


@pytest.mark.parametrize(
    "names",
    [
        ["config.yaml"],
        ["priors.json"],
        ["shard-00000.safetensors"],
        ["store.json"],
        [".env"],
        ["a.jpg", "b.jpg"],
    ],
)
def test_a_directory_in_use_is_no_place_for_a_store(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=rf"something else than a store.*{names[0]}"):
            fill(tmp_path, 1, overwrite)
    assert files_below(tmp_path) == dict.fromkeys(names, b"mine")


def test_a_store_is_replaced_whole_and_what_else_lies_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to("features")
    (tmp_path / "features").mkdir()
    fill(path, 1)
    (path / "notes.txt").write_text("mine")
    before = files_below(path)
    with pytest.raises(DataError, match="other settings"):
        fill(path, 2)
    fill(path, 2, overwrite=True, whole=False)
    assert files_below(path) == before and replacement(path).is_dir()
    with pytest.raises(DataError, match="waits unfinished in"):
        store_place_held(path, KIND, {"value": 2}, overwrite=False, alone=False).__enter__()
    fill(path, 2)
    assert path.is_symlink() and not replacement(path).exists()
    after = files_below(path)
    assert after.keys() == before.keys() and after["notes.txt"] == b"mine"
    assert after["store.json"] != before["store.json"]


# ---- the commands -------------------------------------------------------------------------------


def test_out_in_a_directory_in_use_is_refused(trained_workspace: Path) -> None:
    place = trained_workspace / "mine"
    place.mkdir()
    for name in ("config.yaml", "priors.json", "shard-00000.safetensors", ".shard-1", "sweep.json", "refit"):
        (place / name).write_text('{"mine": 1}')
    for line in (
        ["extract-features", "coco"],
        ["build-graphs", "coco"],
        ["pretrain", "coco"],
        ["finetune", "--task", "vqa"],
        ["threshold-sweep", "--task", "vqa", "--thresholds", "0.1"],
    ):
        for overwrite in ([], ["--overwrite"]):
            says = ("mine: holds something else than a", "--out DIR")
            fails(*line, "--out", "mine", *overwrite, cwd=trained_workspace, code=1, says=says)
    assert set(files_below(place).values()) == {b'{"mine": 1}'} and len(files_below(place)) == 6


def test_a_run_keeps_what_is_not_its_own_and_a_link_stays_one(trained_workspace: Path) -> None:
    place = trained_workspace
    line = ["finetune", "--task", "rec", "--data", "coco", "--init", "none", "--epochs", "1", "--out", "link"]
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    succeeds(*line, cwd=place)
    (place / "real/.git").mkdir()
    mine = {".env", "notes.txt", ".git/HEAD"}
    for name in mine:
        (place / "real" / name).write_text("mine")
    content = (place / "real/run.json").read_text()
    (place / "real/run.json").write_text(content.replace('"status": "finished"', '"status": "running"'))
    succeeds(*line, cwd=place)
    for name in ("state/mine", "tensorboard/mine", "results-notes.json"):
        (place / "real" / name).parent.mkdir(exist_ok=True)
        (place / "real" / name).write_text("mine")
        mine.add(name)
    before = files_below(place / "real")
    assert "had finished already" in succeeds(*line, cwd=place).out
    succeeds(*line, "--seed", "1", "--overwrite", cwd=place)
    after = files_below(place / "real")
    assert (place / "link").is_symlink() and after.keys() == before.keys()
    assert after["model.safetensors"] != before["model.safetensors"]
    assert {name for name, content in after.items() if content == b"mine"} == mine
    assert b"tbkin-new" not in b"".join(content for name, content in after.items() if name.endswith("json"))
    assert not list(place.glob(".*tbkin*")) and not (place / "real/.tbkin-lock").exists()


def test_a_disk_that_was_full_before_the_run_was_known_goes_on(trained_workspace: Path) -> None:
    line = ["finetune", "--task", "rec", "--data", "coco", "--init", "none", "--epochs", "0", "--out", "full"]
    place = trained_workspace / "full"
    place.mkdir()
    (place / abandoned("run", ".json")).write_text("")
    succeeds(*line, cwd=trained_workspace)
    assert leftovers(place) == []


def test_a_damaged_run_json_is_passed_over_by_name(trained_workspace: Path) -> None:
    bad = trained_workspace / "runs/finetune/odd"
    bad.mkdir()
    for content in (
        "{",
        "[" * 100_000,
        '{"stage": "finetune", "status": "finished", "settings": {}}',
        "[]",
        "7",
    ):
        (bad / "run.json").write_text(content)
        outcome = succeeds("threshold-sweep", "--task", "vqa", "--thresholds", "0.1", cwd=trained_workspace)
        assert "passed over: runs/finetune/odd/run.json" in outcome.err
    line = ["finetune", "--task", "vqa", "--data", "coco", "--out", "runs/finetune/odd"]
    fails(*line, cwd=trained_workspace, code=1, says="odd/run.json")


# ---- what tbkin writes is no data ---------------------------------------------------------------


def test_figures_do_not_become_images(trained_workspace: Path) -> None:
    data = trained_workspace / "coco"
    image = next(data.rglob("*.jpg")).relative_to(data)
    before = Layout(data).images
    asked = [
        "visualize",
        image,
        "what color is the circle?",
        "--checkpoint",
        "../runs/finetune/vqa-relative-0.3",
    ]
    succeeds(*asked, "--layer", "0", cwd=data)
    succeeds("visualize", "--from", "../runs/finetune/rec/results-val.json", cwd=data)
    assert len(list((data / "runs/visualize").glob("*.png"))) == 2
    for out in (".", image.parent, "new"):
        fails(*asked, "--out", out, cwd=data, code=2, says=(f"out: {out} lies in the dataset", "--out"))
    sheet = ["visualize", "--from", "../runs/finetune/rec/results-val.json", "--out", "sheets"]
    fails(*sheet, cwd=data, code=2, says="out: sheets lies in the dataset")
    # Pictures of no dataset that the checkpoint knows: figures beside them are known by their traces.
    photos = trained_workspace / "photos"
    photos.mkdir()
    for name in ("a.jpg", "a-b.jpg"):
        (photos / name).write_bytes((data / image).read_bytes())
    np.savez(photos / "a.npz", boxes=np.zeros((1, 4)))
    succeeds(*asked[:1], "a.jpg", *asked[2:], "--out", ".", "--format", "png", "--format", "svg", cwd=photos)
    succeeds(*asked[:1], "a.jpg", *asked[2:], "--out", ".", "--layer", "0", cwd=photos)
    assert len(list(photos.glob("*.png"))) == 2
    assert Layout(photos).images == ["a-b.jpg", "a.jpg"]
    assert Layout(data).images == before


def test_a_run_is_no_data_from_its_first_moment(tmp_path: Path) -> None:
    write_json(tmp_path / "begun/run.json", {"stage": "finetune", "status": "running"})
    write_json(tmp_path / "swept/sweep.json", {"identity": {}}, indent=None)
    write_json(tmp_path / "mine/run.json", {"name": "run in the park"})
    write_json(tmp_path / "mine/deep/sweep.json", ["identity"])
    for name in ("a.jpg", "begun/x.png", "swept/x.png", "mine/x.png", "mine/deep/x.png"):
        (tmp_path / name).write_text("")
    assert Layout(tmp_path).images == ["a.jpg", "mine/deep/x.png", "mine/x.png"]


def test_graphs_of_other_regions_are_refused(trained_workspace: Path) -> None:
    again = ["extract-features", "coco", "--workers", "0", "--overwrite"]
    with Image.open(next((trained_workspace / "coco").rglob("*.jpg"))) as picture:
        flipped = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        flipped.save(picture.filename)  # type: ignore[attr-defined]
    line = ["pretrain", "coco", "--epochs", "1", "--out", "again"]
    succeeds(*again, cwd=trained_workspace)
    fails(
        *line,
        cwd=trained_workspace,
        code=1,
        says=("coco/graphs: was built over other regions", "--overwrite"),
    )
    succeeds("build-graphs", "coco", "--overwrite", cwd=trained_workspace)
    succeeds(*line, cwd=trained_workspace)


def test_features_that_are_damaged_are_not_blamed_on_the_graphs(trained_workspace: Path) -> None:
    shard = trained_workspace / "coco/features/shard-00000.safetensors"
    arrays, _ = read_shard(shard)
    content = bytearray(shard.read_bytes())
    content[content.index(arrays["boxes"].tobytes()) + 5] ^= 1
    del arrays
    shard.write_bytes(content)
    line = ["pretrain", "coco", "--epochs", "1", "--out", "again"]
    says = "coco/features/shard-00000.safetensors: is not a whole shard"
    said = fails(*line, cwd=trained_workspace, code=1, says=says)
    assert "graphs" not in said


def test_the_name_of_a_dataset_leads_nowhere(trained_workspace: Path) -> None:
    before = files_below(trained_workspace)
    for name in ("../../x", "/x", "..", "n" * 300, "a/b", "nul\0"):
        line = ["finetune", "--task", "rec", "--data", "coco", "--dataset", name, "--epochs", "0"]
        fails(*line, cwd=trained_workspace, code=2, says="dataset: expected")
    assert files_below(trained_workspace) == before
    assert not list(trained_workspace.parent.glob("x*"))


# ---- ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "sweep"])
@pytest.mark.parametrize("there", ["nothing", "another", "the same"])
def test_ranks_that_follow_work_where_the_first_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, there: str
) -> None:
    out = tmp_path / "out"

    def opened_by(
        rank: int, seed: int, stack: contextlib.ExitStack, overwrite: bool = True
    ) -> tuple[Path, Path]:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        if kind == "run":
            config = FinetuneConfig(task="vqa", out=out, overwrite=overwrite, seed=seed)
            return open_run(config, "finetune", out, stack)[:2]
        sweep = ThresholdSweepConfig(task="vqa", thresholds="0.1", out=out, overwrite=overwrite)
        return _open_sweep(sweep, out, {"split": "val", "seed": seed}, {}, stack)[:2]

    if there != "nothing":
        with contextlib.ExitStack() as stack:
            opened_by(0, seed=0 if there == "the same" else 1, stack=stack, overwrite=False)
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        work = opened_by(0, 0, first)
        assert work == (out, out if there == "nothing" else replacement(out))
        assert opened_by(1, 0, second) == work
