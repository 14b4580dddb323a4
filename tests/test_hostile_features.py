"""Features and pictures from elsewhere, and stores that rot: refused or left out by name."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import ENVIRONMENT, REPOSITORY, fails, files_below
from numpy.typing import NDArray
from PIL import Image

from tbkin_core.datasets import open_dataset
from tbkin_core.datasets.arrays import read_npy
from tbkin_core.datasets.unpickle import load_plain_pickle, loads_object_npy
from tbkin_core.errors import DataError
from tbkin_core.features import pictures, verification
from tbkin_core.features.extract import Extraction, extract_dataset
from tbkin_core.features.pictures import load_image
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.writing import FeatureStoreWriter, write_feature_store
from tbkin_core.graphs.store import GraphStore
from tbkin_core.modeling.checkpoint import load_tensors
from tbkin_core.support.files import write_json
from tbkin_core.support.shards import MANIFEST, read_shard, write_shard

SIZE, WIDTH, HEIGHT, COUNT = 16, 640, 480, 5
SETTINGS = {"extractor": "drawn", "feature_size": SIZE, "object_names": ["dog"], "attribute_names": []}
BOXES = np.array([[10 * k, 20, 10 * k + 50, 90] for k in range(COUNT)], np.float32)
VECTORS = np.arange(COUNT * SIZE, dtype=np.float32).reshape(COUNT, SIZE)


# ---- a store that rots ----------------------------------------------------------------------------


def regions_of(number: int, **changes: Any) -> RegionFeatures:
    content = {"features": VECTORS + number, "boxes": BOXES, "image_width": WIDTH, "image_height": HEIGHT}
    return RegionFeatures(number, **{**content, **changes})


def rotten(store: Path, name: str = "shard-00000.safetensors") -> Path:
    """Flip a bit of the last vector."""
    shard = store / name
    arrays, _ = read_shard(shard)
    start = shard.read_bytes().index(arrays["features"][-1].tobytes())
    content = bytearray(shard.read_bytes())
    content[start + 1] ^= 1
    shard.write_bytes(content)
    return shard


@pytest.mark.parametrize(
    "command",
    [
        "pretrain coco --epochs 1 --devices cpu --out new",
        "finetune --task vqa --data coco --epochs 1 --devices cpu --out new",
        "finetune --task rec --data coco --epochs 0 --devices cpu --out new",
        "threshold-sweep --task vqa --devices cpu --thresholds 0,0.3 --out new",
        "build-graphs coco --overwrite",
        "visualize --image-id 1 what --checkpoint runs/finetune/vqa-relative-0.3 --out new",
    ],
)
def test_no_command_answers_from_a_damaged_shard_or_saves_what_came_of_it(
    trained_workspace: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where comparing takes longer than the work does."""
    compare = verification._compare

    def late(path: Path) -> None:
        time.sleep(1)
        compare(path)

    monkeypatch.setattr(verification, "_compare", late)
    images = json.loads((trained_workspace / "coco/annotations/captions_val.json").read_text())["images"]
    rotten(trained_workspace / "coco/features")
    before = files_below(trained_workspace)
    arguments = command.replace("--image-id 1", f"--image-id {images[0]['id']}").split()
    message = fails(*arguments, cwd=trained_workspace, code=1, says="shard-00000.safetensors")
    assert "remove this file" in message
    kept = {name for name in files_below(trained_workspace).items() - before.items() if ".safe" in name[0]}
    assert not kept  # no weights, no graphs
    left = files_below(trained_workspace / "new") if (trained_workspace / "new").exists() else {}
    assert not any(name.endswith((".png", ".safetensors", ".pt")) for name in left)


