"""Boxes from prompted detectors and annotations, vectors from backbones, and what runs them."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails, succeeds
from PIL import Image
from tiny_models import BACKBONES, PROMPTED, dinov2, resnet, rt_detr, vit

from tbkin_core.boxes import non_maximum_suppression, pairwise_iou
from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError
from tbkin_core.features.extract import extract_dataset
from tbkin_core.features.extractors import EXTRACTORS, ExtractorRow, extractor_help
from tbkin_core.features.extractors.annotated import AnnotatedRegions
from tbkin_core.features.extractors.backbone import Backbone
from tbkin_core.features.extractors.base import Job, regions_of_file, run_batches
from tbkin_core.features.extractors.builtin import BuiltinExtractor
from tbkin_core.features.extractors.detector import OVERLAP, GroundingExtractor, open_detector
from tbkin_core.features.extractors.opening import reopen_extractor
from tbkin_core.features.extractors.roi import SAMPLES, roi_tokens
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FeatureStore, feature_kind
from tbkin_core.names.vocabulary import visual_genome_names
from tbkin_core.settings import ExtractFeaturesConfig, load_config

Found = list[RegionFeatures]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    for name, save in {**PROMPTED, **BACKBONES, "rt-detr": rt_detr}.items():
        save(root / name)
    return {place.name: place for place in root.iterdir()}


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture with something to see in it: coarse blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR))


# ---- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", EXTRACTORS.values(), ids=lambda row: row.name)
def test_every_row_has_a_module_that_opens_it(row: ExtractorRow) -> None:
    module = importlib.import_module(f"tbkin_core.features.extractors.{row.module}")
    assert callable(module.open_extractor)
    assert f"{row.name} {row.words}" in extractor_help()
    assert load_config(ExtractFeaturesConfig, None, {"extractor": row.name}).extractor == row.name


def test_the_table_is_read_without_any_library() -> None:
    code = "import sys, tbkin_core.features.extractors; print('numpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# ---- the vocabulary -----------------------------------------------------------------------------


def test_names_are_those_of_visual_genome_where_they_match() -> None:
    objects = visual_genome_names("objects")
    assert (len(objects.names), len(visual_genome_names("attributes").names)) == (1600, 400)
    asked = ["Dog", "tv", "Traffic_Light", "aeroplane", "stop signs", "sports ball", "N/A", ""]
    found = ("dog", "television", "traffic light", "airplane", "stop sign", "sports ball", "n/a", "")
    assert objects.match(asked) == found
    # What is in the vocabulary stays what it is, synonyms of one another included.
    assert objects.match(objects.names) == objects.names
    assert visual_genome_names("attributes").match(["Grey", "unheard of"]) == ("gray", "unheard of")


# ---- backbones ----------------------------------------------------------------------------------


def vectors(backbone: Backbone, pictures: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> list[Any]:
    found = backbone.describe([backbone.prepare(picture) for picture in pictures], boxes)
    return [fields["features"] for fields in found]


def naive(cells: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """RoIAlign one point after the other, averaged."""
    depth, height, width = cells.shape
    total = np.zeros(depth)
    for row, column in itertools.product(range(SAMPLES), repeat=2):
        x = box[0] + (column + 0.5) / SAMPLES * (box[2] - box[0]) - 0.5
        y = box[1] + (row + 0.5) / SAMPLES * (box[3] - box[1]) - 0.5
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        left, top = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
        right, below = min(left + 1, width - 1), min(top + 1, height - 1)
        across, down = x - left, y - top
        total += (1 - down) * ((1 - across) * cells[:, top, left] + across * cells[:, top, right])
        total += down * ((1 - across) * cells[:, below, left] + across * cells[:, below, right])
    return total / SAMPLES**2


@pytest.mark.parametrize("shape", [(5, 4, 7), (3, 1, 1), (2, 1, 6)])
def test_pooling_against_one_point_after_the_other(shape: tuple[int, int, int]) -> None:
    chance = np.random.default_rng(1)
    cells = chance.normal(size=shape).astype(np.float32)
    low = chance.uniform(0, [shape[2], shape[1]], (20, 2))
    high = low + chance.uniform(0, 1, (20, 2)) * ([shape[2], shape[1]] - low)
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    boxes[0] = [0, 0, shape[2], shape[1]]
    boxes[1] = [0.2, 0.3, 0.2, 0.3]  # without area
    found = roi_tokens(torch.from_numpy(cells), torch.from_numpy(boxes), 1)[:, 0].numpy()
    np.testing.assert_allclose(found, [naive(cells, box) for box in boxes], atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_vectors_are_of_the_place_of_their_box(models: dict[str, Path], name: str) -> None:
    backbone = Backbone(str(models[name]))
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.4, 0.5], [0.6, 0.5, 1, 1]], np.float32)
    picture = noise(120, 60)
    (found,) = vectors(backbone, [picture], [boxes])
    assert found.shape == (3, backbone.feature_size) and np.isfinite(found).all()
    assert np.abs(found[1] - found[2]).max() > 1e-3
    # The picture's shape makes no difference, only what stands where.
    square = np.asarray(Image.fromarray(picture).resize((backbone.side,) * 2, backbone._preparation.resample))
    (same,) = vectors(backbone, [square], [boxes])
    np.testing.assert_allclose(found, same, atol=1e-4)
    # Beside other pictures too.
    many = vectors(backbone, [noise(50, 70, 3), picture], [boxes[:1], boxes])
    np.testing.assert_allclose(many[1], found, atol=1e-4)


@pytest.mark.parametrize(("save", "stride", "extra"), [(vit, 16, 1), (dinov2, 14, 5), (resnet, 8, 0)])
def test_maps_are_those_of_the_model(tmp_path: Path, save: Any, stride: int, extra: int) -> None:
    from transformers import AutoImageProcessor, AutoModel

    save(tmp_path / "model")
    backbone = Backbone(str(tmp_path / "model"))
    picture = noise(backbone.side, backbone.side)
    # At the side that the model was made for, the processor itself neither scales nor crops.
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    pixels = processor(
        images=Image.fromarray(picture), return_tensors="pt", do_resize=False, do_center_crop=False
    ).pixel_values
    np.testing.assert_allclose(backbone.prepare(picture).numpy(), pixels[0].numpy(), atol=1e-5)
    with torch.no_grad():
        state = AutoModel.from_pretrained(tmp_path / "model").eval()(pixels).last_hidden_state[0]
    cells = backbone.side // stride
    if extra:
        state = state[extra:].T.reshape(-1, cells, cells)
    box = np.array([0.1, 0.3, 0.7, 0.9], np.float32)
    (found,) = vectors(backbone, [picture], [box[None]])
    np.testing.assert_allclose(found[0], naive(state.numpy(), box * cells), atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_other_sides_than_the_models_own(models: dict[str, Path], name: str) -> None:
    backbone = Backbone(str(models[name]), side=100)  # no multiple of any patch
    assert backbone.settings()["backbone_side"] == 100
    with torch.no_grad():
        output = backbone._vision(backbone.prepare(noise(40, 30))[None], **backbone._options)
    state = output.feature_maps[-1] if "feature_maps" in output else output.last_hidden_state
    cells, stride = backbone._cells(state)
    # The cells fill the picture up to a part of one, and only what is no patch is left out.
    assert cells.shape[2] == cells.shape[3] and abs(cells.shape[3] * stride - 100) < stride
    extra = {"vit": 1, "clip": 1, "dinov2": 5}.get(name, 0)
    assert state.ndim == 4 or state.shape[1] - cells.shape[3] ** 2 == extra


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_attributes_are_told_in_the_space_of_texts(models: dict[str, Path], name: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    backbone = Backbone(str(models[name]))
    assert backbone.attribute_names == visual_genome_names("attributes").names
    assert not Backbone(str(models[name]), attributes=False).attribute_names
    assert not Backbone(str(models["vit"])).attribute_names
    boxes = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.4, 0.5]], np.float32)
    pixels = backbone.prepare(noise(80, 60))
    (found,) = backbone.describe([pixels], [boxes])

    model = AutoModel.from_pretrained(models[name]).eval()
    words = AutoTokenizer.from_pretrained(models[name])(
        [f"a photo of something {attribute}" for attribute in backbone.attribute_names],
        padding="max_length", max_length=40, truncation=True, return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        texts = model.get_text_features(**words).pooler_output
        output = model.vision_model(pixels[None], output_hidden_states=True)
        state = output.last_hidden_state
        if name == "clip":
            last = model.vision_model.encoder.layers[-1]
            before = output.hidden_states[-2]
            torch.testing.assert_close(last(before, None), output.last_hidden_state)
            state = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(before)))
            state = model.vision_model.post_layernorm(state)[:, 1:]
        cells = state[0].T.reshape(-1, 4, 4).numpy()
        for row, box in enumerate(boxes):
            if name == "clip":
                region = model.visual_projection(torch.from_numpy(naive(cells, box * 4)).float())
            else:
                x, y = (np.linspace(box[low], box[low + 2], 8) * 4 for low in (0, 1))
                parts = [naive(cells, (x[j], y[i], x[j + 1], y[i + 1])) for i in range(7) for j in range(7)]
                # Parts of 14 x 14 points here, of 2 x 2 there: nearly the same mean.
                region = model.vision_model.head(torch.from_numpy(np.stack(parts)).float()[None])[0]
            like = torch.cosine_similarity(region[None], texts) * model.logit_scale.exp()
            chances = like.softmax(-1)
            score = float(found["attribute_scores"][row])
            assert score == pytest.approx(float(chances.max()), rel=0.05)
            assert score == pytest.approx(float(chances[found["attribute_ids"][row]]), rel=0.05)


def test_half_precision_is_near(models: dict[str, Path]) -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.4, 0.5]], np.float32)
    exact, half = (Backbone(str(models["vit"]), precision=name) for name in ("fp32", "bf16"))
    (first,), (second,) = (vectors(one, [noise(80, 60)], [boxes]) for one in (exact, half))
    assert 0 < np.abs(first - second).max() < 0.1
    for name in ("rt-detr", "owlv2", "grounding-dino"):
        exact, half = (open_detector(str(models[name]), 20, precision=kind) for kind in ("fp32", "bf16"))
        found = [one.extract([one.prepare(1, noise(80, 60), 80, 60)])[0] for one in (exact, half)]
        assert found[1].features.dtype == np.float32
        # Each of the better regions is found again, near where it was.
        overlap = pairwise_iou(found[0].boxes[:3], found[1].boxes).max(axis=1)
        assert overlap.mean() > 0.7


def test_a_model_without_a_map_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, ViTImageProcessor

    BertModel(BertConfig(num_hidden_layers=1, hidden_size=12, vocab_size=9)).save_pretrained(
        tmp_path / "bert"
    )
    ViTImageProcessor().save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="no vision model"):
        Backbone(str(tmp_path / "bert"))


# ---- prompted detectors -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROMPTED)
def test_prompted_detectors_find_visual_genomes_names(models: dict[str, Path], name: str) -> None:
    detector = open_detector(str(models[name]), max_regions=6)
    assert detector.object_names == visual_genome_names("objects").names
    images = [noise(120, 90), noise(90, 120, 1), noise(120, 90, 2)]
    prepared = [detector.prepare(n, image, image.shape[1], image.shape[0]) for n, image in enumerate(images)]
    together = detector.extract(prepared)
    for picture, regions in zip(prepared, together, strict=True):
        assert 1 <= len(regions) <= 6
        assert regions.features.shape[1] == detector.feature_size
        assert (regions.boxes >= 0).all() and (regions.boxes[:, 2:] <= [picture.width, picture.height]).all()
        assert (np.diff(regions.object_scores) <= 1e-6).all()
        shared = pairwise_iou(regions.boxes) - np.eye(len(regions))
        assert shared.max() < 0.7
        (alone,) = detector.extract([picture])
        np.testing.assert_allclose(alone.features, regions.features, atol=1e-4)
        np.testing.assert_allclose(alone.boxes, regions.boxes, atol=1e-2)
        np.testing.assert_array_equal(alone.object_ids, regions.object_ids)
    assert not np.array_equal(together[0].features[0], together[2].features[0])


@pytest.mark.parametrize("name", ["owl-vit", "owlv2"])
def test_owl_against_transformers(models: dict[str, Path], name: str) -> None:
    """Names, scores and boxes of a picture that is not square, by the model's own way."""
    from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

    place = str(models[name])
    detector = open_detector(place, max_regions=1000)
    detector.overlap = 1.1  # nothing is dropped
    image = noise(120, 80)
    (found,) = detector.extract([detector.prepare(1, image, 120, 80)])
    words = AutoTokenizer.from_pretrained(place)(
        [f"a photo of a {name}" for name in detector.object_names],
        padding="max_length", max_length=40, truncation=True, return_tensors="pt",
    )  # fmt: skip
    processor = AutoImageProcessor.from_pretrained(place)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(place).eval()
    # To the model's forward a first token 0 is no prompt, and 0 begins every prompt here.
    words["input_ids"][:, 0] = 0
    with torch.no_grad():
        pixels = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values
        output = model(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels)
        feats = model.image_embedder(pixels)[0].flatten(1, 2)
        logits, _ = model.class_predictor(feats, output.text_embeds, None)
    output.logits = logits
    (expected,) = processor.post_process_object_detection(output, threshold=-1.0, target_sizes=[(80, 120)])
    order = expected["scores"].argsort(descending=True, stable=True)
    np.testing.assert_allclose(found.object_scores, expected["scores"][order].numpy(), atol=1e-4)
    boxes = expected["boxes"][order].numpy().clip(0, [120, 80, 120, 80])
    whole = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(axis=1)
    assert whole.any()
    np.testing.assert_allclose(found.boxes[whole][0], boxes[whole][0], atol=0.05)
    # Untrained, several names are as good as the best.
    chance = logits.sigmoid()[0, order[0], int(found.object_ids[0])]
    assert float(chance) == pytest.approx(float(expected["scores"].max()), abs=1e-5)


