"""Region features of other programs: names of their regions, forms of their boxes, what is not read."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import fails, succeeds
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from tbkin_core.datasets import open_dataset
from tbkin_core.datasets.unpickle import loads_object_npy
from tbkin_core.errors import DataError, TbkinError
from tbkin_core.features.box_forms import BoxForm, box_form
from tbkin_core.features.extract import Extraction, extract_dataset
from tbkin_core.features.image_files import read_feature_file
from tbkin_core.features.store import FeatureStore, feature_kind
from tbkin_core.features.writing import write_feature_store
from tbkin_core.names.vocabulary import visual_genome_names

SIZE = 16
WIDTH, HEIGHT = 640, 480
SIDES = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
DOG, COUCH = (visual_genome_names("objects").number(name) for name in ("dog", "couch"))


def corners(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Boxes (K, 4) with some extent, as x1, y1, x2, y2 in pixels."""
    places = np.sort(np.random.default_rng(seed).random((count, 2, 2)) * 0.9, axis=1)
    places[:, 1] += 0.05
    return (places.reshape(count, 4) * SIDES).astype(np.float32)


def with_sides(boxes: NDArray) -> NDArray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def vectors(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).random((count, SIZE), np.float32)


def packed(values: Any, dtype: Any = np.float32) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def write_table(path: Path, boxes: list[NDArray], *more: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = [
        [number, WIDTH, HEIGHT, len(own), packed(own), packed(vectors(len(own))), *more]
        for number, own in enumerate(boxes, start=1)
    ]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))