def test_damage_shows_when_a_shard_is_first_read_and_no_other_shard_is_read_for_it(tmp_path: Path) -> None:
    with FeatureStoreWriter(tmp_path, SETTINGS, shard_images=2) as writer:
        for number in range(6):
            writer.add(regions_of(number))
    rotten(tmp_path, "shard-00001.safetensors")
    store = FeatureStore(tmp_path)
    assert store[0].features[0, 1] == 1
    store.gather([0, 1, 4, 5])
    store.settle()
    with pytest.raises(DataError, match="shard-00001"):
        store.gather([2])
        store.settle()
    for read in (lambda: store.gather([0]), lambda: store[0], store.settle):
        with pytest.raises(DataError, match="shard-00001"):
            read()
    verification.settle_stores()  # it has been said
    other = FeatureStore(tmp_path)
    other.gather([3])
    with pytest.raises(DataError, match="shard-00001"):
        verification.settle_stores()
    with pytest.raises(DataError, match="shard-00001"):
        FeatureStore(tmp_path, verify=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"object_ids": [0, 1, -1, 0, 0]}, "object_ids holds 1, expected -1 to 0"),
        ({"object_ids": [0, -2, -1, 0, 0]}, "object_ids holds -2"),
        ({"attribute_ids": [400, 0, 0, 0, 0]}, "attribute_ids holds 400, expected -1 to 399"),
        ({"object_scores": [0, np.nan, 0, 0, 0]}, "object_scores are finite"),
        ({"boxes": np.full_like(BOXES, np.inf)}, "boxes are finite"),
        ({"features": np.where(VECTORS == 9, np.inf, VECTORS)}, "features are finite"),
        ({"features": np.where(VECTORS == 9, -np.inf, VECTORS)}, "features are finite"),
        ({"features": np.where(VECTORS == 9, np.nan, VECTORS)}, "features are finite"),
        ({"image_sizes": [[0, 9]]}, "width and a height"),
    ],
)
def test_what_early_stores_hold_is_read_unless_it_would_spoil_a_model(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    """Of before there were checksums; without them content is looked at all the same."""
    write_feature_store(tmp_path, SETTINGS, [regions_of(1)])
    arrays, metadata = read_shard(tmp_path / "shard-00000.safetensors")
    held = {name: np.array(array) for name, array in arrays.items()}
    for name, own in [("", None), *changes.items()]:
        if name:
            held[name] = np.array(own).astype(held[name].dtype)
        write_shard(tmp_path / "shard-00000.safetensors", held, metadata)
        shard = tmp_path / "shard-00000.safetensors"
        content = shard.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        inner = json.loads(header["__metadata__"]["metadata"])
        del inner["checksum"]
        header["__metadata__"]["metadata"] = json.dumps(inner)
        packed = json.dumps(header).encode()
        shard.write_bytes(struct.pack("<Q", len(packed)) + packed + content[8 + length :])
        store = FeatureStore(tmp_path)
        if not name:
            assert len(store[1]) == COUNT and store.gather([0]).mask.all()
            store.settle()
            continue
        with pytest.raises(DataError, match=says) as caught:
            store.gather([0])
            store.settle()
        assert str(shard) in caught.value.message and "extract-features" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"object_scores": np.full(COUNT, np.nan, np.float32)},
        {"features": np.full_like(VECTORS, np.inf)},
        {"image_width": 2**40},
        {"image_height": 0},
        {"object_ids": np.zeros((COUNT, 1), np.int32)},
    ],
)
def test_nothing_is_written_that_would_be_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with FeatureStoreWriter(tmp_path, SETTINGS) as writer:
        with pytest.raises(DataError, match="image 1"):
            writer.add(regions_of(1, **changes))
        writer.add(regions_of(2))
    assert FeatureStore(tmp_path, verify=True).image_ids == [2]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("object_name", lambda it: it + 10_000),
        ("object_offsets", lambda it: it[::-1].copy()),
        ("token_offsets", lambda it: it * 2),
        ("cross_region", lambda it: it - 9),
        ("relation_object", lambda it: it + 99),
        ("attribute_tokens", lambda it: it + 999),
        ("image", lambda it: it + 10_000),
        ("region_boxes", lambda it: it * np.nan),
        ("region_label", lambda it: it.astype(np.int64)),
        ("object_span", lambda it: it[:, :1]),
    ],
)
def test_graphs_that_do_not_fit_themselves_are_refused_as_they_are_opened(
    trained: Path, tmp_path: Path, name: str, change: Callable[[NDArray], NDArray]
) -> None:
    graphs = Path(shutil.copytree(trained / "coco/graphs", tmp_path / "graphs"))
    shard = graphs / "shard-00000.safetensors"
    arrays, metadata = read_shard(shard)
    assert len(GraphStore(graphs)) and len(arrays[name])
    write_shard(shard, {**arrays, name: change(np.array(arrays[name]))}, metadata)
    with pytest.raises(DataError, match="no shard of graphs") as caught:
        GraphStore(graphs)
    assert str(shard) in caught.value.message and "build-graphs" in (caught.value.hint or "")