def test_owl_tells_attributes(models: dict[str, Path]) -> None:
    detector = open_detector(str(models["owlv2"]), max_regions=6)
    assert detector.settings()["attribute_names"] == list(visual_genome_names("attributes").names)
    (found,) = detector.extract([detector.prepare(1, noise(120, 80), 120, 80)])
    assert len(found.attribute_ids) == len(found) and (found.attribute_ids < 400).all()
    assert ((found.attribute_scores > 0) & (found.attribute_scores <= 1)).all()


def test_grounding_dino_reads_every_name_once(models: dict[str, Path]) -> None:
    from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer

    place = str(models["grounding-dino"])
    detector = open_detector(place, max_regions=6)
    assert isinstance(detector, GroundingExtractor)
    prompts = detector._prompts
    assert len(prompts) > 1 and max(ids.shape[1] for ids, _, _ in prompts) <= 256
    words = AutoTokenizer.from_pretrained(place)
    read = [
        words.decode([ids[0, int(place)] for place in means[row].nonzero()])
        for ids, means, _ in prompts
        for row in range(len(means))
    ]
    spelt = [words.decode(words(name, add_special_tokens=False).input_ids) for name in detector.object_names]
    assert read == spelt
    # A prompt's scores are those of a plain pass of the model, though it reads and looks once.
    model = AutoModelForZeroShotObjectDetection.from_pretrained(place).eval()
    picture = detector.prepare(1, noise(64, 64), 64, 64)
    inputs = {name: value[None] for name, value in picture.inputs.items()}
    with torch.no_grad():
        chances = torch.cat(
            [model(**inputs, input_ids=ids).logits.sigmoid()[0] @ means.T for ids, means, _ in prompts], dim=1
        )
    best = chances.max(dim=0).values  # of each of the 1,600 names
    detector.extract([detector.prepare(2, noise(64, 64, 5), 64, 64)])  # nothing of it may be left
    (found,) = detector.extract([picture])
    assert float(found.object_scores[0]) == pytest.approx(float(best.max()), abs=1e-4)
    scores = best[torch.from_numpy(found.object_ids).long()].numpy()
    assert (scores >= found.object_scores - 1e-4).all()


