"""Shards, the feature store, import of features, and what happens when writing is cut short."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import succeeds
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import tbkin_core.features.store as store_module
from tbkin_core.boxes import pairwise_iou
from tbkin_core.datasets import open_dataset
from tbkin_core.errors import DataError
from tbkin_core.features.extract import extract_dataset
from tbkin_core.features.image_files import read_feature_file
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FEATURES, FeatureStore, batch_of_one
from tbkin_core.features.writing import FeatureStoreWriter, write_feature_store
from tbkin_core.graphs.store import GRAPHS
from tbkin_core.support.files import atomic_directory, atomic_path, make_directory, write_json, write_text
from tbkin_core.support.shards import (
    FORMAT_VERSION,
    MANIFEST,
    StoreWriter,
    ragged_gather,
    ragged_offsets,
    read_shard,
    read_store,
    write_shard,
)

SIZE = 5
SETTINGS = {
    "extractor": "test",
    "feature_size": SIZE,
    "object_names": ["dog", "cat"],
    "attribute_names": ["red"],
}
DTYPES = (np.float16, np.float32, np.float64, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_)


def regions_of(image_id: int | str, count: int, seed: int = 0, labels: bool = True) -> RegionFeatures:
    source = np.random.default_rng(seed)
    corners = source.uniform(0, 50, (count, 4)).astype(np.float32)
    corners[:, 2:] += corners[:, :2] + 1
    known: dict[str, NDArray] = {
        "object_ids": source.integers(-1, 2, count).astype(np.int32),
        "object_scores": source.random(count).astype(np.float32),
        "attribute_ids": source.integers(-1, 1, count).astype(np.int32),
        "attribute_scores": source.random(count).astype(np.float32),
    }
    return RegionFeatures(
        image_id,
        source.normal(size=(count, SIZE)).astype(np.float32),
        corners,
        image_width=int(source.integers(101, 300)),
        image_height=int(source.integers(101, 300)),
        **(known if labels else {}),
    )


def assert_same(found: RegionFeatures, expected: RegionFeatures) -> None:
    assert found.image_id == expected.image_id
    assert (found.image_width, found.image_height) == (expected.image_width, expected.image_height)
    np.testing.assert_array_equal(found.features, expected.features.astype(np.float16))
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    for name in ("object_ids", "object_scores", "attribute_ids", "attribute_scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


IMAGE_IDS = st.integers(0, 2**53) | st.text(min_size=1, max_size=8)
COLLECTIONS = st.lists(
    st.tuples(IMAGE_IDS, st.integers(1, 6)), min_size=1, max_size=8, unique_by=lambda item: item[0]
)


# ---- shards -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_shard_comes_back_as_it_was(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    array = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
    arrays = data.draw(
        st.dictionaries(st.text("abc_", min_size=1, max_size=4), array, min_size=1, max_size=4)
    )
    metadata = data.draw(
        st.dictionaries(
            st.text(min_size=1, max_size=4),
            st.lists(st.integers() | st.text(max_size=4), max_size=3),
            max_size=3,
        )
    )
    path = tmp_path_factory.mktemp("shard") / "shard-00000.safetensors"
    write_shard(path, arrays, metadata)
    found, found_metadata = read_shard(path)
    assert found_metadata == metadata
    assert found.keys() == arrays.keys()
    for name, expected in arrays.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_feature_store(tmp_path / name, SETTINGS, [regions_of(1, 2), regions_of("x", 3)])
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    """Image ids come from file names, and those need not be UTF-8."""
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    path = tmp_path / "shard-00000.safetensors"
    write_shard(path, {"a": np.zeros(1)}, {"image_ids": [name]})
    assert read_shard(path)[1] == {"image_ids": [name]}
    write_json(tmp_path / "names.json", {name: [name]})
    assert json.loads((tmp_path / "names.json").read_text()) == {name: [name]}


@pytest.fixture(scope="module")
def shard_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "shard-00000.safetensors"
    write_shard(path, {"features": np.arange(40.0), "offsets": np.arange(3)}, {"image_ids": [1, "b"]})
    return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_anywhere_is_refused(
    share: float, shard_bytes: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(shard_bytes[: int(share * len(shard_bytes))])
    with pytest.raises(DataError, match="not a whole shard") as caught:
        read_shard(path)
    assert "remove this file" in (caught.value.hint or "")


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_header_never_gives_more_than_a_message(
    place: float, byte: int, shard_bytes: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    header = 8 + int.from_bytes(shard_bytes[:8], "little")
    content = bytearray(shard_bytes)
    content[int(place * header)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        arrays, metadata = read_shard(path)
    except DataError:
        return
    assert isinstance(arrays, dict)
    assert isinstance(metadata, dict)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_shard(tmp_path / "none.safetensors")


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8), data=st.data())
def test_gathering_ragged_rows_equals_slicing_them(lengths: list[int], data: st.DataObject) -> None:
    offsets = ragged_offsets(lengths)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6)), np.int64)
    flat, row, column = ragged_gather(offsets, rows)
    expected = [
        (offsets[number] + place, index, place)
        for index, number in enumerate(rows)
        for place in range(lengths[number])
    ]
    assert list(zip(flat.tolist(), row.tolist(), column.tolist(), strict=True)) == expected


# ---- the feature store --------------------------------------------------------------------------


def geometry(regions: RegionFeatures) -> NDArray[np.float32]:
    """(x1/W, y1/H, x2/W, y2/H, area/(W·H)) of the regions of an image, (K, 5)."""
    width, height = regions.image_width, regions.image_height
    scaled = np.asarray(regions.boxes, np.float32) / np.array([width, height, width, height], np.float32)
    area = (scaled[:, 2] - scaled[:, 0]) * (scaled[:, 3] - scaled[:, 1])
    return np.concatenate([scaled, area[:, None]], axis=1)


@settings(max_examples=30, deadline=None)
@given(images=COLLECTIONS, shard_images=st.integers(1, 4), data=st.data())
def test_a_feature_store_gives_back_what_was_written(
    images: list[tuple[int | str, int]],
    shard_images: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("features")
    expected = {image_id: regions_of(image_id, count, seed) for seed, (image_id, count) in enumerate(images)}
    with FeatureStoreWriter(path, SETTINGS, shard_images) as writer:
        for regions in expected.values():
            writer.add(regions)
    store = FeatureStore(path)
    assert store.image_ids == list(expected)
    assert len(list(path.glob("shard-*"))) == -(-len(images) // shard_images)
    assert (store.extractor, store.feature_size, store.object_names) == ("test", SIZE, ["dog", "cat"])
    for image_id, regions in expected.items():
        assert image_id in store
        assert_same(store[image_id], regions)

    rows = data.draw(st.lists(st.integers(0, len(images) - 1), min_size=1, max_size=6))
    most = data.draw(st.none() | st.integers(1, 7))
    batch = store.gather(rows, most)
    for place, row in enumerate(rows):
        regions = store[store.image_ids[row]]
        count = len(regions) if most is None else min(len(regions), most)
        assert batch.mask[place].sum() == count
        assert batch.mask[place, :count].all()
        np.testing.assert_array_equal(np.asarray(batch.features)[place, :count], regions.features[:count])
        np.testing.assert_array_equal(batch.boxes[place, :count], regions.boxes[:count])
        np.testing.assert_array_equal(batch.object_ids[place, :count], regions.object_ids[:count])
        np.testing.assert_array_equal(batch.object_scores[place, :count], regions.object_scores[:count])
        np.testing.assert_array_equal(batch.attribute_ids[place, :count], regions.attribute_ids[:count])
        np.testing.assert_array_equal(batch.attribute_scores[place, :count], regions.attribute_scores[:count])
        np.testing.assert_allclose(
            batch.geometry[place, :count],
            geometry(regions)[:count],
            rtol=1e-6,
        )
        assert tuple(batch.sizes[place]) == (regions.image_width, regions.image_height)
        assert not np.asarray(batch.features)[place, count:].any()
        assert (batch.object_ids[place, count:] == -1).all()


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6),
    most=st.integers(1, 7),
)
def test_of_too_many_regions_the_whole_image_stays_where_it_is_the_last(
    counts: list[tuple[int, bool]], most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    images = [regions_of(number, count, number) for number, (count, _) in enumerate(counts)]
    for regions, (_, is_whole) in zip(images, counts, strict=True):
        if is_whole:
            regions.boxes[-1] = [0, 0, regions.image_width, regions.image_height]
    store = write_feature_store(tmp_path_factory.mktemp("features"), SETTINGS, images)
    rows = np.arange(len(images))[::-1]
    plain = store.gather(rows, most)
    store.keeps_whole_image = True
    batch = store.gather(rows, most)
    np.testing.assert_array_equal(batch.mask, plain.mask)
    for place, row in enumerate(rows):
        regions, (count, is_whole) = store[store.image_ids[row]], counts[row]
        kept = [*range(min(count, most))]
        if count > most and is_whole:
            kept[-1] = count - 1
        np.testing.assert_array_equal(np.asarray(batch.features)[place, : len(kept)], regions.features[kept])
        np.testing.assert_array_equal(batch.boxes[place, : len(kept)], regions.boxes[kept])
        np.testing.assert_array_equal(batch.object_ids[place, : len(kept)], regions.object_ids[kept])
        np.testing.assert_allclose(batch.geometry[place, : len(kept)], geometry(regions)[kept], rtol=1e-6)


@pytest.mark.parametrize("labels", [True, False])
def test_an_image_in_no_store_gives_the_batch_it_would_give_from_one(tmp_path: Path, labels: bool) -> None:
    regions = regions_of(7, 4, labels=labels)
    regions.features[0, 0] = 1e9
    stored = write_feature_store(tmp_path, SETTINGS, [regions]).gather([0])
    single = batch_of_one(regions)
    for name in stored.__dataclass_fields__:
        found, expected = getattr(single, name), getattr(stored, name)
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, expected, err_msg=name)
    if not labels:
        assert (stored.object_ids == -1).all() and (stored.attribute_ids == -1).all()
        assert not stored.object_scores.any() and not stored.attribute_scores.any()


def test_the_same_picture_under_two_names_is_found(tmp_path: Path) -> None:
    one, other = regions_of("a", 3, seed=1), regions_of("b", 3, seed=2)
    boxes_alone = replace(one, image_id="same boxes", features=one.features + np.float32(1))
    later = replace(one, image_id="later vector", features=one.features * [[1], [1], [2]])
    copies = [replace(one, image_id="copy of a"), replace(other, image_id=7)]
    write_feature_store(tmp_path, SETTINGS, [one, other, boxes_alone, later, *copies])
    store = FeatureStore(tmp_path)
    found = store.same_pictures(["copy of a", 7, "same boxes", "later vector"], ["a", "b", 7])
    assert found == {"copy of a": "a", 7: "b"}
    assert store.same_pictures(["a"], []) == {}


def test_features_beyond_half_precision_are_clipped(tmp_path: Path) -> None:
    regions = regions_of(1, 2)
    regions.features[:, 0] = [1e9, -1e9]
    store = write_feature_store(tmp_path, SETTINGS, [regions])
    np.testing.assert_array_equal(store[1].features[:, 0], [65504, -65504])


def test_a_shard_is_read_by_safetensors_as_documented(tmp_path: Path) -> None:
    """The lines at the top of the store module, as a user would copy them."""
    images = [regions_of(1, 2), regions_of("b", 3, 1)]
    write_feature_store(tmp_path / "features", SETTINGS, images)
    lines = re.findall(r"^(?:from|shard).*$", store_module.__doc__ or "", flags=re.MULTILINE)
    assert len(lines) == 3
    scope: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec("\n".join(lines), scope)
    finally:
        os.chdir(before)
    shard = scope["shard"]
    begin, end = shard["offsets"][1:3]
    np.testing.assert_array_equal(shard["boxes"][begin:end], images[1].boxes)
    np.testing.assert_array_equal(shard["features"][begin:end], images[1].features.astype(np.float16))


def test_an_interrupted_writer_goes_on(tmp_path: Path) -> None:
    images = [regions_of(number, 2 + number % 3, number) for number in range(7)]
    with pytest.raises(KeyboardInterrupt), FeatureStoreWriter(tmp_path, SETTINGS, 2) as writer:
        for regions in images[:5]:
            writer.add(regions)
        raise KeyboardInterrupt
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert not manifest["complete"]
    with FeatureStoreWriter(tmp_path, SETTINGS, 2) as writer:
        assert writer.done == {0, 1, 2, 3}, "an interruption costs the shard that is being filled"
        for regions in images:
            if regions.image_id not in writer.done:
                writer.add(regions)
    assert json.loads((tmp_path / MANIFEST).read_text())["complete"]
    store = FeatureStore(tmp_path)
    assert store.image_ids == list(range(7))
    for regions in images:
        assert_same(store[regions.image_id], regions)


def test_content_is_of_the_images_asked_for_and_of_their_vectors(tmp_path: Path) -> None:
    images = [regions_of(number, 2) for number in range(5)]
    store = write_feature_store(tmp_path / "store", SETTINGS, images[:3])
    before = store.content([0, 2])
    assert before == store.content([2, 0, "absent"]) != store.content([])
    with FeatureStoreWriter(tmp_path / "store", SETTINGS) as writer:
        for regions in images[3:]:
            writer.add(regions)
    later = FeatureStore(tmp_path / "store")
    assert later.content([0, 2]) == before != later.content([0, 4])
    # The same boxes with other vectors, of which the fingerprint says nothing.
    images[2] = replace(images[2], features=images[2].features + 1)
    other = write_feature_store(tmp_path / "other", SETTINGS, images[:3])
    assert other.fingerprint() == store.fingerprint() and other.content([0, 2]) != before


def test_what_is_written_is_not_added_to(tmp_path: Path) -> None:
    with FeatureStoreWriter(tmp_path, SETTINGS) as writer:
        for number in range(3):
            writer.add(regions_of(number, 2))
            writer.flush()
    assert FeatureStore(tmp_path).image_ids == [0, 1, 2]


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-3]), Path.unlink])
def test_a_damaged_shard_is_reported_and_made_again(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    images = [regions_of(number, 2, number) for number in range(6)]
    with FeatureStoreWriter(tmp_path, SETTINGS, 2) as writer:
        for regions in images:
            writer.add(regions)
    damage(tmp_path / "shard-00001.safetensors")
    with pytest.raises(DataError, match="shard-00001"):
        FeatureStore(tmp_path)
    with FeatureStoreWriter(tmp_path, SETTINGS, 2) as writer:
        assert writer.done == {0, 1, 4, 5}
        writer.add(images[2])
        writer.add(images[3])
    store = FeatureStore(tmp_path)
    for regions in images:
        assert_same(store[regions.image_id], regions)


def test_a_shard_that_no_manifest_names_is_written_over(tmp_path: Path) -> None:
    """Cut off between the shard and the manifest: the shard counts as not written."""
    write_feature_store(tmp_path, SETTINGS, [regions_of(1, 2)])
    write_shard(tmp_path / "shard-00001.safetensors", {"a": np.zeros(2)}, {"image_ids": [2]})
    with FeatureStoreWriter(tmp_path, SETTINGS) as writer:
        assert writer.done == {1}
        writer.add(regions_of(2, 3))
    assert FeatureStore(tmp_path).image_ids == [1, 2]


@pytest.mark.parametrize("name", ["00000-backup", "7", "000123", "٠٠٠٠١"])
def test_files_that_are_only_named_like_shards_are_none(tmp_path: Path, name: str) -> None:
    write_feature_store(tmp_path, SETTINGS, [regions_of(7, 2)])
    mine = tmp_path / f"shard-{name}.safetensors"
    write_shard(mine, *read_shard(tmp_path / "shard-00000.safetensors"))
    before = mine.read_bytes()
    with FeatureStoreWriter(tmp_path, SETTINGS) as writer:
        writer.add(regions_of(8, 2))
    assert FeatureStore(tmp_path).image_ids == [7, 8] and mine.read_bytes() == before
    assert read_store(tmp_path, FEATURES)[0].shards == ["shard-00000.safetensors", "shard-00001.safetensors"]


def test_other_settings_are_not_mixed_with(tmp_path: Path) -> None:
    write_feature_store(tmp_path, SETTINGS, [regions_of(1, 2)])
    with pytest.raises(DataError, match=r"other settings \(extractor, regions\)") as caught:
        FeatureStoreWriter(tmp_path, {**SETTINGS, "extractor": "other", "regions": 3})
    assert "--overwrite" in (caught.value.hint or "")
    assert_same(FeatureStore(tmp_path)[1], regions_of(1, 2))


def test_a_store_of_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "graphs", GRAPHS, {}).list_shards([], complete=True)
    with pytest.raises(DataError, match="'graphs'"):
        FeatureStoreWriter(tmp_path / "graphs", SETTINGS)
    with pytest.raises(DataError, match="expected a store of features"):
        FeatureStore(tmp_path / "graphs")
    write_feature_store(tmp_path / "old", SETTINGS, [regions_of(1, 2)])
    content = json.loads((tmp_path / "old" / MANIFEST).read_text())
    (tmp_path / "old" / MANIFEST).write_text(json.dumps({**content, "format_version": 99}))
    for opening in (FeatureStore, lambda path: FeatureStoreWriter(path, SETTINGS)):
        with pytest.raises(DataError, match="version"):
            opening(tmp_path / "old")


MANIFEST_CONTENT = {
    "kind": "features", "format_version": FORMAT_VERSION, "complete": True, "settings": {}, "shards": [],
    "extra": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"kind": "features", "format_version": 1}',
        "null",
        "\xff",
        *(
            json.dumps({**MANIFEST_CONTENT, **change})
            for change in (
                {"shards": 5},
                {"shards": ["../elsewhere.safetensors"]},
                {"shards": [None]},
                {"settings": None},
                {"extra": []},
                {"complete": "yes"},
            )
        ),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError):
        read_store(tmp_path, FEATURES)
    with pytest.raises(DataError):
        StoreWriter(tmp_path, FEATURES, SETTINGS)


def test_an_empty_or_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with FeatureStoreWriter(tmp_path / "empty", SETTINGS):
        pass
    for name in ("empty", "none"):
        with pytest.raises(DataError) as caught:
            FeatureStore(tmp_path / name)
        assert "extract-features" in (caught.value.hint or "")
    store = write_feature_store(tmp_path / "one", SETTINGS, [regions_of(1, 2)])
    with pytest.raises(DataError, match="no features for image '1'"):
        store["1"]


def test_images_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    good = regions_of(1, 2)

    def changed(**values: Any) -> RegionFeatures:
        fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
        return RegionFeatures(**{**fields, **values})

    wrong = {
        "boxes must be": changed(boxes=np.zeros((2, 5), np.float32)),
        "K > 0": regions_of(2, 0),
        "features must be": changed(features=np.zeros((2, SIZE + 1), np.float32)),
        "not finite": changed(features=np.full((2, SIZE), np.nan, np.float32)),
        "object_ids must be": changed(object_ids=np.zeros(3, np.int32)),
    }
    writer = FeatureStoreWriter(tmp_path, SETTINGS)
    for message, regions in wrong.items():
        with pytest.raises(DataError, match=message):
            writer.add(regions)
    writer.add(good)
    with pytest.raises(DataError, match="already"):
        writer.add(good)


def test_every_number_of_half_precision_is_read_exactly(tmp_path: Path) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    features = np.concatenate([halves, np.zeros(-len(halves) % 8, np.float16)]).reshape(8, -1)
    boxes = np.array([[0, 0, 5, 5]] * 8, np.float32)
    settings = {**SETTINGS, "feature_size": features.shape[1]}
    images = [RegionFeatures(1, features, boxes, 9, 9), RegionFeatures(2, features[:3], boxes[:3], 9, 9)]
    batch = write_feature_store(tmp_path, settings, images).gather([1, 0])
    np.testing.assert_array_equal(np.asarray(batch.features)[1], features.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(batch.features)[0, :3], features[:3].astype(np.float32))
    assert not np.asarray(batch.features)[0, 3:].any()
    assert (np.signbit(np.asarray(batch.features)[1]) == np.signbit(features)).all()


def test_a_store_of_before_is_read_and_gone_on_with(tmp_path: Path) -> None:
    """Shards once carried neither the digest of their settings nor the images that failed."""
    whole = write_feature_store(tmp_path / "new", SETTINGS, [regions_of(1, 2), regions_of(2, 3)])
    arrays, _ = read_shard(tmp_path / "new" / "shard-00000.safetensors")
    write_shard(tmp_path / "old" / "shard-00000.safetensors", arrays, {"image_ids": [1, 2]})
    manifest = json.loads((tmp_path / "new" / MANIFEST).read_text())
    write_json(tmp_path / "old" / MANIFEST, {**manifest, "complete": False})
    with FeatureStoreWriter(tmp_path / "old", SETTINGS) as writer:
        assert writer.done == {1, 2}
        writer.add(regions_of(3, 4))
    store = FeatureStore(tmp_path / "old")
    assert store.complete and store.image_ids == [1, 2, 3]
    assert_same(store[2], whole[2])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_store_never_gives_more_than_a_message(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes of a shard or the manifest change, or their JSON does: what is read is whole, or one error."""
    place = tmp_path_factory.getbasetemp() / "damaged-store"
    shutil.rmtree(place, ignore_errors=True)
    write_feature_store(place, SETTINGS, [regions_of(1, 2), regions_of(2, 3)])
    name = data.draw(st.sampled_from([MANIFEST, "shard-00000.safetensors"]))
    content = bytearray((place / name).read_bytes())
    if name == MANIFEST and data.draw(st.booleans()):
        manifest = json.loads(content)
        part = data.draw(st.sampled_from([manifest, manifest["settings"]]))
        key = data.draw(st.sampled_from(sorted(part)))
        part[key] = data.draw(st.sampled_from([None, 3, -1, "x", [], {}, [None], ["x"], True]))
        (place / name).write_text(json.dumps(manifest))
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, min(len(content), 1500) - 1))] = data.draw(st.integers(0, 255))
        (place / name).write_bytes(content)
    try:
        store = FeatureStore(place)
        for image_id in store.image_ids:
            assert len(store[image_id]) >= 1
        store.gather(range(len(store)))
    except DataError as error:
        assert str(place) in error.message
    with contextlib.suppress(DataError), FeatureStoreWriter(place, SETTINGS) as writer:
        for number in (1, 2):
            if number not in writer.done:
                writer.add(regions_of(number, 2))


