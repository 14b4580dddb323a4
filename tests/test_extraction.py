"""A run of extract-features, shared, cut short, gone on with: it ends in the bytes of one undisturbed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import ENVIRONMENT, abandoned, fails, files_below, leftovers, succeeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_feature_tables import write_table

import tbkin_core.features.writing as store_module
from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features import extract
from tbkin_core.features.extract import Extraction, extract_dataset
from tbkin_core.features.store import FeatureStore
from tbkin_core.support import workers
from tbkin_core.support.shards import write_shard
from tbkin_core.support.workers import WorkerPool

SHARD = 3


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_IMAGES", SHARD)


def save_photo(path: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(path)


def photo_directory(root: Path) -> Path:
    """Eleven files: 8 pictures, and 3 that are none, of which one shard's all."""
    root.mkdir(parents=True)
    for number in range(1, 12):
        save_photo(root / f"photo_{number:02d}.png", number)
    for number in (2, 8, 11):
        (root / f"photo_{number:02d}.png").write_text("no picture")
    return root


def table_directory(root: Path) -> Path:
    """Eight rows, of which one is cut short and two are of one image, and a file with some of the same."""
    write_table(root / "a.tsv", "bottom-up", [7, 3, 9], "5\t20\t20\t1\tAAAA\tAAAA")
    write_table(root / "b.tsv", "bottom-up", [3, 12, 1, 2, 12, 8])
    return root


SOURCES: dict[str, Callable[[Path], Path]] = {"photos": photo_directory, "tables": table_directory}


def run(root: Path, out: Path, **settings: Any) -> Extraction:
    dataset = open_dataset(root)
    extractor = "import" if dataset.feature_tables() else "builtin"
    return extract_dataset(dataset, out, **{"extractor": extractor, "workers": 0, **settings})


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int, slurm: bool = False) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    if world:
        monkeypatch.setenv("SLURM_PROCID" if slurm else "RANK", str(rank))
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS" if slurm else "WORLD_SIZE", str(world))


@contextlib.contextmanager
def stopped_after(count: int, error: type[BaseException]) -> Iterator[None]:
    """The next image but `count` ends the run, as Ctrl-C or a fault does."""
    left = iter(range(count))

    def stopping(work: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any) -> Any:
            if next(left, None) is None:
                raise error
            return work(*arguments)

        return stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "_extract_or_reason", stopping(extract._extract_or_reason))
        yield


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(("world", "order", "slurm"), [(2, (0, 1), False), (3, (2, 0, 1), True)])
def test_ranks_make_the_store_of_one_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    world: int,
    order: tuple[int, ...],
    slurm: bool,
) -> None:
    root = SOURCES[kind](tmp_path / "data")
    whole = run(root, tmp_path / "whole")
    made = 0
    for rank in order:
        as_rank(monkeypatch, rank, world, slurm)
        part = run(root, tmp_path / "shared")
        made += part.made
        assert (part.missing > 0) == (rank != order[-1])
    assert made == whole.made == len(whole.store)
    assert files_below(tmp_path / "shared") == files_below(tmp_path / "whole")
    # One that starts late, or again, finds nothing to do.
    for rank in range(world):
        as_rank(monkeypatch, rank, world, slurm)
        assert run(root, tmp_path / "shared").made == 0
    assert files_below(tmp_path / "shared") == files_below(tmp_path / "whole")
    with pytest.raises(ConfigError, match="share this run"):
        run(root, tmp_path / "shared", overwrite=True)