def test_of_overlapping_regions_the_better_is_kept() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 5, 5]], np.float32)
    assert non_maximum_suppression(boxes, 0.7, 10) == [0, 2, 3]
    assert non_maximum_suppression(boxes, 0.7, 2) == [0, 2]
    # At exactly the bound proposals are kept, and regions of a prompted detector dropped.
    at_bound = np.array([[0, 0, 10, 10], [0, 0, 10, 7]], np.float32)
    assert non_maximum_suppression(at_bound, 0.7, 2) == [0, 1]
    assert non_maximum_suppression(at_bound, OVERLAP, 2) == [0]


# ---- annotations --------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Four pictures: with a box beyond the edge, half the annotated size, without a box, misshapen."""
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    sizes = {1: (120, 80), 2: (60, 40), 3: (50, 50), 4: (50, 50)}
    for number, (width, height) in sizes.items():
        picture = np.full((height, width, 3), 255, np.uint8)
        picture[10:30, 10:30] = (220, 20, 20)
        Image.fromarray(picture).save(root / "val2017" / f"{number:012d}.png")
    listed = {**sizes, 2: (120, 80), 4: (100, 50)}
    boxes = [
        (1, 7, [10, 10, 20, 20]),
        (1, 9, [50, 20, 60, 70]),
        (1, 7, [130, 0, 5, 5]),
        (2, 7, [20, 20, 40, 40]),
    ]
    boxes.append((4, 9, [0, 0, 9, 9]))
    content = {
        "images": [
            {"id": number, "file_name": f"{number:012d}.png", "width": size[0], "height": size[1]}
            for number, size in listed.items()
        ],
        "categories": [{"id": 7, "name": "tv"}, {"id": 9, "name": "sports ball"}],
        "annotations": [
            {"id": place, "image_id": image, "category_id": kind, "bbox": box, "iscrowd": 0}
            for place, (image, kind, box) in enumerate(boxes, start=1)
        ],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


def test_annotated_boxes_become_regions(coco: Path, tmp_path: Path) -> None:
    outcome = succeeds("extract-features", "coco", "--extractor", "annotations", "--json", cwd=tmp_path)
    values = json.loads(outcome.out)
    assert (values["extractor"], values["images"], values["skipped"]) == ("annotations", 2, 2)
    assert any("1 images have no annotated boxes: 3" in line for line in values["problems"])
    assert any("drawn on 100 x 50" in line for line in values["problems"])
    store = FeatureStore(coco / "features")
    assert store.object_names == ["sports ball", "television"]
    first, second = store[1], store[2]
    # The largest first, cut to the picture; the one beyond it is gone.
    np.testing.assert_array_equal(first.boxes, [[50, 20, 110, 80], [10, 10, 30, 30]])
    assert first.object_ids.tolist() == [0, 1] and first.object_scores.tolist() == [1, 1]
    # Boxes of a picture that was scaled are scaled.
    np.testing.assert_array_equal(second.boxes, [[10, 10, 30, 30]])
    assert store.attribute_names[second.attribute_ids[0]] == "red"
    # The built-in descriptors of a known box are those of the proposal that has the same.
    picture = np.asarray(Image.open(coco / "val2017" / "000000000002.png"))
    proposed = BuiltinExtractor().extract(2, picture, 60, 40)
    place = int(pairwise_iou(second.boxes, proposed.boxes)[0].argmax())
    np.testing.assert_allclose(
        np.asarray(second.features[0], np.float32), proposed.features[place], atol=0.05
    )
    with pytest.raises(ConfigError, match="cannot be made here for a new image"):
        regions_of_file(reopen_extractor(store.settings, "cpu"), coco / "val2017" / "000000000001.png")
    # What was annotated is found in its store all the same; processes change nothing.
    again = extract_dataset(open_dataset(coco), tmp_path / "two", "annotations", workers=2)
    np.testing.assert_array_equal(again.store[1].features, first.features)


def test_attributes_of_visual_genome(tmp_path: Path) -> None:
    root = tmp_path / "vg"
    root.mkdir()
    Image.fromarray(noise(60, 40)).save(root / "1.jpg")
    place = {"x": 5, "y": 5, "w": 20, "h": 20}
    objects = [
        {**place, "object_id": 1, "names": ["Dog"], "attributes": ["rare", "grey"]},
        {**place, "x": 30, "object_id": 2, "names": ["dog"], "attributes": ["gray"]},
        {**place, "w": 9, "object_id": 3, "names": ["zorb"]},
    ]
    (root / "attributes.json").write_text(json.dumps([{"image_id": 1, "attributes": objects}]))
    (root / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 60, "height": 40}]))
    regions = AnnotatedRegions(open_dataset(root), 36)
    assert (regions.object_names, regions.attribute_names) == (["dog", "zorb"], ["gray", "rare"])
    found = regions.extract(1, noise(60, 40), 60, 40)
    assert found.object_ids.tolist() == [0, 0, 1]
    # Of several attributes the commonest.
    assert found.attribute_ids.tolist() == [0, 0, -1] and found.attribute_scores.tolist() == [1, 1, 0]


