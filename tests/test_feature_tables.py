"""Region features that other programs keep many images to a file."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import fails, succeeds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tbkin_core.datasets import open_dataset
from tbkin_core.errors import DataError
from tbkin_core.features.extract import extract_dataset
from tbkin_core.features.extractors.opening import choose_extractor
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.tables import FeatureRow, feature_rows, table_format

SIZE, REGIONS = 16, 5


def image(number: int) -> dict[str, Any]:
    """What is known of an image, drawn by its number."""
    chance = np.random.default_rng(number)
    corners = chance.random((REGIONS, 2), np.float32) * 50
    return {
        "name": f"COCO_val2014_{number:012d}",
        "width": 200,
        "height": 100,
        "boxes": np.concatenate([corners, corners + 20], axis=1).astype(np.float32),
        "features": chance.random((REGIONS, SIZE), np.float32),
        "object_ids": chance.integers(0, 1600, REGIONS),
        "object_scores": chance.random(REGIONS, np.float32),
        "attribute_ids": chance.integers(0, 400, REGIONS),
        "attribute_scores": chance.random(REGIONS, np.float32),
    }


def packed(values: Any, dtype: type = np.float32) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def bottom_up(item: dict[str, Any]) -> list[Any]:
    number = int(item["name"][-12:])
    return [number, item["width"], item["height"], REGIONS, packed(item["boxes"]), packed(item["features"])]


def lxmert(item: dict[str, Any]) -> list[Any]:
    return [
        item["name"], item["height"], item["width"],
        packed(item["object_ids"], np.int64), packed(item["object_scores"]),
        packed(item["attribute_ids"], np.int64), packed(item["attribute_scores"]),
        REGIONS, packed(item["boxes"]), packed(item["features"]),
    ]  # fmt: skip


def rosita(item: dict[str, Any]) -> list[Any]:
    return [
        item["name"] + ".jpg", packed(np.repeat(item["features"], 40, axis=1)), item["height"], item["width"],
        REGIONS, packed(item["boxes"]), packed(item["object_ids"]), packed(item["object_scores"]),
        packed(item["attribute_ids"]), packed(item["attribute_scores"]),
    ]  # fmt: skip


FORMATS: dict[str, Callable[[dict[str, Any]], list[Any]]] = {
    "bottom-up": bottom_up,
    "lxmert": lxmert,
    "rosita": rosita,
}


def write_table(path: Path, form: str, numbers: list[int], *more: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, FORMATS[form](image(number)))) for number in numbers]
    path.write_text("\n".join([*lines, *more]) + "\n")
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_gives_what_went_in(tmp_path: Path, form: str) -> None:
    path = write_table(tmp_path / "features.tsv", form, [7, 42])
    assert table_format(path.read_bytes().splitlines()[0]) == form
    rows = list(feature_rows(path))
    assert len(rows) == 2
    for number, row in zip((7, 42), rows, strict=True):
        expected, regions = image(number), row.read(number)
        assert str(number) in row.name
        assert (regions.image_width, regions.image_height) == (200, 100)
        np.testing.assert_array_equal(regions.boxes, expected["boxes"])
        wide = 40 if form == "rosita" else 1
        np.testing.assert_array_equal(regions.features[:, ::wide], expected["features"])
        if form != "bottom-up":
            np.testing.assert_array_equal(regions.object_ids, expected["object_ids"])
            np.testing.assert_allclose(regions.attribute_scores, expected["attribute_scores"])


@pytest.mark.parametrize("form", FORMATS)
def test_a_store_of_a_table(tmp_path: Path, form: str) -> None:
    """Images are known by number, names or ids alike; a run goes on where it stopped."""
    write_table(tmp_path / "data" / "val.tsv", form, [7, 42])
    dataset = open_dataset(tmp_path / "data")
    assert dataset.layouts == ("feature-tables",)
    assert choose_extractor(dataset, "auto").name == "import"
    result = extract_dataset(dataset, tmp_path / "store", max_regions=3)
    assert (result.made, result.present) == (2, 0)
    (note,) = result.problems
    assert note.startswith("2 images have more regions") and note.endswith("4 are left out")
    store = FeatureStore(tmp_path / "store")
    assert store.image_ids == [7, 42]
    surest = np.argsort(-image(42)["object_scores"])[:3] if form != "bottom-up" else np.arange(3)
    np.testing.assert_array_equal(store[42].boxes, image(42)["boxes"][surest])
    write_table(tmp_path / "data" / "val.tsv", form, [7, 42, 3])
    again = extract_dataset(open_dataset(tmp_path / "data"), tmp_path / "store", max_regions=3)
    assert (again.made, again.present) == (1, 2)
    assert FeatureStore(tmp_path / "store").image_ids == [7, 42, 3]


def test_the_ids_of_the_annotations(tmp_path: Path) -> None:
    """A table that names files meets the ids that annotations give these files."""
    listed = [{"id": 900, "file_name": f"{image(7)['name']}.jpg", "width": 200, "height": 100}]
    captions = [{"id": 1, "image_id": 900, "caption": "a dog"}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "captions_val2014.json").write_text(
        json.dumps({"images": listed, "annotations": captions})
    )
    write_table(tmp_path / "data" / "features.tsv", "rosita", [7])
    outcome = succeeds("extract-features", "data", "--json", cwd=tmp_path)
    assert json.loads(outcome.out)["made"] == 1
    assert FeatureStore(tmp_path / "data" / "features").image_ids == [900]


def test_damaged_rows_are_named_and_the_others_kept(tmp_path: Path) -> None:
    good = lxmert(image(5))
    cut = "\t".join(map(str, [*good[:9], good[9][:50]]))
    wrong = "\t".join(map(str, [*lxmert(image(6))[:9], packed(np.zeros(3))]))
    few = "\t".join(map(str, lxmert(image(8))[:6]))
    twice = "\t".join(map(str, lxmert(image(7))))
    write_table(tmp_path / "data" / "t.tsv", "lxmert", [7, 42], cut, wrong, few, twice, "", "x")
    result = extract_dataset(open_dataset(tmp_path / "data"), tmp_path / "store")
    assert result.made == 2
    shown = "\n".join(result.problems)
    for part in ("line 3", "line 4", "line 5", "6 columns, expected 10", "line 6", "second row", "line 8"):
        assert part in shown
    assert len(result.problems) == 5


HEADERS = {
    "bottom-up": "image_id image_w image_h num_boxes boxes features",
    "lxmert": "img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features",
    "rosita": "filename features image_h image_w num_boxes boxes objects_id objects_conf attrs_id attrs_conf",
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_line_of_column_names_says_what_is_where(tmp_path: Path, form: str, reverse: bool) -> None:
    names, rows = HEADERS[form].split(), [FORMATS[form](image(number)) for number in (7, 42)]
    if reverse:  # all but the image's name, by which rows are told
        names, *rows = ([row[0], *row[:0:-1]] for row in (names, *rows))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t.tsv").write_text("\n".join("\t".join(map(str, row)) for row in (names, *rows)))
    result = extract_dataset(open_dataset(tmp_path / "data"), tmp_path / "store")
    assert result.problems == [] and result.store.image_ids == [7, 42]
    np.testing.assert_array_equal(result.store[42].boxes, image(42)["boxes"])
    assert (result.store[42].image_width, result.store[42].image_height) == (200, 100)
    if form != "bottom-up":
        np.testing.assert_array_equal(result.store[7].attribute_ids, image(7)["attribute_ids"])


@pytest.mark.parametrize("first", ["COCO_val2014_000000000005", "5\t200\t100\t5\tAAAA", "x\t1\t2"])
def test_a_first_row_cut_short_costs_itself_alone(tmp_path: Path, first: str) -> None:
    write_table(tmp_path / "data" / "t.tsv", "bottom-up", [7, 42])
    table = tmp_path / "data" / "t.tsv"
    table.write_text(f"{first}\n{table.read_text()}")
    result = extract_dataset(open_dataset(tmp_path / "data"), tmp_path / "store")
    assert result.store.image_ids == [7, 42]
    assert len(result.problems) == 1 and "line 1" in result.problems[0]


def test_most_of_the_first_rows_decide_the_size(tmp_path: Path) -> None:
    wide = {**image(5), "features": np.ones((REGIONS, SIZE + 3), np.float32)}
    row = "\t".join(map(str, bottom_up(wide)))
    write_table(tmp_path / "data" / "t.tsv", "bottom-up", [7, 42])
    table = tmp_path / "data" / "t.tsv"
    table.write_text(f"{row}\n{table.read_text()}")
    result = extract_dataset(open_dataset(tmp_path / "data"), tmp_path / "store")
    assert result.store.feature_size == SIZE and result.store.image_ids == [7, 42]
    said = f"{table}: line 1 (image '5'): its vectors have {SIZE + 3} numbers, most others {SIZE}"
    assert result.problems == [said]


def vinvl_objects(item: dict[str, Any], *parts: str) -> list[dict[str, Any]]:
    every = {
        "rect": item["boxes"].tolist(),
        "class": ["dog"] * REGIONS,
        "conf": item["object_scores"].tolist(),
        "feature": [packed(np.repeat(row, 20)) for row in item["features"]],
    }
    return [{part: every[part][row] for part in parts} for row in range(REGIONS)]


def write_vinvl(data: Path, form: str, numbers: list[int]) -> None:
    """As published: features with the six numbers of place at their end, labels in another file and order."""
    rows, labels, sizes = [], [], []
    for number in numbers:
        item = image(number)
        size = np.array([200, 100, 200, 100], np.float32)
        place = item["boxes"] / size
        sides = place[:, 2:] - place[:, :2]
        features = np.concatenate([np.repeat(item["features"], 20, axis=1), place, sides], axis=1)
        if form == "json":
            content = json.dumps({"num_boxes": REGIONS, "features": packed(features)})
        elif form == "columns":
            content = f"{REGIONS}\t{packed(features)}"
        else:
            content = json.dumps({"objects": vinvl_objects(item, "class", "conf", "rect", "feature")})
        rows.append(f"{number}\t{content}\n")
        labels.append(f"{number}\t{json.dumps(vinvl_objects(item, 'class', 'conf', 'rect'))}\n")
        sizes.append(f"{number}\t{json.dumps([{'height': 100, 'width': 200}])}\n")
    data.mkdir()
    if form == "objects":
        (data / "predictions.tsv").write_text("".join(rows))
        (data / "hw.tsv").write_text("".join(sizes))
    else:
        (data / "val.features.tsv").write_text("".join(rows))
        (data / "val.labels.tsv").write_text("".join(reversed(labels)))


def write_named(file: Path, names: list[str]) -> None:
    rows = [bottom_up({**image(number), "name": f"{number:012}"}) for number in range(len(names))]
    lines = ["\t".join(map(str, [name, *row[1:]])) for name, row in zip(names, rows, strict=True)]
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def write_questions(data: Path, image_ids: list[Any]) -> None:
    questions = [{"image_id": it, "question": "what?", "question_id": n} for n, it in enumerate(image_ids)]
    answers = [
        {"question_id": n, "image_id": it, "answers": [{"answer": "box"}]} for n, it in enumerate(image_ids)
    ]
    (data / "train_questions.json").write_text(json.dumps({"questions": questions}))
    (data / "train_annotations.json").write_text(json.dumps({"annotations": answers}))


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (["viz_train_00000000.jpg", "viz_val_00000000.jpg"], ["viz_train_00000000.jpg", "viz_val_00000000"]),
        (["42", "43"], ["42", "43"]),
        (["42", "43"], [42, 43]),
        (["n161313", "n2"], ["n161313", "n2"]),
        (["dev-1-0-img0", "dev-1-0-img1", "dev-2-0-img0"], ["dev-2-0-img0", "dev-1-0-img1.png"]),
        (["COCO_val2014_000000000042", "000000000007"], [42, "7"]),
    ],
)  # fmt: skip
def test_rows_and_questions_that_name_an_image_alike_meet(
    tmp_path: Path, names: list[str], asked: list[Any]
) -> None:
    write_named(tmp_path / "data" / "all.tsv", names)
    write_questions(tmp_path / "data", asked)
    dataset = open_dataset(tmp_path / "data")
    result = extract_dataset(dataset, tmp_path / "store")
    assert len(result.store) == len(names) and not result.problems
    questions = dataset.questions("train")
    assert len({item.image_id for item in questions}) == len(asked)
    assert all(item.image_id in result.store for item in questions)


@pytest.mark.parametrize("form", ["json", "columns", "objects"])
def test_a_store_of_vinvl(tmp_path: Path, form: str) -> None:
    write_vinvl(tmp_path / "data", form, [7, 42, 3])
    dataset = open_dataset(tmp_path / "data")
    assert dataset.layouts == ("feature-tables",) and len(dataset.feature_tables()) == 1
    result = extract_dataset(dataset, tmp_path / "store")
    assert result.problems == [] and result.store.image_ids == [7, 42, 3]
    assert result.store.feature_size == 20 * SIZE
    for number in (7, 42, 3):
        found, expected = result.store[number], image(number)
        np.testing.assert_array_equal(found.boxes, expected["boxes"])
        np.testing.assert_array_equal(found.features[:, ::20], expected["features"].astype(np.float16))
        np.testing.assert_array_equal(found.object_scores, expected["object_scores"])
        assert (found.image_width, found.image_height) == (200, 100)


def test_a_size_that_no_table_tells_is_the_pictures_or_said_to_be_a_guess(tmp_path: Path) -> None:
    write_vinvl(tmp_path / "data", "objects", [7, 42, 3])
    (tmp_path / "data" / "hw.tsv").unlink()
    Image.new("RGB", (200, 100)).save(tmp_path / "data" / "7.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "data" / "3.png")  # scaled down: the boxes reach beyond it
    result = extract_dataset(open_dataset(tmp_path / "data"), tmp_path / "store")
    ends = {number: image(number)["boxes"][:, 2:].max(axis=0) for number in (42, 3)}
    assert result.store.size_of(7) == (200, 100)
    for number, (width, height) in ends.items():
        assert result.store.size_of(number) == (round(width), round(height))
    (note,) = result.problems
    assert note.startswith("2 images, such as 42: nothing tells their width and height")


def test_vinvl_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_vinvl(tmp_path / "data", "json", [7, 42, 3])
    labels = tmp_path / "data" / "val.labels.tsv"
    lines = labels.read_text().splitlines()
    labels.write_text(
        "\n".join([lines[0].replace('"rect"', '"box"'), lines[1][: len(lines[1]) // 2], lines[2]])
    )
    result = extract_dataset(open_dataset(tmp_path / "data"), tmp_path / "store")
    assert result.store.image_ids == [7]
    assert len(result.problems) == 2 and all("line" in problem for problem in result.problems)
    labels.unlink()
    with pytest.raises(DataError, match="no labels"):
        extract_dataset(open_dataset(tmp_path / "data"), tmp_path / "none")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_table_never_gives_more_than_messages(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("damaged")
    form = data.draw(st.sampled_from([*FORMATS, "json", "columns", "objects"]))
    if form in FORMATS:
        write_table(place / "data" / "t.tsv", form, [7, 42])
    else:
        write_vinvl(place / "data", form, [7, 42])
    for path in sorted((place / "data").iterdir()):
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
        for row in [] if path.name in ("hw.tsv", "val.labels.tsv") else rows_or_none(path):
            with contextlib.suppress(DataError):
                assert len(row.read(1)) > 0


def rows_or_none(path: Path) -> list[FeatureRow]:
    try:
        return list(feature_rows(path))
    except DataError as error:
        assert str(path) in error.message
        return []


def test_hdf5_padded_and_end_to_end(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    items = [image(7), image(42)]
    spatial = np.stack([item["boxes"] / [200, 100, 200, 100] for item in items])
    (tmp_path / "padded").mkdir()
    with h5py.File(tmp_path / "padded" / "val36.hdf5", "w") as file:
        file["image_features"] = np.stack([item["features"] for item in items])
        file["image_bb"] = np.stack([item["boxes"] for item in items])
        file["spatial_features"] = spatial
        file["image_ids"] = np.array([7, 42])
    (tmp_path / "joined").mkdir()
    with h5py.File(tmp_path / "joined" / "val.h5", "w") as file:
        file["image_features"] = np.concatenate([item["features"] for item in items])
        file["image_bb"] = np.concatenate([item["boxes"] for item in items])
        file["spatial_features"] = np.concatenate(list(spatial))
        file["pos_boxes"] = np.array([[0, REGIONS], [REGIONS, 2 * REGIONS]])
    (tmp_path / "joined" / "val_imgid2idx.json").write_text(json.dumps({"7": 0, "42": 1}))
    for name in ("padded", "joined"):
        store = extract_dataset(open_dataset(tmp_path / name), tmp_path / f"{name}-store").store
        assert store.image_ids == [7, 42]
        assert (store[7].image_width, store[7].image_height) == (200, 100)
        np.testing.assert_array_equal(store[42].boxes, items[1]["boxes"])
    (tmp_path / "joined" / "val_imgid2idx.json").unlink()
    with pytest.raises(DataError, match="which row is which image"):
        extract_dataset(open_dataset(tmp_path / "joined"), tmp_path / "none")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "val.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="no whole HDF5 file"):
        extract_dataset(open_dataset(tmp_path / "broken"), tmp_path / "none")


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"train36_imgid2idx.pkl": [11, 12]}, [11, 12]),
        ({"train36_imgid2idx.json": [11, 12], "val36_imgid2idx.json": [21, 22]}, [11, 12]),
        ({"a_imgid2idx.json": [11, 12], "b_imgid2idx.json": [11, 12]}, [11, 12]),
        ({"a_imgid2idx.json": [11, 12], "train36_imgid2idx.json": [5, 6]}, [5, 6]),
        ({"a_imgid2idx.json": [11, 12], "b_imgid2idx.json": [21, 22]}, "2 tables beside it"),
        ({"val36_imgid2idx.json": [21, 22]}, "which row is which image"),
        ({"train36_imgid2idx.json": [21, 22, 23]}, "which row is which image"),
        ({"train36_imgid2idx.pkl": DataError}, "refused|plain|not"),
    ],
)
def test_rows_of_hdf5_are_named_by_their_own_table(
    tmp_path: Path, tables: dict[str, Any], expected: list[int] | str
) -> None:
    """Never by another split's that happens to be as long; pickles only where they run nothing."""
    h5py = pytest.importorskip("h5py")
    items = [image(7), image(42)]
    data = tmp_path / "data"
    data.mkdir()
    with h5py.File(data / "train36.hdf5", "w") as file:
        file["image_features"] = np.stack([item["features"] for item in items])
        file["image_bb"] = np.stack([item["boxes"] for item in items])
    for name, ids in tables.items():
        table = ids if isinstance(ids, type) else {number: row for row, number in enumerate(ids)}
        content = pickle.dumps(table, 2) if name.endswith(".pkl") else json.dumps(table).encode()
        (data / name).write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            extract_dataset(open_dataset(data), tmp_path / "store")
    else:
        store = extract_dataset(open_dataset(data), tmp_path / "store").store
        assert store.image_ids == expected
        np.testing.assert_array_equal(store[expected[1]].boxes, items[1]["boxes"])


def test_another_tsv_is_no_table_of_features(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.tsv").write_text("a\tb\tc\n1\t2\t3\n")
    fails("extract-features", "data", cwd=tmp_path, code=1, says="no dataset recognised")
    with pytest.raises(DataError, match="none of its first lines"):
        list(feature_rows(tmp_path / "data" / "notes.tsv"))