def test_priors_that_are_not_what_was_counted_are_refused(trained: Path, tmp_path: Path) -> None:
    graphs = Path(shutil.copytree(trained / "coco/graphs", tmp_path / "graphs"))
    assert GraphStore(graphs).priors().objects
    (graphs / "priors.json").write_text('{"objects": {"dog": 3}, "attributes": [], "relations": []}')
    with pytest.raises(DataError, match=r"priors\.json: is not what was written"):
        GraphStore(graphs).priors()


# ---- features of other programs -------------------------------------------------------------------


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    content = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, content)
    return stream.getvalue()


def write_npz(path: Path, **changes: bytes | Any) -> Path:
    """A file of bottom-up attention; bytes are whole members."""
    path.parent.mkdir(exist_ok=True)
    content = {"x": VECTORS, "bbox": BOXES, "image_h": HEIGHT, "image_w": WIDTH, **changes}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in content.items():
            archive.writestr(f"{name}.npy", value if isinstance(value, bytes) else npy(value))
    return path


def imported(data: Path) -> Extraction:
    return extract_dataset(open_dataset(data), data.parent / f"{data.name}-store", workers=0)


def shared_lists(depth: int) -> list[Any]:
    """A hundred bytes of pickle that stand for ten to the power of `depth` numbers."""
    value: list[Any] = [1.0] * 10
    for _ in range(depth - 1):
        value = [value] * 10
    return value