def test_no_boxes_to_take(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise(60, 40)).save(tmp_path / "photos" / "1.png")
    says = ("no annotated boxes", "--extractor builtin")
    fails("extract-features", "photos", "--extractor", "annotations", cwd=tmp_path, code=2, says=says)


# ---- together -----------------------------------------------------------------------------------


@pytest.mark.parametrize("extractor", ["builtin", "annotations", "rt-detr"])
def test_a_backbone_over_boxes_from_anywhere(
    models: dict[str, Path], coco: Path, tmp_path: Path, extractor: str
) -> None:
    name = str(models.get(extractor, extractor))
    dataset, backbone = open_dataset(coco), str(models["dinov2"])
    result = extract_dataset(
        dataset, tmp_path / "with", name, 6, 2, devices="cpu:2", batch_size=1, backbone=backbone
    )
    plain = extract_dataset(dataset, tmp_path / "without", name, 6, 0, devices="cpu")
    store = result.store
    assert store.image_ids == plain.store.image_ids
    assert store.settings["backbone"] == backbone and store.feature_size == 16
    assert feature_kind(store.settings) != feature_kind(plain.store.settings)
    for image_id in store.image_ids:
        regions = store[image_id]
        np.testing.assert_allclose(regions.boxes, plain.store[image_id].boxes, atol=1e-3)
        np.testing.assert_array_equal(regions.object_ids, plain.store[image_id].object_ids)
        assert regions.features.shape == (len(regions), 16)
    if extractor != "rt-detr":  # colours alone give way to attributes
        clip = str(models["clip"])
        told = extract_dataset(dataset, tmp_path / "clip", name, backbone=clip, devices="cpu").store
        assert len(told.attribute_names) == 400 and told[1].attribute_scores.all()
    if extractor != "annotations":
        path = coco / "val2017" / "000000000001.png"
        one = regions_of_file(reopen_extractor({**store.settings, "store": "somewhere"}, "cpu"), path)
        np.testing.assert_allclose(one.features, store[1].features, atol=5e-3)
        np.testing.assert_allclose(one.boxes, store[1].boxes, atol=1e-2)
        moved = {**store.settings, "backbone": "elsewhere", "revision": "newer"}
        assert feature_kind(moved) == feature_kind(store.settings)
        with pytest.raises(ConfigError, match="its weights are not those"):
            regions_of_file(reopen_extractor({**store.settings, "backbone_weights": "0123"}, "cpu"), path)