@pytest.mark.parametrize("kind", SOURCES)
def test_what_a_dead_rank_left_out_another_run_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root = SOURCES[kind](tmp_path / "data")
    run(root, tmp_path / "whole")
    as_rank(monkeypatch, 1, 2)
    run(root, tmp_path / "shared")
    for name in (abandoned("shard-00000", ".safetensors"), abandoned("store", ".json")):
        (tmp_path / "shared" / name).write_bytes(b"half")
    as_rank(monkeypatch, 0, 0)
    run(root, tmp_path / "shared")
    assert files_below(tmp_path / "shared") == files_below(tmp_path / "whole")


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_cut_short_ends_in_the_same_bytes(
    tmp_path: Path, kind: str, error: type[BaseException]
) -> None:
    root = SOURCES[kind](tmp_path / "data")
    whole = run(root, tmp_path / "whole")
    for count in (1, SHARD, SHARD + 1):  # each time what is left is begun anew
        with stopped_after(count, error), pytest.raises(error):
            run(root, tmp_path / "cut")
    rest = run(root, tmp_path / "cut")
    assert rest.made + rest.present == whole.made
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")
    assert FeatureStore(tmp_path / "cut").complete


def test_an_unfinished_store_can_be_read(tmp_path: Path) -> None:
    root = photo_directory(tmp_path / "data")
    with stopped_after(SHARD + 1, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out")
    store = FeatureStore(tmp_path / "out")
    assert not store.complete and store.image_ids == [1, 3, 4]


def test_a_store_takes_images_that_came_later(tmp_path: Path) -> None:
    root = photo_directory(tmp_path / "data")
    first = run(root, tmp_path / "out")
    assert (first.made, len(first.problems)) == (8, 3)
    before = files_below(tmp_path / "out")
    again = run(root, tmp_path / "out")
    assert (again.made, again.present, again.problems) == (0, 8, first.problems)
    assert files_below(tmp_path / "out") == before, "a run without work changes nothing"
    save_photo(root / "photo_08.png", 8)  # mended
    save_photo(root / "photo_00.png", 0)  # new, and the first by name
    later = run(root, tmp_path / "out")
    assert (later.made, later.present, len(later.problems)) == (2, 8, 2)
    after = files_below(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} == {"store.json"}
    assert len(after) == len(before) + 2
    assert FeatureStore(tmp_path / "out").image_ids == [1, 3, 4, 5, 6, 7, 9, 10, 0, 8]
    assert run(root, tmp_path / "out").made == 0


def test_ranks_add_new_and_mended_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mended goes behind the new shards, the last of which, partly filled, is another rank's."""
    root = tmp_path / "data"
    root.mkdir()
    save_photo(root / "photo_01.png", 1)
    (root / "photo_02.png").write_text("no picture")
    save_photo(root / "photo_03.png", 3)
    run(root, tmp_path / "out")
    for number in (2, *range(4, 12)):
        save_photo(root / f"photo_{number:02d}.png", number)
    for rank in (0, 1):
        as_rank(monkeypatch, rank, 2)
        run(root, tmp_path / "out")
    assert FeatureStore(tmp_path / "out").image_ids == [1, 3, *range(4, 12), 2]
    assert len(list((tmp_path / "out").glob("shard-*"))) == 5


def test_a_damaged_shard_is_made_again_as_it_was(tmp_path: Path) -> None:
    root = photo_directory(tmp_path / "data")
    run(root, tmp_path / "out")
    before = files_below(tmp_path / "out")
    for number, damage in ((0, b""), (2, before["shard-00002.safetensors"][:-7])):
        (tmp_path / "out" / f"shard-{number:05d}.safetensors").write_bytes(damage)
    (tmp_path / "out" / "store.json").unlink()
    result = run(root, tmp_path / "out")
    assert (result.made, result.present) == (4, 4)
    assert files_below(tmp_path / "out") == before


def test_shards_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    root = photo_directory(tmp_path / "data")
    run(root, tmp_path / "out", max_regions=4)
    (tmp_path / "out" / "store.json").unlink()
    before = files_below(tmp_path / "out")
    with pytest.raises(DataError, match=r"other settings, whose store\.json is missing"):
        run(root, tmp_path / "out", max_regions=7)
    assert files_below(tmp_path / "out") == before
    assert run(root, tmp_path / "out", max_regions=7, overwrite=True).made == 8
    run(root, tmp_path / "new", max_regions=7)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "new")
    # Those of the same settings count, listed or not.
    (tmp_path / "out" / "store.json").unlink()
    assert run(root, tmp_path / "out", max_regions=7).made == 0
    assert files_below(tmp_path / "out") == files_below(tmp_path / "new")