# ---- import -------------------------------------------------------------------------------------


def write_npz(path: Path, **changes: Any) -> Path:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 30]], np.float32)
    content: dict[str, Any] = {"x": np.ones((2, SIZE), np.float32), "boxes": boxes, "image_h": 40}
    content = {**content, "image_w": np.array([50]), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    np.savez(path, **content)
    return path


def test_bottom_up_files_are_read_with_either_set_of_keys(tmp_path: Path) -> None:
    plain = read_feature_file(write_npz(tmp_path / "a.npz"), 7)
    assert (plain.image_id, plain.image_width, plain.image_height) == (7, 50, 40)
    assert not len(plain.object_ids)  # the store says -1
    boxes = plain.boxes
    labelled = read_feature_file(
        write_npz(
            tmp_path / "b.npz",
            boxes=None,
            bbox=boxes,
            objects_id=[3, 4],
            objects_conf=np.array([[0.5], [0.25]]),
        ),
        "b",
    )
    np.testing.assert_array_equal(labelled.boxes, boxes)
    np.testing.assert_array_equal(labelled.object_ids, [3, 4])
    np.testing.assert_array_equal(labelled.object_scores, np.array([0.5, 0.25], np.float32))
    assert labelled.object_ids.dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "lacks x"),
        ({"boxes": None}, "lacks bbox"),
        ({"boxes": np.zeros((2, 5))}, "boxes"),
        ({"x": np.zeros((0, SIZE)), "boxes": np.zeros((0, 4))}, "expected x"),
        ({"image_w": 0}, "not positive"),
        ({"image_w": np.inf}, "not a whole"),
        ({"image_h": np.array([1, 2])}, "not a whole"),
        ({"objects_id": np.zeros(3)}, "3 entries for 2"),
        ({"num_bbox": 3}, "num_bbox is 3, of 2 rows"),
        ({"num_bbox": 0}, "num_bbox is 0"),
        ({"objects_id": np.array(["a", "b"])}, "not a whole"),
        ({"x": np.array([{}, {}], dtype=object)}, "not a whole"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_feature_file(write_npz(tmp_path / "a.npz", **changes), 1)


def test_of_too_many_regions_the_surest_stay_and_this_is_said(tmp_path: Path) -> None:
    """In "adaptive" files rows come in no order; padded ones say how many of them are regions."""
    corners = np.arange(8, dtype=np.float32)[:, None] + [0, 0]
    boxes = np.concatenate([corners, corners + 5], axis=1)
    features = np.repeat(np.arange(8, dtype=np.float32)[:, None], SIZE, axis=1)
    given = {"x": features, "boxes": boxes, "objects_id": np.arange(1, 9)}
    sure = np.array([0.1, 0.9, 0.3, 0.8, 0.7, 0.2, 0.95, 0.99], np.float32)
    data = tmp_path / "data"
    data.mkdir()
    write_npz(data / "1.npz", **given, objects_conf=sure)
    write_npz(data / "2.npz", **given, objects_conf=sure, num_bbox=6)
    write_npz(data / "3.npz", **{**given, "objects_id": None})
    write_npz(data / "4.npz", **given, objects_conf=sure[:3], num_bbox=3)
    result = extract_dataset(open_dataset(data), tmp_path / "store", max_regions=3)
    kept = {number: result.store[number].features[:, 0].tolist() for number in (1, 2, 3, 4)}
    assert kept == {1: [7, 6, 1], 2: [1, 3, 4], 3: [0, 1, 2], 4: [0, 1, 2]}
    for number in (1, 2):
        regions = result.store[number]
        np.testing.assert_array_equal(regions.object_ids - 1, kept[number])
        np.testing.assert_array_equal(regions.boxes, boxes[regions.object_ids - 1])
        np.testing.assert_array_equal(regions.object_scores, sure[regions.object_ids - 1])
    sure_ones, first_ones = result.problems
    assert sure_ones.startswith("2 images have more regions") and "highest confidence" in sure_ones
    assert first_ones.startswith("1 images have more regions") and "no confidence" in first_ones
    assert "8 are left out" in sure_ones and "5 are left out" in first_ones


@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.none() | st.integers(0, 255))
def test_a_damaged_file_never_gives_more_than_a_message(
    place: float, byte: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_npz(tmp_path_factory.getbasetemp() / "damaged.npz")
    content = bytearray(path.read_bytes())
    if byte is None:
        content = content[: int(place * len(content))]
    else:
        content[int(place * len(content))] = byte
    path.write_bytes(content)
    try:
        assert read_feature_file(path, 1).features.shape == (2, SIZE)
    except DataError as error:
        assert str(path) in error.message


def test_files_of_the_public_extractor(shared_data: Path) -> None:
    files = sorted((shared_data / "butd_coco8").rglob("*.npz"))
    assert files
    regions = read_feature_file(files[0], 1)
    assert regions.features.shape == (36, 2048)
    assert (regions.boxes[:, 2] <= regions.image_width).all()
    assert (regions.boxes[:, 2:] > regions.boxes[:, :2]).all()


# ---- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(error), atomic_path(file) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        raise error
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_directory_takes_the_place_of_another_or_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("first", "second"):
        with atomic_directory(target) as temporary:
            (temporary / content).write_text(content)
        assert [entry.name for entry in target.iterdir()] == [content]
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "third").write_text("third")
        raise RuntimeError
    assert [entry.name for entry in target.iterdir()] == ["second"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_directory_comes_back_where_its_replacement_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.replace

    def refuse(source: Path, place: Path) -> Path:
        if place == target and not source.name.endswith("-old"):
            raise OSError(errno.EBUSY, "busy")
        return rename(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(DataError, match="cannot write here"), atomic_directory(target):
            pass
    assert [entry.name for entry in target.iterdir()] == ["old"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="cannot write here"), atomic_directory(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "model"]


REFUSALS = {errno.ENOSPC: "free some space", errno.EACCES: "--out", errno.EROFS: "--out"}


@pytest.fixture(params=sorted(REFUSALS), ids=lambda number: errno.errorcode[number])
def refusal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The disk refuses what is synced to it from now on (as root, permissions would not)."""

    def refuse(descriptor: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        yield request.param


def test_a_refusing_disk_is_one_clear_error(tmp_path: Path, refusal: int) -> None:
    with pytest.raises(DataError, match="cannot write here") as caught:
        write_text(tmp_path / "a.txt", "x")
    assert REFUSALS[refusal] in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="cannot write here"):
        write_shard(tmp_path / "shard-00000.safetensors", {"a": np.zeros(3)}, {})


@contextlib.contextmanager
def small_files_only() -> Iterator[None]:
    """The operating system refuses to write more than 4 kB to one file."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_refusal_in_the_midst_of_a_file_is_one_clear_error(tmp_path: Path) -> None:
    """safetensors raises an error of its own kind, which hides the system's; so does torch."""
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with small_files_only(), pytest.raises(DataError, match="cannot write here"):
        write_text(file, "x" * 10_000)
    with small_files_only(), pytest.raises(DataError, match="cannot write here"):
        write_shard(tmp_path / "shard-00000.safetensors", {"a": np.zeros(10_000)}, {})
    with (
        small_files_only(),
        pytest.raises(DataError, match="cannot write here"),
        atomic_path(tmp_path / "model.pt") as temporary,
        temporary.open("wb") as opened,
    ):
        torch.save(torch.zeros(10_000), opened)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "old"


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path: Path) -> None:
    images = [regions_of(number, 2 if number < 2 else 100, number) for number in range(6)]
    with FeatureStoreWriter(tmp_path, SETTINGS, 2) as writer:
        for regions in images[:2]:
            writer.add(regions)
    with (
        small_files_only(),
        pytest.raises(DataError, match="cannot write here"),
        FeatureStoreWriter(tmp_path, SETTINGS, 2) as writer,
    ):
        for regions in images[2:]:
            writer.add(regions)
    with FeatureStoreWriter(tmp_path, SETTINGS, 2) as writer:
        assert writer.done == {0, 1}
        for regions in images[2:]:
            writer.add(regions)
    store = FeatureStore(tmp_path)
    for regions in images:
        assert_same(store[regions.image_id], regions)


def test_a_file_where_a_directory_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(DataError, match="cannot write here") as caught:
            make_directory(path)
        assert caught.value.hint


# ---- geometry -----------------------------------------------------------------------------------

CORNERS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.just(4)), elements=st.integers(0, 20).map(float)
)


@settings(max_examples=60, deadline=None)
@given(first=CORNERS, second=CORNERS)
def test_iou_counts_shared_cells(first: NDArray, second: NDArray) -> None:
    """Boxes on whole pixels: IoU is a ratio of numbers of cells."""

    def cells(box: NDArray) -> set[tuple[int, int]]:
        x1, y1, x2, y2 = (int(side) for side in box)
        return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}

    for found, others in ((pairwise_iou(first, second), second), (pairwise_iou(first), first)):
        for row, box in enumerate(first):
            for column, other in enumerate(others):
                one, two = cells(box), cells(other)
                expected = len(one & two) / len(one | two) if one | two else 0
                assert found[row, column] == pytest.approx(expected, abs=1e-6)


def test_a_damaged_shard_is_made_again(workspace: Path) -> None:
    line = ["extract-features", "coco", "--workers", "0"]
    succeeds(*line, cwd=workspace)
    shard = workspace / "coco/features/shard-00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9] + bytes([whole[-9] ^ 64]) + whole[-8:])
    assert "shard-00000.safetensors" in succeeds(*line, cwd=workspace).err
    assert shard.read_bytes() == whole