class Slow:
    """Squares, of which the first ones take the longest; notes who works at once."""

    def __init__(self, notes: list[str], refuses: int = -1) -> None:
        self.notes = notes
        self.refuses = refuses

    def settings(self) -> dict[str, Any]:
        return {}

    def prepare(self, image_id: Any, image: np.ndarray, width: int, height: int) -> int:
        if image_id == self.refuses:
            raise ValueError("unheard-of shape")
        return int(image_id)

    def extract(self, pictures: Sequence[int]) -> Found:
        self.notes.append(threading.current_thread().name)
        time.sleep(0.05 / (1 + pictures[0]))
        boxes = np.array([[0, 0, 1, 1]], np.float32)
        return [RegionFeatures(n, np.full((1, 2), n, np.float32), boxes, 9, 9) for n in pictures]


def test_copies_on_several_devices_keep_the_order(tmp_path: Path) -> None:
    Image.fromarray(noise(9, 9)).save(tmp_path / "one.png")
    todo = [Job(number, tmp_path / ("gone.png" if number == 7 else "one.png")) for number in range(23)]
    notes: list[str] = []
    copies = [Slow(notes, 11), Slow(notes, 11), Slow(notes, 11)]
    results = list(run_batches(copies, iter(todo), workers=2, batch_size=2))
    assert [job for job, _ in results] == todo
    found = [result for _, result in results]
    assert [item if isinstance(item, str) else item.image_id for item in found] == [
        *range(7), found[7], *range(8, 11), found[11], *range(12, 23)
    ]  # fmt: skip
    assert "gone.png" in str(found[7]) and "unheard-of shape" in str(found[11])
    assert len(set(notes)) == 3  # a thread for each copy
    # Whoever stops taking results leaves no thread behind that works on.
    before = threading.active_count()
    unfinished = run_batches(copies, todo, workers=2, batch_size=2)
    next(unfinished)
    unfinished.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_an_image_that_the_model_cannot_take_costs_no_other(tmp_path: Path) -> None:
    class Picky(Slow):
        def extract(self, pictures: Sequence[int]) -> Found:
            if 3 in pictures:
                raise RuntimeError("not this one")
            return super().extract(pictures)

    Image.fromarray(noise(9, 9)).save(tmp_path / "one.png")
    todo = [Job(number, tmp_path / "one.png") for number in range(6)]
    found = [result for _, result in run_batches([Picky([])], todo, batch_size=4)]
    assert "one.png: the model cannot take this image (RuntimeError: not this one)" in str(found[3])
    assert [item.image_id for item in found if not isinstance(item, str)] == [0, 1, 2, 4, 5]