@pytest.mark.parametrize("manifest", ["gone", "damaged"])
def test_graphs_are_never_taken_for_features(tmp_path: Path, manifest: str) -> None:
    root = photo_directory(tmp_path / "data")
    write_shard(tmp_path / "out" / "shard-00000.safetensors", {"text": np.zeros(1)}, {"text_ids": [1]})
    if manifest == "damaged":
        (tmp_path / "out" / "store.json").write_text("{")
    before = files_below(tmp_path / "out")
    for overwrite in (False, True):
        with pytest.raises(DataError):
            run(root, tmp_path / "out", overwrite=overwrite)
        assert files_below(tmp_path / "out") == before


def test_another_file_under_an_id_that_is_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    picture.save(tmp_path / "data" / "dog.png")
    assert run(tmp_path / "data", tmp_path / "out").problems == []
    assert run(tmp_path / "data", tmp_path / "out").problems == []
    (tmp_path / "data" / "dog.png").unlink()
    picture.resize((30, 30)).save(tmp_path / "data" / "dog.jpg")
    result = run(tmp_path / "data", tmp_path / "out")
    assert (result.made, result.present) == (0, 1)
    assert [part in result.problems[0] for part in ("'dog'", "dog.png", "dog.jpg", "--overwrite")] == [
        True
    ] * 4
    assert run(tmp_path / "data", tmp_path / "out", overwrite=True).problems == []
    assert run(tmp_path / "data", tmp_path / "out").store["dog"].image_width == 30


def test_what_overwriting_replaces_comes_back_where_nothing_could_be_made(tmp_path: Path) -> None:
    root = photo_directory(tmp_path / "data")
    run(root, tmp_path / "out")
    before = files_below(tmp_path / "out")
    for image in root.rglob("*.png"):
        image.write_bytes(b"no picture")
    for image in root.rglob("*.jpg"):
        image.write_bytes(b"no picture")
    with pytest.raises(DataError, match="could be read"):
        run(root, tmp_path / "out", overwrite=True)
    assert files_below(tmp_path / "out") == before


def test_a_store_of_failures_alone_goes_without_what_is_not_its_own(tmp_path: Path) -> None:
    root, out = photo_directory(tmp_path / "data"), tmp_path / "out"
    run(root, out)
    shards = sorted(out.glob("shard-*"))
    mine = out / "shard-00000-backup.safetensors"
    shards[0].rename(mine)
    for gone in shards[1:]:
        gone.unlink()
    for image in root.iterdir():
        image.write_bytes(b"no picture")
    before = mine.read_bytes()
    with pytest.raises(DataError, match="could be read"):
        run(root, out)
    assert files_below(out) == {mine.name: before}