BAD_NPZ: dict[str, dict[str, Any]] = {
    "declares more than it holds": {"x": header((COUNT, 10**10)) + b"\0" * 64},
    "declares less than it holds": {"x": header((COUNT, SIZE - 1)) + VECTORS.tobytes()},
    "has sides below zero": {"x": header((-COUNT, -SIZE)) + VECTORS.tobytes()},
    "is no array": {"x": b"nothing of the kind"},
    "holds a structure": {"x": np.zeros((COUNT, SIZE), [("a", "f4")])},
    "holds objects": {"x": np.full((COUNT, SIZE), None)},
    "holds complex numbers": {"x": VECTORS.astype(complex)},
    "holds texts": {"x": VECTORS.astype(str)},
    "is infinite": {"x": np.full_like(VECTORS, np.inf)},
    "is no number": {"x": np.full_like(VECTORS, np.nan)},
    "is of half precision and too large": {"x": np.full(VECTORS.shape, np.inf, np.float16)},
    "has other vectors": {"x": np.zeros((COUNT, SIZE + 1), np.float32)},
    "is of no size": {"image_w": np.float64(np.nan)},
    "is of endless size": {"image_w": 2**40},
    "is of two sizes": {"image_w": [640, 640]},
    "has numbers that a few lists stand for": {"info": np.array({"objects_id": shared_lists(9)}, object)},
    "has boxes of nothing": {"bbox": BOXES * np.nan},
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_each_file_that_is_damaged_costs_itself_and_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    good = write_npz(data / "good.npz")
    for name, changes in BAD_NPZ.items():
        write_npz(data / f"{name}.npz", **changes)
    (data / "is cut short.npz").write_bytes(good.read_bytes()[:-30])
    content = bytearray(good.read_bytes())
    content[120] ^= 255
    (data / "has a wrong byte.npz").write_bytes(content)
    dataset = open_dataset(data)
    result = extract_dataset(dataset, tmp_path / "store", workers=0)
    problems = [*result.problems, *dataset.problems]
    assert result.store.image_ids == ["good"]
    for name in (*BAD_NPZ, "has a wrong byte"):
        assert any(f"{name}.npz" in problem or f"as {name}:" in problem for problem in problems), name
    assert any("is cut short.npz cannot be read" in problem for problem in problems)


def test_a_small_archive_of_a_large_array_is_not_unpacked(tmp_path: Path) -> None:
    zeros = bytes(1 << 20)
    write_npz(tmp_path / "data" / "good.npz")
    with zipfile.ZipFile(tmp_path / "data" / "large.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in {"bbox": BOXES, "image_h": HEIGHT, "image_w": WIDTH}.items():
            archive.writestr(f"{name}.npy", npy(value))
        with archive.open("x.npy", "w") as member:
            member.write(header((COUNT, 7 << 20)))
            for _ in range(140):
                member.write(zeros)
    result = imported(tmp_path / "data")
    (problem,) = result.problems
    assert "large.npz" in problem and "at most" in problem and result.store.image_ids == ["good"]


def test_numbers_that_are_none_count_as_unknown_and_are_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    scores = np.full(COUNT, 0.5, np.float32)
    for number in range(201):
        write_npz(data / f"{number:03}.npz", objects_id=np.full(COUNT, 300), objects_conf=scores)
    write_npz(
        data / "201.npz",
        x=VECTORS * 1e4,
        objects_id=np.array([300, np.nan, 2.5, 1e20, -7]),
        objects_conf=np.array([1.0000001, np.nan, -1, 7, np.inf]),
    )
    write_npz(data / "202.npz", objects_id=np.array([300, 2**40 + 4, 1600, -1, 2**31]), objects_conf=scores)
    result = imported(data)
    assert (
        result.store[201].object_ids.tolist()
        == result.store[202].object_ids.tolist()
        == [300, -1, -1, -1, -1]
    )
    assert result.store[201].object_scores.tolist() == [1, 0, 0, 0, 0]
    names, unsure, large = sorted(result.problems, key=lambda it: ("confid" in it) + 2 * ("half" in it))
    assert names.startswith("2 images, such as 201") and "beyond the 1600 objects" in names
    assert unsure.startswith("1 images, such as 201") and "confidences" in unsure
    assert large.startswith("1 images, such as 201") and "65,504" in large
    assert all(str(data) in problem for problem in result.problems)


def test_where_all_files_are_damaged_one_error_says_so(tmp_path: Path) -> None:
    for number in range(3):
        write_npz(tmp_path / "data" / f"{number}.npz", x=header((COUNT, 10**9)))
    message = fails("extract-features", "data", cwd=tmp_path, code=1, says=("data/0.npz", "declares shape"))
    assert "the others are kept" in message


def packed(values: NDArray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def write_table(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    usual = {"w": WIDTH, "h": HEIGHT, "count": COUNT, "boxes": packed(BOXES), "features": packed(VECTORS)}
    lines = ("\t".join(map(str, [number, *{**usual, **row}.values()])) for number, row in enumerate(rows))
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_each_row_that_is_damaged_costs_itself_and_is_named(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"features": packed(VECTORS)[:-6]},
        {"features": packed(VECTORS)[:-7]},
        {"features": packed(np.full_like(VECTORS, np.inf))},
        {"w": "1e300"},
        {"w": "1e400"},
        {"w": 2**31},
        {"h": "-3"},
        {"h": "nan"},
        {"count": 10**15},
        {"count": -1},
        {"boxes": packed(np.full_like(BOXES, np.nan))},
    ]
    write_table(tmp_path / "data" / "t.tsv", {}, *bad)
    result = imported(tmp_path / "data")
    assert result.store.image_ids == [0] and result.skipped == len(bad)
    assert all(f"t.tsv: line {number + 2} " in it for number, it in enumerate(result.problems))
    assert max(map(len, result.problems)) < 400


def test_json_of_any_depth_beside_a_table_costs_its_row(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [f"{number}\t{COUNT}\t{packed(VECTORS)}\n" for number in (1, 2)]
    (data / "features.tsv").write_text("".join(rows) + "3\t" + "[" * 100_000 + "\n")
    labels = [{"class": "dog", "conf": 0.5, "rect": box.tolist()} for box in BOXES]
    (data / "labels.tsv").write_text(f"1\t{json.dumps(labels)}\n2\t" + "[" * 100_000 + "\n")
    result = imported(data)
    assert result.store.image_ids == [1]
    assert [
        f"features.tsv: line {number} " in it for number, it in zip((2, 3), result.problems, strict=False)
    ]


def test_a_table_whose_boxes_are_of_no_form_costs_itself_alone(tmp_path: Path) -> None:
    backwards = BOXES[:, [2, 3, 0, 1]] + np.array([550, 0, 500, 0], np.float32)
    write_table(tmp_path / "data" / "a.tsv", *[{"boxes": packed(backwards)}] * 4)
    write_npz(tmp_path / "data" / "9.npz")
    result = imported(tmp_path / "data")
    assert result.store.image_ids == [9]
    (problem,) = result.problems
    assert "a.tsv" in problem and "end before they begin" in problem and "imported" in problem


def test_pairs_of_files_are_checked_before_they_are_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    info = {"bbox": BOXES, "image_width": WIDTH, "image_height": HEIGHT, "num_boxes": COUNT}
    sets = header((), "|O") + b"\x80\x04(" + b"\x8f" * 3_000_000 + b"t."
    pairs: dict[str, tuple[bytes, bytes]] = {
        "good": (npy(VECTORS), npy(np.array(info, object))),
        "declares": (header((10**10, SIZE)), npy(np.array(info, object))),
        "structure": (npy(np.zeros((COUNT, SIZE), [("a", "f4")])), npy(np.array(info, object))),
        "lists": (npy(VECTORS), npy(np.array({**info, "bbox": shared_lists(9)}, object))),
        "sets": (npy(VECTORS), sets),
        "sizes": (npy(VECTORS), npy(np.array({**info, "image_width": 1e400}, object))),
    }
    for name, (vectors, beside) in pairs.items():
        (data / f"{name}.npy").write_bytes(vectors)
        (data / f"{name}_info.npy").write_bytes(beside)
    dataset = open_dataset(data)
    result = extract_dataset(dataset, tmp_path / "store", workers=0)
    assert result.store.image_ids == ["good"]
    for name in pairs.keys() - {"good"}:
        assert any(f"{name}" in problem for problem in [*result.problems, *dataset.problems]), name


def test_a_pickle_may_not_stand_for_much_more_than_it_is() -> None:
    refs = pickle.dumps([{"ref_id": number, "split": "train"} for number in range(10_000)], 2)
    assert len(loads_object_npy(header((), "|O") + refs, "refs")) == 10_000
    with pytest.raises(DataError, match="stands for more than"):
        loads_object_npy(header((), "|O") + b"\x80\x04(" + b"\x8f" * 2_000_000 + b"t.", "sets")


# ---- HDF5 -----------------------------------------------------------------------------------------


def hdf5(path: Path, make: Callable[[Any], Any] = lambda file: None, **without: bool) -> Path:
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(exist_ok=True)
    usual = {
        "image_features": np.stack([VECTORS] * 3),
        "image_bb": np.stack([BOXES] * 3),
        "image_ids": [1, 2, 3],
    }
    with h5py.File(path, "w") as file:
        for name, value in usual.items():
            if not without.get(name):
                file[name] = value
        make(file)
    return path


def _virtual(file: Any) -> None:
    import h5py

    layout = h5py.VirtualLayout((3, COUNT, SIZE), "f4")
    layout[:] = h5py.VirtualSource("other", "x", (3, COUNT, SIZE))
    file.create_virtual_dataset("image_features", layout)


def _circle(file: Any) -> None:
    import h5py

    file["image_features"], file["a"] = h5py.SoftLink("/a"), h5py.SoftLink("/image_features")


def _outward(file: Any) -> None:
    import h5py

    file["image_features"] = h5py.ExternalLink("other", "x")


def _outward_by_a_link(file: Any) -> None:
    import h5py

    file["image_features"], file["a"] = h5py.SoftLink("/a"), h5py.ExternalLink("other", "x")


def _external(file: Any) -> None:
    at = [(str(Path(file.filename).parent / "secret.bin"), 0, 3 * COUNT * SIZE * 4)]
    file.create_dataset("image_features", (3, COUNT, SIZE), "f4", external=at)


BAD_HDF5: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "external storage": ("image_features", _external, "from other files"),
    "a virtual dataset": ("image_features", _virtual, "from other files"),
    "an external link": ("image_features", _outward, "leads to another file"),
    "a link to an external one": ("image_features", _outward_by_a_link, "leads to another file"),
    "links in a circle": ("image_features", _circle, "in a circle"),
    "itself": ("image_features", lambda file: file.__setitem__("image_features", file["/"]), "is a group"),
    "rows of nothing": (
        "image_features",
        lambda file: file.create_dataset(
            "image_features", (3, COUNT, 3 * 10**8), "f4", chunks=(1, COUNT, 999)
        ),
        "of which the file holds 0",
    ),
    "ids of nothing": (
        "image_ids",
        lambda file: file.create_dataset("ids", (3,), "S100000000"),
        "of which the file holds 0",
    ),
    "one chunk": (
        "image_features",
        lambda file: file.create_dataset(
            "image_features", (10**5, COUNT, 99), "f4", chunks=(10**5, COUNT, 99), compression="gzip"
        ),
        "in chunks of",
    ),
    "structures": (
        "image_features",
        lambda file: file.create_dataset("image_features", data=np.zeros((3, COUNT, SIZE), [("a", "f4")])),
        "expected numbers",
    ),
    "boxes of three numbers": (
        "image_bb",
        lambda file: file.create_dataset("image_bb", data=np.zeros((3, COUNT, 3), "f4")),
        "expected image_features",
    ),
    "long ids": (
        "image_ids",
        lambda file: file.create_dataset("image_ids", data=["a" * 2000] * 3, dtype="S2000"),
        "ids",
    ),
}


@pytest.mark.parametrize("what", BAD_HDF5)
def test_an_hdf5_file_that_leads_elsewhere_or_declares_what_it_has_not_is_refused(
    tmp_path: Path, what: str
) -> None:
    name, make, says = BAD_HDF5[what]
    data = tmp_path / "data"
    data.mkdir()
    (data / "secret.bin").write_bytes((VECTORS + 0.5).tobytes() * 3)
    h5py = pytest.importorskip("h5py")
    with h5py.File(data / "other", "w") as other:
        other["x"] = np.stack([VECTORS] * 3)
    hdf5(data / "t.h5", make, **{name: True})
    fails("extract-features", "data", cwd=tmp_path, code=1, says=("data/t.h5", says))
    write_npz(data / "good.npz")
    result = imported(data)
    assert result.store.image_ids == ["good"]
    (problem,) = result.problems
    assert "t.h5" in problem and says in problem and "the rest of the file is skipped" in problem


def test_a_damaged_chunk_costs_its_images_alone(tmp_path: Path) -> None:
    def chunked(file: Any) -> None:
        values = np.random.default_rng(0).random((3, COUNT, SIZE)).astype(np.float32)
        file.create_dataset("image_features", data=values, chunks=(1, COUNT, SIZE), compression="gzip")

    path = hdf5(tmp_path / "data" / "t.h5", chunked, image_features=True)
    import h5py

    with h5py.File(path) as file:
        place = file["image_features"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 9 : place + 39] = bytes(30)
    path.write_bytes(content)
    result = imported(tmp_path / "data")
    assert result.store.image_ids == [1, 3] and result.skipped == 1
    assert "t.h5: row 1 (image '2'): is damaged" in result.problems[0]


def test_a_chunk_is_not_unpacked_beyond_what_it_declares(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((3, COUNT, 8192)).astype(np.float32)

    def chunked(file: Any) -> None:
        made = file.create_dataset("image_features", data=values, chunks=(1, COUNT, 8192), compression="gzip")
        endless = zlib.compress(bytes(64 << 20), 9) + bytes(1 << 20)  # 400 times as much
        made.id.write_direct_chunk((1, 0, 0), endless)

    hdf5(tmp_path / "data" / "t.h5", chunked, image_features=True)
    result = imported(tmp_path / "data")
    assert result.store.image_ids == [1, 3] and "unpacks to more" in result.problems[0]
    np.testing.assert_allclose(result.store[3].features, values[2], atol=1e-3)


def test_ranges_of_rows_are_checked_one_by_one(tmp_path: Path) -> None:
    def joined(file: Any) -> None:
        file["image_features"], file["image_bb"] = VECTORS, BOXES
        file["pos_boxes"] = np.array([[0, 2], [-1, 3], [3, 10**12], [2, 2], [2, COUNT]])
        file["image_ids"] = np.arange(5)

    everything = {"image_features": True, "image_bb": True, "image_ids": True}
    hdf5(tmp_path / "data" / "t.h5", joined, **everything)
    result = imported(tmp_path / "data")
    assert result.store.image_ids == [0, 4] and result.skipped == 3
    assert all("pos_boxes has" in problem for problem in result.problems[:3])


# ---- pictures -------------------------------------------------------------------------------------


def png(path: Path, width: int, height: int, depth: int, kind: int, bits: int) -> Path:
    """A PNG of zeros; `bits` are those of a pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(1)
    line = bytes(1 + width * bits // 8)
    rows = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    start = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    whole = chunk(b"IHDR", start) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + whole)
    return path


@pytest.mark.parametrize(("depth", "kind", "bits"), [(8, 6, 32), (16, 0, 16)])
def test_the_largest_pictures_take_less_than_2_gb(tmp_path: Path, depth: int, kind: int, bits: int) -> None:
    picture = png(tmp_path / "a.png", 6_000, 4_000, depth, kind, bits)  # a sixth of what is decoded
    code = "import resource, sys; from pathlib import Path;"
    code += "from tbkin_core.features.pictures import load_image, used_bits;"
    code += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
    code += "load_image(Path(sys.argv[1]), max_side=1024); used_bits(Path(sys.argv[1]));"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(picture)],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    taken = 1024 * int(done.stdout)
    share = 6_000 * 4_000 / pictures.MAX_PIXELS
    strips = 16 * pictures._STRIP
    assert (taken - strips) / share + strips < 1_800_000_000, (taken, done.stderr)


@pytest.mark.parametrize("kind", ["png", "webp", "jp2", "tif"])
def test_pictures_that_are_too_large_are_refused_with_their_size(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (90, 80)).save(path)
    assert load_image(path)[1:] == (90, 80)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 7199)
    monkeypatch.setattr(pictures, "_MOST_OF", {"WEBP": 7199, "JPEG2000": 7199})
    with pytest.raises(DataError, match=rf"a\.{kind}.*90 x 80.*at most 7,199 pixels"):
        load_image(path)


def test_a_tiff_of_few_pixels_in_one_large_tile_is_refused(tmp_path: Path) -> None:
    packed_tile = zlib.compress(bytes(1 << 16))
    tags = {
        256: 64,
        257: 64,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: 20_000,
        323: 20_000,
        324: 0,
        325: len(packed_tile),
    }
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, start if tag == 324 else value) for tag, value in tags.items()
    )
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed_tile
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tif.*in tiles of 20000 x 20000"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16", "RGB"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_tiff_is_read_upright_whatever_its_pixels_are(
    tmp_path: Path, mode: str, orientation: int
) -> None:
    """Pillow maps some of them into memory, in the wrong shape."""
    values = np.random.default_rng(0).integers(0, 255, (9, 13, 4), np.uint8)
    grey = values[:, :, 0].astype(np.uint16) * 257
    flat = Image.fromarray(grey) if mode == "I;16" else Image.fromarray(values).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    flat.save(tmp_path / "upright.tif")
    flat.save(tmp_path / "turned.tif", exif=exif)
    upright, _, _ = load_image(tmp_path / "upright.tif")
    turned, width, height = load_image(tmp_path / "turned.tif")
    quarters = {3: 2, 6: -1, 8: 1}[orientation]
    np.testing.assert_array_equal(turned, np.rot90(upright, quarters))
    assert (width, height) == (turned.shape[1], turned.shape[0])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "I", "F", "CMYK", "1"])
def test_strips_change_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (37, 23, 4), np.uint8)
    one = values[:, :, 0].astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode, np.uint8))
    flat = Image.fromarray(one * 200) if mode in ("I;16", "I", "F") else Image.fromarray(values).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("F", "CMYK", "I") else "a.png")
    flat.save(path)
    whole = [load_image(path, side) for side in (None, 20)]
    monkeypatch.setattr(pictures, "_STRIP", 100)
    for (before, *size), side in zip(whole, (None, 20), strict=True):
        after, *other = load_image(path, side)
        np.testing.assert_array_equal(after, before)
        assert other == size


def test_the_manifest_says_plainly_what_made_the_features(tmp_path: Path) -> None:
    write_feature_store(tmp_path, SETTINGS, [regions_of(1)])
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    for name, value in {
        "object_names": "dog",
        "attribute_names": [3],
        "feature_size": True,
        "extractor": [],
    }.items():
        changed = {**manifest, "settings": {**manifest["settings"], name: value}}
        (tmp_path / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(DataError, match="does not say which extractor"):
            FeatureStore(tmp_path)


def test_a_pipe_in_the_place_of_an_array_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.npy")
    with pytest.raises(ValueError, match="no regular file"):
        read_npy(tmp_path / "1.npy")
    with pytest.raises(DataError, match="no regular file"):
        load_plain_pickle(tmp_path / "1.npy")
    with pytest.raises(ValueError, match="no regular file"):
        load_tensors(tmp_path / "1.npy")


def test_a_store_of_another_kind_is_refused_with_a_remedy(tmp_path: Path) -> None:
    manifest = {"format_version": 1, "kind": "graphs", "complete": True, "settings": {}, "shards": []}
    write_json(tmp_path / MANIFEST, {**manifest, "extra": {}})
    with pytest.raises(DataError, match="expected a store of features, found 'graphs'") as raised:
        FeatureStore(tmp_path)
    assert "tbkin extract-features" in str(raised.value.hint)