def write_npz(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    content = {"x": vectors(4), "bbox": corners(4), "image_h": HEIGHT, "image_w": WIDTH, **changes}
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


def write_captions(data: Path, *texts: str) -> None:
    lines = (
        json.dumps({"image": f"{number}.jpg", "text": text}) for number, text in enumerate(texts, start=1)
    )
    (data / "captions.jsonl").write_text("\n".join(lines))


def imported(data: Path) -> Extraction:
    return extract_dataset(open_dataset(data), data.parent / f"{data.name}-store", workers=0)


def names_of(store: FeatureStore, image_id: int) -> list[str]:
    return list(store[image_id].labels(store.object_names))


# ---- names --------------------------------------------------------------------------------------


def anchors(data: Path) -> list[list[tuple[str, str]]]:
    """What the captions' objects are joined with, as `build-graphs` exports it."""
    succeeds("extract-features", data, cwd=data.parent)
    succeeds("build-graphs", data, "--export", "graphs.jsonl", cwd=data.parent)
    found = []
    for line in (data.parent / "graphs.jsonl").read_text().splitlines():
        graph = json.loads(line)
        labels = [region["label"] for region in graph["regions"]]
        edges = graph["cross_edges"]
        found.append([(graph["objects"][it["object"]]["name"], labels[it["region"]]) for it in edges])
    return found


def test_the_numbers_of_a_table_are_names_that_captions_meet(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    row = [
        *("1", HEIGHT, WIDTH, packed([DOG, COUCH], np.int64), packed([0.75, 1])),
        *(packed([4, 0], np.int64), packed([0.5, 0.25]), 2, packed(corners(2)), packed(vectors(2))),
    ]
    (data / "obj36.tsv").write_text("\t".join(map(str, row)) + "\n")
    write_captions(data, "a dog on a couch")
    assert anchors(data) == [[("dog", "dog"), ("couch", "couch")]]
    store = FeatureStore(data / "features")
    assert [store.attribute_names[number] for number in store[1].attribute_ids] == ["red", "gray"]
    assert store[1].object_scores.tolist() == [0.75, 1]


def vinvl_objects(classes: list[str]) -> list[dict[str, Any]]:
    return [
        {
            **{"rect": box.tolist(), "class": name, "conf": 0.5, "feature": packed(np.arange(64))},
            **{"attributes": ["unheard of", "red", "gray"], "attr_scores": [0.9, 0.25, 0.125]},
        }
        for box, name in zip(corners(len(classes)), classes, strict=True)
    ]


def test_names_that_a_table_gives_as_texts_are_kept_whether_or_not_the_vocabulary_has_them(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    objects = vinvl_objects(["Traffic_Light", "wombatoid", "couch"])
    (data / "predictions.tsv").write_text(f"1\t{json.dumps({'objects': objects})}\n")
    (data / "hw.tsv").write_text(f'1\t[{{"height": {HEIGHT}, "width": {WIDTH}}}]\n')
    write_captions(data, "a wombatoid beside a traffic light")
    assert anchors(data) == [[("wombatoid", "wombatoid"), ("traffic light", "traffic light")]]
    store = FeatureStore(data / "features", verify=True)
    assert names_of(store, 1) == ["traffic light", "wombatoid", "couch"]
    assert store[1].object_ids[1] == -1  # no class that a head could learn
    assert [store.attribute_names[number] for number in store[1].attribute_ids] == ["red"] * 3
    np.testing.assert_array_equal(store[1].attribute_scores, np.float32(0.25))


def info(objects: list[int], attributes: list[int], **more: Any) -> dict[str, Any]:
    return {
        **{"image_id": "1", "image_h": np.int64(HEIGHT), "num_boxes": len(objects)},
        **{"objects_id": np.array(objects), "objects_conf": np.full(len(objects), 0.5, np.float32)},
        **{"attrs_id": np.array(attributes), "attrs_conf": np.full(len(objects), 0.25)},
        **more,
    }


def test_the_names_in_a_pickled_info_are_read(tmp_path: Path) -> None:
    for number in (1, 2):
        write_npz(
            tmp_path / "data" / f"{number}.npz", info=info([DOG, COUCH, 7, 8], [4, 0, 1, 2]), num_bbox=3
        )
    result = imported(tmp_path / "data")
    assert result.problems == []
    assert names_of(result.store, 1)[:2] == ["dog", "couch"] and len(result.store[1]) == 3
    assert result.store.attribute_names[result.store[2].attribute_ids[0]] == "red"


def test_numbers_that_count_the_background_are_taken_one_lower(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(1, 7):
        write_npz(data / f"{number}.npz", info=info([DOG + 1, COUCH + 1, 0, 0], [5, 1, 0, 0]))
    result = imported(data)
    (note,) = result.problems
    assert "the background is 0" in note
    assert names_of(result.store, 1) == ["dog", "couch", "", ""]
    attributes = [result.store.attribute_names[number] for number in result.store[1].attribute_ids[:2]]
    assert attributes == ["red", "gray"]
    assert result.store.settings["background"] == 0
    # Of few regions it cannot be told.
    few = tmp_path / "few"
    write_npz(few / "1.npz", info=info([DOG + 1, COUCH + 1, 0, 0], [5, 1, 0, 0]))
    result = imported(few)
    assert any(
        "objects have no names: it cannot be told whether 0 is the background" in it for it in result.problems
    )
    assert result.store.object_names == [] and (result.store[1].object_ids == -1).all()


def test_the_numbers_of_padding_tell_nothing(tmp_path: Path) -> None:
    boxes = np.concatenate([corners(4), np.zeros((4, 4))])
    for number in range(1, 7):
        labels = info([DOG, COUCH, 7, 8, 0, 0, 0, 0], [4, 0, 1, 2, 0, 0, 0, 0])
        write_npz(tmp_path / "data" / f"{number}.npz", x=vectors(8), bbox=boxes, info=labels)
    store = imported(tmp_path / "data").store
    assert names_of(store, 1)[:2] == ["dog", "couch"] and len(store[1]) == 4


def test_numbers_of_another_list_give_no_names(tmp_path: Path) -> None:
    write_npz(tmp_path / "data" / "1.npz", info=info([DOG, COUCH, 7, 1700], [1, 2, 3, 4]))
    result = imported(tmp_path / "data")
    assert any("objects have no names: their numbers go beyond the 1600" in it for it in result.problems)
    assert result.store.object_names == [] and result.store.attribute_names == []


def test_one_damaged_number_costs_no_names_but_its_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    rows = [
        [
            *(number, HEIGHT, WIDTH, packed([DOG] * 40, np.int64), packed([0.5] * 40)),
            *(packed([1] * 40, np.int64), packed([0.5] * 40), 40, packed(corners(40)), packed(vectors(40))),
        ]
        for number in range(1, 40)
    ]
    rows[3][3] = packed([DOG, 1600, *[DOG] * 38], np.int64)
    data.mkdir()
    (data / "t.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    result = imported(data)
    assert names_of(result.store, 4)[:3] == ["dog", "", "dog"] and names_of(result.store, 5)[0] == "dog"
    assert any("beyond the 1600 objects" in note and "1 images" in note for note in result.problems)


def test_numbers_that_the_first_images_do_not_have_or_that_are_too_large_are_said_to_be_left_out(
    tmp_path: Path,
) -> None:
    for data, first in (("late", {}), ("large", {"info": info([DOG] * 4, [1] * 4)})):
        for number in range(201):
            write_npz(tmp_path / data / f"{number:03}.npz", **first)
        write_npz(tmp_path / data / "201.npz", info=info([DOG, 7, -5, 1650], [1] * 4))
    late, large = imported(tmp_path / "late"), imported(tmp_path / "large")
    assert late.store.object_names == [] and (late.store[201].object_ids == -1).all()
    assert [note[:24] for note in late.problems] == ["1 images, such as 201: t"] * 2
    assert "while those of the first images are not" in late.problems[0]
    assert large.store[201].object_ids.tolist() == [DOG, 7, -1, -1]
    (note,) = large.problems
    assert "beyond the 1600 objects" in note


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickled_info_runs_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for number in (1, 2):
        evil = info([DOG] * 4, [1] * 4, more=_Payload(marker))
        write_npz(tmp_path / "data" / f"{number}.npz", info=evil)
    result = imported(tmp_path / "data")
    (note,) = result.problems
    assert note.startswith("2 images, such as 1: their regions have no names") and "system" in note
    assert result.made == 2 and not marker.exists()


npy_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.text(max_size=5)
    | arrays.arrays(
        st.sampled_from(["<f4", ">f8", "<i8", ">i2", "?", "<U3"]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        elements={"allow_nan": False},
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def as_npy(value: Any, protocol: int = 4) -> bytes:
    cell, stream = np.empty((), object), io.BytesIO()
    cell[()] = value
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    return stream.getvalue() + pickle.dumps(cell, protocol)


@settings(max_examples=150, deadline=None)
@given(value=st.dictionaries(st.text(max_size=3), npy_values), protocol=st.sampled_from([3, 4]))
def test_what_numpy_pickled_comes_back(value: dict[str, Any], protocol: int) -> None:
    np.testing.assert_equal(loads_object_npy(as_npy(value, protocol), "info"), value)


def test_a_small_pickle_that_stands_for_endless_lists_stays_small() -> None:
    value: Any = [1]
    for _ in range(40):
        value = [value] * 10
    content = as_npy({"a": value})
    assert len(content) < 5000 and loads_object_npy(content, "info")["a"][0][0] is not None
    value.append(value)
    with pytest.raises(DataError, match="RecursionError"):
        loads_object_npy(as_npy({"a": value}), "info")


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_pickle_is_an_object_or_a_data_error(place: float, byte: int, cut: bool) -> None:
    content = bytearray(as_npy({"a": np.arange(6).reshape(2, 3), "b": ["x", np.float32(1)]}))
    where = int(place * len(content))
    content[where] = byte
    try:
        loads_object_npy(bytes(content[:where] if cut else content), "info")
    except DataError as error:
        assert error.message.startswith("info")


def test_features_that_an_earlier_version_imported_are_not_mixed_with_named_ones(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_npz(data / "1.npz", info=info([DOG, COUCH, 7, 8], [1, 2, 3, 4]))
    store = imported(data).store
    nameless = {**store.settings, "object_names": [], "attribute_names": []}
    write_feature_store(data / "features", nameless, [store[1]])
    assert "without the names of their regions" in fails("extract-features", data, cwd=tmp_path, code=1)
    write_captions(data, "a dog on a couch")
    told = succeeds("build-graphs", data, cwd=tmp_path)
    assert "an earlier version imported them without the names" in told.err + told.out
    old = FeatureStore(data / "features")
    assert names_of(old, 1) == [""] * 4 and old.settings != store.settings
    assert feature_kind(old.settings) == feature_kind(store.settings)  # what was trained on them still fits
    succeeds("extract-features", data, "--overwrite", cwd=tmp_path)
    assert names_of(FeatureStore(data / "features"), 1)[0] == "dog"


# ---- files --------------------------------------------------------------------------------------


def test_arrays_may_be_turned_where_their_sides_tell(tmp_path: Path) -> None:
    usual = read_feature_file(write_npz(tmp_path / "a" / "1.npz"), 1)
    for changes in ({"x": vectors(4).T}, {"x": vectors(4).T, "bbox": corners(4).T}, {"bbox": corners(4).T}):
        turned = read_feature_file(write_npz(tmp_path / "a" / "2.npz", **changes), 1)
        np.testing.assert_array_equal(turned.features, usual.features)
        np.testing.assert_array_equal(turned.boxes, usual.boxes)
    square = write_npz(tmp_path / "a" / "3.npz", x=np.ones((SIZE, SIZE)), bbox=corners(SIZE))
    with pytest.raises(DataError, match="either side may be the regions"):
        read_feature_file(square, 1)
    with pytest.raises(DataError, match="expected x"):
        read_feature_file(write_npz(tmp_path / "a" / "4.npz", x=vectors(5)), 1)


@pytest.mark.parametrize("changes", [{}, {"x": vectors(4).T}, {"bbox": corners(4).T}])
def test_a_look_without_vectors_sees_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_npz(tmp_path / "a" / "1.npz", **changes)
    looked, read = read_feature_file(path, 1, vectors=False), read_feature_file(path, 1)
    assert looked.features.shape == read.features.shape
    np.testing.assert_array_equal(looked.boxes, read.boxes)


def chances(objects: list[int], background: float = 0.5) -> NDArray[np.float32]:
    """Probabilities (K, 1601); the background's is the largest."""
    found = np.zeros((len(objects), 1601), np.float32)
    found[:, 0] = background
    found[np.arange(len(objects)), np.array(objects) + 1] = 0.25
    return found


def test_uniter_files_take_the_size_of_the_image_from_elsewhere(tmp_path: Path) -> None:
    data, boxes = tmp_path / "data", corners(4)
    fractions = boxes / SIDES
    given = {
        "norm_bb": np.concatenate([fractions, with_sides(fractions)[:, 2:]], axis=1),
        **{"features": vectors(4), "conf": np.full(4, 0.75), "soft_labels": chances([DOG, COUCH, 3, 4])},
    }
    data.mkdir()
    for number in (1, 2, 3):
        np.savez(data / f"coco_val2014_{number:012}.npz", **given)
    Image.new("RGB", (WIDTH, HEIGHT)).save(data / "COCO_val2014_000000000001.jpg")
    listed = {"id": 2, "file_name": "COCO_val2014_000000000002.jpg", "width": 2 * WIDTH, "height": HEIGHT}
    (data / "captions_val2014.json").write_text(json.dumps({"images": [listed], "annotations": []}))
    result = imported(data)
    assert result.store.image_ids == [1, 2] and names_of(result.store, 1)[:2] == ["dog", "couch"]
    np.testing.assert_allclose(result.store[1].boxes, boxes, rtol=1e-5)
    np.testing.assert_allclose(result.store[2].boxes, boxes * [2, 1, 2, 1], rtol=1e-5)
    assert result.store[1].object_scores.tolist() == [0.75] * 4
    lost, note = result.problems
    assert "000000000003.npz" in lost and "nothing tells the image's width and height" in lost
    assert "boxes are given as x1, y1, x2, y2 as fractions" in note


def test_the_probabilities_in_vilberts_tables_are_names(tmp_path: Path) -> None:
    write_table(tmp_path / "data" / "obj.tsv", [corners(2)], packed(chances([DOG, COUCH])))
    store = imported(tmp_path / "data").store
    assert names_of(store, 1) == ["dog", "couch"] and store[1].object_scores.tolist() == [0.25] * 2
    write_table(tmp_path / "other" / "obj.tsv", [corners(2)], packed(np.zeros((2, 81))))
    result = imported(tmp_path / "other")
    (note,) = result.problems
    assert result.made == 1 and "81 classes" in note and result.store.object_names == []


def write_pair(data: Path, name: str, **changes: Any) -> None:
    content = {
        **{"bbox": corners(4), "num_boxes": 3, "image_width": WIDTH, "image_height": np.int64(HEIGHT)},
        **{"objects": np.arange(4), "cls_prob": chances([1, 2, 3, 4])[:, 1:], **changes},
    }
    np.save(data / f"{name}.npy", vectors(4))
    cell = np.empty((), object)
    cell[()] = content
    np.save(data / f"{name}_info.npy", cell, allow_pickle=True)


def test_mmfs_pairs_of_files_are_read_and_single_ones_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_pair(data, "1")
    write_pair(data, "2")
    write_pair(data, "3", bbox=_Payload(tmp_path / "marker"))
    write_pair(data, "4")
    (data / "4.npy").unlink()
    np.save(data / "5.npy", vectors(4))
    dataset = open_dataset(data)
    result = extract_dataset(dataset, tmp_path / "store", workers=0)
    assert result.store.image_ids == [1, 2] and len(result.store[1]) == 3
    np.testing.assert_array_equal(result.store[2].boxes, corners(4)[:3])
    assert result.store.settings["format"] == "mmf npy" and result.store.object_names == []
    assert len(result.problems) == 1 and "numbered by a list of MMF's own" in result.problems[0]
    shown = "\n".join(dataset.problems)
    assert "3.npy: its boxes cannot be read" in shown and not (tmp_path / "marker").exists()
    assert "4_info.npy has no file of features" in shown and "5.npy may be region features" in shown


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "1.npy", vectors(4))
    assert "1.npy may be region features" in fails("extract-features", "npy", cwd=tmp_path, code=1)
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "1.npz", spam=vectors(4))
    message = fails("extract-features", "npz", cwd=tmp_path, code=1)
    assert "1.npz is no file of region features" in message and "spam" in message


def test_parts_of_a_table_are_read_and_what_is_packed_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_table(data / "karpathy_train_genome.tsv.0", [corners(4), corners(3)])
    rows = (data / "karpathy_train_genome.tsv.0").read_text().splitlines()
    (data / "karpathy_train_genome.tsv.1").write_text("".join(f"9{row}\n" for row in rows))
    with zipfile.ZipFile(data / "trainval_36.zip", "w") as archive:
        archive.writestr("trainval_36/features.tsv", "")
    with zipfile.ZipFile(data / "val2014.zip", "w") as archive:
        archive.writestr("val2014/1.jpg", "")
    (data / "more.tsv.gz").write_bytes(gzip.compress(b""))
    (data / "odd.tsv").write_text(f"a,b\t'{packed(vectors(100))}'\n")
    (data / "genome.lmdb").mkdir()
    for name in ("data.mdb", "lock.mdb"):
        (data / "genome.lmdb" / name).touch()
    dataset = open_dataset(data)
    assert extract_dataset(dataset, tmp_path / "store", workers=0).store.image_ids == [1, 2, 91, 92]
    named = sorted(problem.split(":")[0] for problem in dataset.problems)
    assert named == ["genome.lmdb/data.mdb", "more.tsv.gz", "odd.tsv", "trainval_36.zip"]


def test_a_file_of_another_kind_costs_itself_alone(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_table(tmp_path / "data" / "a.tsv", [corners(4)])
    with h5py.File(tmp_path / "data" / "other.h5", "w") as file:
        file["spam"] = [1]
    result = imported(tmp_path / "data")
    assert result.store.image_ids == [1]
    (problem,) = result.problems
    assert "other.h5: lacks image_bb" in problem and "spam" in problem


@pytest.mark.parametrize("told", ["a picture", "nothing"])
def test_hdf5_boxes_that_are_fractions_twice_take_the_pictures_size(tmp_path: Path, told: str) -> None:
    h5py = pytest.importorskip("h5py")
    data = tmp_path / "data"
    data.mkdir()
    fractions = corners(4) / SIDES
    with h5py.File(data / "val.h5", "w") as file:
        file["image_features"], file["image_ids"] = vectors(4)[None], [1]
        file["image_bb"], file["spatial_features"] = fractions[None], fractions[None]
    if told == "nothing":
        assert "nothing tells the image's width and height" in fails(
            "extract-features", data, cwd=data, code=1
        )
        return
    Image.new("RGB", (WIDTH, HEIGHT)).save(data / "1.png")
    np.testing.assert_allclose(imported(data).store[1].boxes, corners(4), atol=1e-2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_never_give_more_than_messages(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("damaged") / "data"
    kind = data.draw(st.sampled_from(["pair", "uniter", "info", "vilbert"]))
    place.mkdir()
    if kind == "pair":
        write_pair(place, "1")
    elif kind == "uniter":
        fractions = corners(4) / SIDES
        np.savez(place / "1.npz", norm_bb=fractions, features=vectors(4), soft_labels=chances([1, 2, 3, 4]))
    elif kind == "info":
        write_npz(place / "1.npz", info=info([DOG] * 4, [1] * 4))
    else:
        write_table(place / "t.tsv", [corners(2)], packed(chances([DOG, COUCH])))
    path = data.draw(st.sampled_from(sorted(place.iterdir())))
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, min(len(content), 2000) - 1))
    content[where] = data.draw(st.integers(0, 255))
    path.write_bytes(content[:where] if data.draw(st.booleans()) else content)
    try:
        imported(place)
    except TbkinError as error:
        assert error.message


# ---- boxes --------------------------------------------------------------------------------------

FORMS = [BoxForm(fractions, sides) for fractions in (False, True) for sides in (False, True)]


def as_form(boxes: NDArray, form: BoxForm) -> NDArray:
    found = with_sides(boxes) if form.sides else boxes
    return found / SIDES if form.fractions else found


@settings(max_examples=80, deadline=None)
@given(form=st.sampled_from(FORMS), seed=st.integers(0, 10**6), images=st.integers(8, 40))
def test_enough_boxes_show_their_form_and_come_out_as_corners(form: BoxForm, seed: int, images: int) -> None:
    boxes = [corners(8, seed + number) for number in range(images)]
    given_boxes = [as_form(own, form) for own in boxes]
    size = (WIDTH, HEIGHT)
    assert box_form(given_boxes, [size] * images, [""] * images) == form
    for own, its in zip(boxes, given_boxes, strict=True):
        np.testing.assert_allclose(form.pixels(its, size), own, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_a_table_of_each_form_gives_the_same_store(tmp_path: Path, form: BoxForm) -> None:
    boxes = [corners(8, number) for number in range(12)]
    write_table(tmp_path / "data" / "t.tsv", [as_form(own, form) for own in boxes])
    result = imported(tmp_path / "data")
    for number, own in enumerate(boxes, start=1):
        np.testing.assert_allclose(result.store[number].boxes, own, atol=1e-2)
    said = f"{tmp_path}/data/t.tsv: boxes are given as {form}: taken to x1, y1, x2, y2 in pixels"
    assert result.problems == ([] if form == BoxForm() else [said])
    assert ("boxes" in result.store.settings) == (form != BoxForm())


def centred(boxes: NDArray) -> NDArray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([np.array([[500.0, 400, 20, 30], [10, 10, 300, 300], [20, 20, 60, 90]])], "too few to be certain"),
        ([centred(corners(8, number)) for number in range(12)], "not all of them can be"),
        ([corners(8, number)[:, [1, 0, 3, 2]] for number in range(12)], "reach out of their images"),
        ([corners(8, number) * 2 for number in range(12)], "reach out of their images"),
    ],
)
def test_boxes_of_which_it_is_not_certain_what_they_are_are_refused(
    tmp_path: Path, boxes: list[NDArray], says: str
) -> None:
    write_table(tmp_path / "data" / "t.tsv", boxes)
    message = fails("extract-features", "data", cwd=tmp_path, code=1)
    assert says in message and "t.tsv: line 1 (image '1')" in message and "write the boxes as" in message
    assert not (tmp_path / "data" / "features").exists()


def test_later_rows_that_are_of_another_form_are_named(tmp_path: Path) -> None:
    usual = [corners(2, number) for number in range(200)]
    odd = [corners(2) / SIDES, np.array([[500.0, 400, 20, 30]])]
    write_table(tmp_path / "data" / "t.tsv", [*usual, *odd, corners(2)])
    result = imported(tmp_path / "data")
    assert len(result.store) == 201 and 203 in result.store
    fraction, backwards = result.problems
    assert "line 201" in fraction and "look like fractions" in fraction
    assert "line 202" in backwards and "end before they begin" in backwards


def test_a_damaged_box_costs_itself_and_is_counted(tmp_path: Path) -> None:
    boxes = [corners(8, number) for number in range(12)]
    boxes[3][2] = [100, 100, 50, 50]
    write_table(tmp_path / "data" / "t.tsv", boxes)
    result = imported(tmp_path / "data")
    assert len(result.store[4]) == 7 and len(result.store[3]) == 8
    (note,) = result.problems
    assert note.startswith("1 images, such as 4: some of their boxes have no area")


# ---- names of files -----------------------------------------------------------------------------


@pytest.mark.parametrize("listed", ["COCO_val2014_000000000042.jpg", "000000000042.jpg"])
@pytest.mark.parametrize(
    "name", ["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000042", "000000000042"]
)
@pytest.mark.parametrize("on_disk", [False, True])
def test_files_of_features_meet_the_images_that_annotations_list(
    tmp_path: Path, listed: str, name: str, on_disk: bool
) -> None:
    data = tmp_path / "data"
    write_npz(data / f"{name}.npz")
    images = [{"id": 42, "file_name": listed, "width": WIDTH, "height": HEIGHT}]
    captions = [{"id": 1, "image_id": 42, "caption": "a dog"}]
    (data / "captions_val.json").write_text(json.dumps({"images": images, "annotations": captions}))
    if on_disk:
        Image.new("RGB", (WIDTH, HEIGHT)).save(data / listed)
    dataset = open_dataset(data)
    assert [it.image_id for it in dataset.captions()] == list(dataset.bottom_up_files()) == [42]


@pytest.mark.parametrize("name", ["dog", "dog.jpg", "7", "7.jpg"])
def test_files_of_features_meet_the_images_that_captions_name(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    write_npz(data / f"{name}.npz")
    (data / "texts").mkdir()
    line = {"image": f"{name.removesuffix('.jpg')}.jpg", "text": "a dog"}
    (data / "texts" / "captions.jsonl").write_text(json.dumps(line))
    dataset = open_dataset(data)
    assert [it.image_id for it in dataset.captions()] == list(dataset.bottom_up_files())
    assert len(dataset.images()) == 1