def test_workers_change_nothing(tmp_path: Path) -> None:
    root = photo_directory(tmp_path / "data")
    run(root, tmp_path / "one")
    run(root, tmp_path / "two", workers=2)
    assert files_below(tmp_path / "two") == files_below(tmp_path / "one")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_ends_in_the_same_images(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Ranks in any order, cut short anywhere, rows that come between: every image is there once."""
    place = tmp_path_factory.mktemp("history")
    numbers = list(range(1, data.draw(st.integers(2, 14))))
    shown = data.draw(st.integers(1, len(numbers)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for _ in range(data.draw(st.integers(0, 4))):
            write_table(place / "data" / "t.tsv", "bottom-up", numbers[:shown])
            world = data.draw(st.integers(1, 3))
            as_rank(monkeypatch, data.draw(st.integers(0, world - 1)), world)
            cut = stopped_after(data.draw(st.integers(0, 9)), KeyboardInterrupt)
            with cut, contextlib.suppress(KeyboardInterrupt, DataError):
                run(place / "data", place / "out")
            shown = data.draw(st.integers(shown, len(numbers)))
        as_rank(monkeypatch, 0, 0)
        write_table(place / "data" / "t.tsv", "bottom-up", numbers)
        run(place / "data", place / "out")
    store = FeatureStore(place / "out")
    assert store.complete and sorted(store.image_ids, key=int) == numbers
    assert len(set(store.image_ids)) == len(store)
    whole = run(place / "data", place / "whole").store
    for number in numbers:
        np.testing.assert_array_equal(store[number].features, whole[number].features)
    assert leftovers(place) == []


# ---- processes ----------------------------------------------------------------------------------


def slower_when_even(offset: int, number: int) -> int:
    time.sleep(0.05 * (number % 2 == 0))
    return offset + number


def test_a_pool_answers_in_the_order_of_its_jobs_and_reads_few_ahead() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            read.append(number)
            yield number

    for count, most in ((0, 1), (2, 6)):
        read.clear()
        with WorkerPool(partial(int, 100), count, "extract-features") as pool:
            assert pool.ask(str) == "100"
            for place, (job, result) in enumerate(pool.map(slower_when_even, numbers(), ahead=3)):
                assert (job, result) == (place, 100 + place)
                assert len(read) <= place + most
        assert len(read) == 20


def send_half(connection: Any, message: bytes, *_: Any) -> None:
    os.write(connection.fileno(), bytes(message[: len(message) // 2]))
    os.kill(os.getpid(), signal.SIGKILL)


def deadly_when_odd(offset: int, number: int) -> int:
    if number % 2:
        multiprocessing.connection.Connection._send = send_half  # type: ignore[attr-defined]
    return offset + number


def refused(offset: int, number: int) -> int:
    raise ValueError(f"no {number}")


def test_a_worker_that_dies_in_the_middle_of_a_message_is_an_error_and_not_waited_for() -> None:
    began = time.monotonic()
    with (
        pytest.raises(DataError, match="ended unexpectedly"),
        WorkerPool(partial(int, 100), 2, "extract-features") as pool,
    ):
        list(pool.map(deadly_when_odd, range(4), ahead=2))
    assert time.monotonic() - began < 20
    assert multiprocessing.active_children() == []


def test_an_error_in_a_worker_is_raised_with_its_traceback() -> None:
    with (
        pytest.raises(ValueError, match="no 0") as raised,
        WorkerPool(partial(int, 100), 2, "extract-features") as pool,
    ):
        list(pool.map(refused, range(4), ahead=2))
    assert "in refused" in raised.value.__notes__[0]


class PeculiarError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def peculiar(offset: int, number: int) -> Any:
    if number == 0:
        raise PeculiarError(1, 2)
    return lambda: number


@pytest.mark.parametrize(("number", "said"), [(0, "PeculiarError: 1 and 2"), (1, "pickle")])
def test_what_cannot_be_sent_is_told_in_words(number: int, said: str) -> None:
    with (
        pytest.raises(RuntimeError, match=said),
        WorkerPool(partial(int, 100), 2, "extract-features") as pool,
    ):
        list(pool.map(peculiar, [number], ahead=2))


def sleepy(offset: int, number: int) -> int:
    if number == 0:
        raise ValueError("none")
    time.sleep(60)
    return number


def test_after_an_error_nobody_waits_long_for_the_other_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.5)
    began = time.monotonic()
    with (
        pytest.raises(ValueError, match="none"),
        WorkerPool(partial(int, 100), 2, "extract-features") as pool,
    ):
        list(pool.map(sleepy, range(4), ahead=2))
    assert time.monotonic() - began < 30


def children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left(processes: list[int], seconds: float = 10) -> list[int]:
    """Those that are there after some seconds; they are ended."""
    until = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    found = [pid for pid in processes if alive(pid)]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_run_leaves_no_process_behind(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for number in range(300):
        save_photo(root / f"{number}.png", number)
    code = (
        "import tbkin_core.features.writing as s; s.SHARD_IMAGES = 4; from tbkin_cli.main import app; app()"
    )
    line = ["extract-features", "data", "--extractor", "builtin", "--workers", "2", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *line], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not (tmp_path / "out" / "shard-00001.safetensors").exists() and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.01)
    workers = list(children(process.pid))
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not left(workers, seconds=15)


# ---- the command --------------------------------------------------------------------------------


def test_ranks_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prints its share, the one that ends last the whole, whichever it is."""
    photo_directory(tmp_path / "data")
    line = ("extract-features", "data", "--workers", "0", "--json")
    as_rank(monkeypatch, 0, 2)
    values = json.loads(succeeds(*line, cwd=tmp_path).out)
    assert (values["made"], values["skipped"], values["missing"]) == (4, 2, 2)
    assert any("shards of other ranks are missing" in problem for problem in values["problems"])
    as_rank(monkeypatch, 1, 2)
    values = json.loads(succeeds(*line, cwd=tmp_path).out)
    assert (values["images"], values["made"], values["skipped"]) == (8, 4, 1)
    assert any("photo_11.png" in problem for problem in values["problems"])
    as_rank(monkeypatch, 0, 2)
    values = json.loads(succeeds(*line, cwd=tmp_path).out)
    assert (values["images"], values["made"], values["skipped"]) == (8, 0, 3)
    as_rank(monkeypatch, 2, 2)
    fails(*line, cwd=tmp_path, code=2, says="RANK=2")


def test_the_rank_that_ends_last_prints_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo_directory(tmp_path / "data")
    for rank, title in ((0, "Share of the features"), (1, "Features")):
        as_rank(monkeypatch, rank, 2)
        outcome = succeeds("extract-features", "data", "--workers", "0", cwd=tmp_path)
        assert outcome.out.startswith(f"{title} in data/features")


def test_links_to_nowhere_and_directories_are_counted_and_named(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "dir.jpg").mkdir(parents=True)
    save_photo(root / "good.png", 1)
    (root / "gone.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    os.mkfifo(root / "pipe.png")
    outcome = succeeds("extract-features", "data", "--workers", "0", "--json", cwd=tmp_path)
    values = json.loads(outcome.out)
    assert (values["images"], values["skipped"]) == (1, 3)
    for name in ("dir.jpg", "gone.jpg", "pipe.png"):
        assert any(name in problem for problem in values["problems"])


@pytest.mark.parametrize("extractor", ["builtin", "annotations"])
def test_pictures_that_a_tag_turns_are_named_where_boxes_were_drawn_on_them(
    tmp_path: Path, extractor: str
) -> None:
    """Upside down the sides agree, so that nothing else tells whether the boxes know of it."""
    tag = Image.Exif()
    tag[0x0112] = 3
    for number in (1, 2):
        picture = Image.new("RGB", (64, 48), "white")
        picture.paste("red", (4, 4, 28, 28))
        picture.save(tmp_path / f"{number:012}.jpg", exif=tag if number == 2 else Image.Exif())
    if extractor == "builtin":
        alone = extract_dataset(open_dataset(tmp_path), tmp_path / "alone", workers=0)
        assert alone.problems == []
    listed = [{"id": n, "file_name": f"{n:012}.jpg", "width": 64, "height": 48} for n in (1, 2)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [4, 4, 24, 24]} for n in (1, 2)]
    content = {"images": listed, "annotations": boxes, "categories": [{"id": 1, "name": "box"}]}
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    result = extract_dataset(open_dataset(tmp_path), tmp_path / "store", extractor, workers=0)
    (note,) = result.problems
    assert note.startswith("1 pictures, such as 000000000002.jpg, are turned by their EXIF tag")