def test_too_little_memory_says_what_to_do(tmp_path: Path) -> None:
    class Full(Slow):
        def extract(self, pictures: Sequence[int]) -> Found:
            raise torch.OutOfMemoryError("no more")

    Image.fromarray(noise(9, 9)).save(tmp_path / "one.png")
    with pytest.raises(ConfigError, match="too little memory") as error:
        list(run_batches([Full([])], [Job(1, tmp_path / "one.png")]))
    assert "--batch-size" in str(error.value)


def test_pictures_of_odd_shapes(models: dict[str, Path], tmp_path: Path) -> None:
    """One pixel, and strips; each gives regions or says why not, and the others go on."""
    for number, (width, height) in enumerate([(1, 1), (900, 1), (3, 700), (60, 40)], start=1):
        Image.fromarray(noise(width, height)).save(tmp_path / f"{number}.png")
    todo = [Job(number, tmp_path / f"{number}.png") for number in range(1, 5)]
    for name in ("rt-detr", "owlv2", "grounding-dino"):
        found = list(run_batches([open_detector(str(models[name]), 6)], todo, workers=2))
        assert not isinstance(found[3][1], str)
        for job, regions in found:
            if isinstance(regions, str):
                assert str(job.source) in regions
            else:
                assert regions.image_id == job.image_id and np.isfinite(regions.features).all()
                assert (regions.boxes[:, 2:] > regions.boxes[:, :2]).all()


def test_settings_that_do_not_go_together() -> None:
    for flags, says in [
        ({"extractor": "import", "backbone": "a/b"}, "come with vectors"),
        ({"backbone_side": 224}, "only with --backbone"),
        ({"backbone": "a/b", "backbone_side": 5}, "backbone_side"),
        ({"extractor": "anotations"}, "annotations"),
    ]:
        with pytest.raises(ConfigError, match=says):
            load_config(ExtractFeaturesConfig, None, flags)


def test_the_hubs_detector_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise(60, 40)).save(tmp_path / "photos" / "1.png")
    says = ("PekingU/rtdetr_v2_r50vd", "--extractor builtin")
    fails("extract-features", "photos", "--extractor", "detector", cwd=tmp_path, code=1, says=says)
    assert not (tmp_path / "photos" / "features").exists()
