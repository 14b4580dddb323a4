"""Detectors of three families, tiny and untrained, saved to disk and loaded as those of the hub are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails, succeeds
from PIL import Image
from tiny_models import DETECTORS, NAMES, detr, yolos

from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError, MissingDependencyError
from tbkin_core.features.extract import extract_dataset
from tbkin_core.features.extractors.base import regions_of_file
from tbkin_core.features.extractors.fixed_class import DetectorExtractor, corners
from tbkin_core.features.extractors.opening import reopen_extractor
from tbkin_core.features.store import FeatureStore


@pytest.fixture(scope="module", params=DETECTORS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("detector") / request.param
    DETECTORS[request.param](place)
    return place


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures of two shapes, and a text file that calls itself one."""
    place = tmp_path / "photos"
    place.mkdir()
    chance = np.random.default_rng(0)
    for number, size in enumerate([(120, 90), (90, 120), (120, 90), (90, 120), (120, 90)], start=1):
        pixels = chance.integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(place / f"photo_{number}.png")
    (place / "photo_6.png").write_text("no picture")
    return place


def pictures(photos: Path) -> dict[int, Any]:
    found = {number: np.asarray(Image.open(photos / f"photo_{number}.png")) for number in range(1, 6)}
    return {number: (pixels, pixels.shape[1], pixels.shape[0]) for number, pixels in found.items()}


def test_regions_lie_in_the_image_best_first(model: Path, photos: Path) -> None:
    detector = DetectorExtractor(str(model), max_regions=6)
    assert detector.object_names[1:4] == ("traffic light", "dog", "television")
    images = pictures(photos)
    found = detector.extract([detector.prepare(number, *image) for number, image in images.items()])
    assert [regions.image_id for regions in found] == list(images)
    for regions in found:
        _, width, height = images[int(regions.image_id)]
        assert regions.features.shape == (6, detector.feature_size) == (6, 16)
        assert (regions.boxes[:, :2] >= 0).all()
        assert (regions.boxes[:, 2:] <= [width, height]).all()
        assert (regions.boxes[:, 2:] - regions.boxes[:, :2] >= 1 - 1e-4).all()
        assert (np.diff(regions.object_scores) <= 0).all()
        assert ((regions.object_ids >= 0) & (regions.object_ids < len(NAMES))).all()
    assert not np.array_equal(found[0].features, found[2].features)


def test_a_batch_equals_its_images_one_by_one(model: Path, photos: Path) -> None:
    detector = DetectorExtractor(str(model), max_regions=6)
    prepared = [detector.prepare(number, *image) for number, image in pictures(photos).items()]
    together = detector.extract(prepared)
    for picture, regions in zip(prepared, together, strict=True):
        (alone,) = detector.extract([picture])
        np.testing.assert_allclose(alone.features, regions.features, atol=1e-4)
        np.testing.assert_allclose(alone.boxes, regions.boxes, atol=1e-2)


def test_against_the_post_processing_of_transformers(model: Path, photos: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    detector = DetectorExtractor(str(model), max_regions=100)
    processor = AutoImageProcessor.from_pretrained(model)
    reference = AutoModelForObjectDetection.from_pretrained(model).eval()
    pixels, width, height = pictures(photos)[1]
    inputs = processor(images=Image.fromarray(pixels), return_tensors="pt")
    with torch.no_grad():
        output = reference(
            **{name: inputs[name] for name in inputs if name in ("pixel_values", "pixel_mask")}
        )
    (expected,) = processor.post_process_object_detection(
        output, threshold=-1.0, target_sizes=[(height, width)]
    )
    (found,) = detector.extract([detector.prepare(1, pixels, width, height)])
    best = float(expected["scores"].max())
    assert float(found.object_scores[0]) == pytest.approx(best, abs=1e-4)
    place = int(expected["scores"].argmax())
    box = expected["boxes"][place].numpy().clip(0, [width, height, width, height])
    np.testing.assert_allclose(found.boxes[0], box, atol=0.5)
    assert int(found.object_ids[0]) == int(expected["labels"][place])


def test_a_store_of_a_directory(model: Path, photos: Path, tmp_path: Path) -> None:
    dataset = open_dataset(photos)
    result = extract_dataset(
        dataset, tmp_path / "store", str(model), 6, workers=2, batch_size=2, devices="cpu"
    )
    assert (result.made, result.present) == (5, 0)
    assert len(result.problems) == 1 and "photo_6.png" in result.problems[0]
    store = FeatureStore(tmp_path / "store")
    assert store.extractor == "detector"
    # Threads change nothing, and what is there is not made again.
    alone = extract_dataset(
        dataset, tmp_path / "alone", str(model), 6, workers=0, batch_size=1, devices="cpu"
    )
    for image_id in store.image_ids:
        np.testing.assert_allclose(
            np.asarray(store[image_id].features, np.float32),
            np.asarray(alone.store[image_id].features, np.float32),
            atol=1e-2,
        )
    again = extract_dataset(dataset, tmp_path / "store", str(model), 6, devices="cpu")
    assert (again.made, again.present) == (0, 5)
    one = regions_of_file(reopen_extractor(store.settings, "cpu"), photos / "photo_1.png")
    np.testing.assert_allclose(one.boxes, store[1].boxes, atol=1e-2)
    # Other weights under the same name are another extractor.
    shutil.copytree(model, tmp_path / "model")
    settings = {**store.settings, "model": str(tmp_path / "model"), "weights": "0123"}
    with pytest.raises(ConfigError, match="weights"):
        regions_of_file(reopen_extractor(settings, "cpu"), photos / "photo_1.png")


def test_by_the_command(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    yolos(tmp_path / "yolos")
    outcome = succeeds(
        "extract-features",
        "photos",
        "--extractor",
        tmp_path / "yolos",
        "--devices",
        "cpu",
        "--json",
        cwd=tmp_path,
    )
    values = json.loads(outcome.out)
    assert (values["extractor"], values["images"], values["skipped"]) == ("detector", 5, 1)


def test_models_that_cannot_be_had(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    says = ("cannot be loaded", "--extractor builtin")
    fails("extract-features", "photos", "--extractor", "nobody/nothing", cwd=tmp_path, code=1, says=says)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDependencyError, match="this directory"):
        DetectorExtractor(str(tmp_path / "empty"))
    fails("extract-features", "photos", "--extractor", "bultin", cwd=tmp_path, code=2, says="extractor")
    assert not (photos / "features").exists()


def test_an_image_that_the_model_refuses_is_named(photos: Path, tmp_path: Path) -> None:
    """Its processor would make a picture without height of a line; the others of its batch are kept."""
    torch.manual_seed(0)
    detr(tmp_path / "detr")
    Image.new("RGB", (2000, 1), "red").save(photos / "photo_0.png")
    result = extract_dataset(open_dataset(photos), tmp_path / "store", str(tmp_path / "detr"), devices="cpu")
    assert result.store.image_ids == [1, 2, 3, 4, 5]
    assert len(result.problems) == 2
    assert "photo_0.png: the model cannot take this image" in result.problems[0]


def test_a_failure_of_the_model_costs_one_image(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    yolos(tmp_path / "yolos")
    forward = DetectorExtractor._forward

    def failing(self: DetectorExtractor, inputs: dict[str, torch.Tensor]) -> Any:
        if (inputs["pixel_values"] == spoilt).flatten(1).all(1).any():
            raise RuntimeError("a shape that the model\ndoes not like")
        return forward(self, inputs)

    images = pictures(photos)
    spoilt = DetectorExtractor(str(tmp_path / "yolos")).prepare(3, *images[3]).inputs["pixel_values"]
    monkeypatch.setattr(DetectorExtractor, "_forward", failing)
    result = extract_dataset(open_dataset(photos), tmp_path / "store", str(tmp_path / "yolos"), devices="cpu")
    assert result.store.image_ids == [1, 2, 4, 5]
    assert "photo_3.png" in result.problems[0] and "the model does not like" in result.problems[0]


def test_a_model_is_known_by_its_weights_however_it_is_called(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    yolos(tmp_path / "yolos")
    line = ("extract-features", "photos", "--devices", "cpu", "--json", "--extractor")
    succeeds(*line, "./yolos", cwd=tmp_path)
    before = (photos / "features" / "store.json").read_bytes()
    shutil.copytree(tmp_path / "yolos", tmp_path / "copy")
    for name in ("./yolos/", str(tmp_path / "yolos"), "photos/../yolos", "./copy"):
        values = json.loads(succeeds(*line, name, cwd=tmp_path).out)
        assert (values["made"], values["present"]) == (0, 5)
    assert (photos / "features" / "store.json").read_bytes() == before
    yolos(tmp_path / "copy")
    fails(*line, "./copy", cwd=tmp_path, code=1, says=("weights", "--overwrite"))


def _cut(place: Path) -> None:
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _garbled(place: Path) -> None:
    (place / "model.safetensors").write_bytes(b"\xff" * 200)


def _pickled(place: Path) -> None:
    (place / "model.safetensors").unlink()
    (place / "pytorch_model.bin").write_bytes(b"no pickle")


def _wrong_type(place: Path) -> None:
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "hidden_size": "sixteen"}))


def _no_config(place: Path) -> None:
    (place / "config.json").write_text("[1, 2")


@pytest.mark.parametrize("damage", [_cut, _garbled, _pickled, _wrong_type, _no_config])
def test_a_damaged_model_is_one_clear_error(
    photos: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    yolos(tmp_path / "yolos")
    damage(tmp_path / "yolos")
    line = ("extract-features", "photos", "--extractor", tmp_path / "yolos")
    fails(*line, cwd=tmp_path, code=1, says=("yolos", "cannot be loaded", "--extractor builtin"))
    assert not (photos / "features").exists()


def test_boxes_are_cut_to_the_image() -> None:
    boxes = np.array(
        [[0.5, 0.5, 3, 3], [1.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0, 0], [np.nan, 0, 0, 0]], np.float32
    )
    found = corners(boxes, 40, 20)
    np.testing.assert_array_equal(found[0], [0, 0, 40, 20])
    assert (found[:, 2:] - found[:, :2] >= 1).all()
    assert (found >= 0).all() and (found[:, [0, 2]] <= 40).all() and (found[:, [1, 3]] <= 20).all()
