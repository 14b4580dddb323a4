"""The built-in extractor and the reading of image files: hostile input, invariants, recall on drawings."""

from __future__ import annotations

import json
import math
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import succeeds
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tbkin_core.boxes import pairwise_iou
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.extractors.builtin import BuiltinExtractor
from tbkin_core.features.pictures import load_image, used_bits
from tbkin_core.features.regions import RegionFeatures

COLOURS = {
    "red": (222, 30, 34),
    "green": (28, 150, 52),
    "blue": (38, 72, 222),
    "yellow": (246, 220, 36),
    "purple": (142, 42, 176),
    "orange": (250, 132, 20),
}


@pytest.fixture(scope="module")
def extractor() -> BuiltinExtractor:
    return BuiltinExtractor()


def check(found: RegionFeatures, width: int, height: int, extractor: BuiltinExtractor) -> None:
    """What holds for every image whatsoever."""
    count = len(found)
    assert 1 <= count <= extractor.max_regions
    assert (found.image_width, found.image_height) == (width, height)
    assert found.features.shape == (count, extractor.feature_size)
    assert found.features.dtype == np.float32
    assert np.isfinite(found.features).all()
    assert np.abs(found.features).max() <= 8
    assert found.boxes.dtype == np.float32
    assert (found.boxes[:, :2] >= 0).all()
    assert (found.boxes[:, 2:] <= [width, height]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.boxes[-1].tolist() == [0, 0, width, height]
    assert (found.object_ids == -1).all()
    assert ((found.attribute_ids >= 0) & (found.attribute_ids < len(extractor.attribute_names))).all()
    for scores in (found.object_scores, found.attribute_scores):
        assert scores.shape == (count,)
        assert ((scores >= 0) & (scores <= 1)).all()
    assert (np.diff(found.object_scores) <= 1e-6).all()


def outline(shape: str) -> NDArray[np.float64]:
    """Corners of a shape within the unit disk, (n, 2)."""
    if shape == "circle":
        angles = np.linspace(0, 2 * math.pi, 60)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "square":
        return np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    if shape == "triangle":
        return np.array([(0, -1), (0.95, 0.8), (-0.95, 0.8)])
    angles = np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def draw_scene(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], list[tuple[str, str, str]]]:
    """Six shapes apart from each other: the picture, boxes (6, 4), and (shape, colour, texture) of each."""
    random = np.random.default_rng(seed)
    width, height, zoom = 240, 160, 3
    y, x = np.mgrid[: height * zoom, : width * zoom]
    base = random.uniform(120, 210, 3)
    background = ["plain", "gradient", "noise", "stripes"][seed % 4]
    shade = {"gradient": 40.0 * x / x.max(), "stripes": 20.0 * ((x + y) // (14 * zoom) % 2)}.get(
        background, 0.0
    )
    pixels = np.clip(base + np.broadcast_to(np.asarray(shade)[..., None], (*x.shape, 3)), 0, 255)
    boxes, labels = [], []
    for cell in range(6):
        shape = ["circle", "square", "triangle", "star"][random.integers(4)]
        colour = list(COLOURS)[random.integers(len(COLOURS))]
        texture = ["plain", "striped", "dotted"][random.integers(3)]
        radius = random.uniform(15, 32)
        centre = [
            (cell % 3 + 0.5) * 80 + random.uniform(-5, 5),
            (cell // 3 + 0.5) * 80 + random.uniform(-5, 5),
        ]
        corners = (outline(shape) * radius + centre) * zoom
        stencil = Image.new("1", (width * zoom, height * zoom))
        ImageDraw.Draw(stencil).polygon([tuple(c) for c in corners], fill=1)
        mask = np.asarray(stencil)
        period = 9 * zoom
        if texture == "striped":
            light = mask & (x // period % 2 == 0)
        elif texture == "dotted":
            light = mask & (
                (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (0.3 * period) ** 2
            )
        else:
            light = np.zeros_like(mask)
        pixels[mask] = COLOURS[colour]
        pixels[light] = 0.4 * np.array(COLOURS[colour]) + 0.6 * 255
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        labels.append((shape, colour, texture))
    image = np.asarray(Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BOX))
    if background == "noise":
        image = np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    return image, (np.array(boxes) / zoom).astype(np.float32), labels


@pytest.fixture(scope="module")
def scenes(
    extractor: BuiltinExtractor,
) -> list[tuple[RegionFeatures, NDArray[np.float32], list[tuple[str, str, str]]]]:
    found = []
    for seed in range(24):
        image, boxes, labels = draw_scene(seed)
        found.append((extractor.extract(seed, image, image.shape[1], image.shape[0]), boxes, labels))
    return found


# Extractor


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (2, 1), (3, 200), (20_000, 20), (7, 3_000), (30_000, 1), (64, 64), (500, 333)],
)
@pytest.mark.parametrize("content", ["flat", "noise", "two halves", "mosaic"])
def test_any_size_and_content(extractor: BuiltinExtractor, width: int, height: int, content: str) -> None:
    image = np.full((height, width, 3), 130, np.uint8)
    if content == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    elif content == "mosaic":
        tiles = np.random.default_rng(0).integers(
            0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8
        )
        image = tiles.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    elif content == "two halves":
        image[:, width // 2 :] = (200, 20, 20)
    check(extractor.extract("x", image, width, height), width, height, extractor)


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    scale=st.integers(1, 40),
    blocks=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_invariants_on_random_blocks(width: int, height: int, scale: int, blocks: int, seed: int) -> None:
    extractor = BuiltinExtractor(max_regions=9)
    random = np.random.default_rng(seed)
    image = np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    for _ in range(blocks):
        x, y = random.integers(0, width), random.integers(0, height)
        image[y : y + random.integers(1, 40), x : x + random.integers(1, 40)] = random.integers(0, 256, 3)
    found = extractor.extract(seed, image, width * scale, height * scale)
    check(found, width * scale, height * scale, extractor)


def test_same_image_gives_same_regions_also_from_a_copy(extractor: BuiltinExtractor) -> None:
    image, _, _ = draw_scene(3)
    first = extractor.extract(1, image, 240, 160)
    second = pickle.loads(pickle.dumps(extractor)).extract(1, image.copy(), 240, 160)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.features, second.features)


def test_extract_leaves_the_image_alone(extractor: BuiltinExtractor) -> None:
    image, _, _ = draw_scene(2)
    before = image.copy()
    image.setflags(write=False)
    extractor.extract(1, image, 240, 160)
    np.testing.assert_array_equal(image, before)


def test_boxes_scale_with_the_original_size(extractor: BuiltinExtractor) -> None:
    image, _, _ = draw_scene(1)
    once = extractor.extract(1, image, 240, 160)
    tenfold = extractor.extract(1, image, 2400, 1600)
    np.testing.assert_allclose(tenfold.boxes, once.boxes * 10, rtol=1e-5)


def test_one_region_is_the_whole_image() -> None:
    found = BuiltinExtractor(max_regions=1).extract(1, draw_scene(0)[0], 240, 160)
    assert found.boxes.tolist() == [[0, 0, 240, 160]]


def test_proposals_find_drawn_objects(scenes: list) -> None:
    overlap = np.concatenate([pairwise_iou(boxes, found.boxes).max(axis=1) for found, boxes, _ in scenes])
    assert (overlap >= 0.5).mean() >= 0.98
    assert overlap.mean() > 0.85


def test_overlapping_objects_of_one_colour_are_told_apart(extractor: BuiltinExtractor) -> None:
    image = Image.new("RGB", (200, 120), (190, 190, 180))
    boxes = np.array([[30, 20, 100, 90], [85, 55, 135, 105]], np.float32)
    for box in boxes:
        ImageDraw.Draw(image).ellipse(box.tolist(), fill=(200, 30, 30))
    found = extractor.extract(1, np.asarray(image), 200, 120)
    assert pairwise_iou(boxes, found.boxes).max(axis=1).min() > 0.7


def test_stripes_in_the_colour_of_the_background_make_one_object(extractor: BuiltinExtractor) -> None:
    image = Image.new("RGB", (200, 120), (240, 240, 240))
    for x in range(40, 100, 8):
        ImageDraw.Draw(image).rectangle((x, 30, x + 3, 90), fill=(30, 60, 200))
    ImageDraw.Draw(image).rectangle((150, 30, 170, 60), fill=(30, 60, 200))
    found = extractor.extract(1, np.asarray(image), 200, 120)
    boxes = np.array([[40, 30, 100, 91], [150, 30, 171, 61]], np.float32)
    assert pairwise_iou(boxes, found.boxes).max(axis=1).min() > 0.85


def test_first_proposals_are_the_objects(scenes: list) -> None:
    overlap = np.concatenate(
        [pairwise_iou(boxes, found.boxes[:15]).max(axis=1) for found, boxes, _ in scenes]
    )
    assert (overlap >= 0.5).mean() >= 0.9


def test_colour_name_of_plain_objects(scenes: list, extractor: BuiltinExtractor) -> None:
    right = []
    for found, boxes, labels in scenes:
        overlap = pairwise_iou(boxes, found.boxes)
        for row, (_, colour, texture) in zip(overlap, labels, strict=True):
            if texture == "plain" and row.max() > 0.7:
                right.append(extractor.attribute_names[found.attribute_ids[row.argmax()]] == colour)
    assert len(right) > 20
    assert np.mean(right) >= 0.95


@pytest.mark.parametrize(("position", "least"), [(0, 0.9), (1, 0.95), (2, 0.9)])
def test_descriptors_tell_shape_colour_texture_apart(scenes: list, position: int, least: float) -> None:
    vectors, labels = [], []
    for found, boxes, names in scenes:
        best = pairwise_iou(boxes, found.boxes).argmax(axis=1)
        vectors.append(found.features[best])
        labels += [name[position] for name in names]
    features = np.concatenate(vectors).astype(np.float64)
    features -= features.mean(axis=0)
    names, target = np.unique(labels, return_inverse=True)
    train = np.arange(len(target)) % 2 == 0
    one_hot = np.eye(len(names))[target]
    # Ridge regression in its dual form: a linear probe without a training loop.
    kernel = features @ features[train].T + 1.0
    weights = np.linalg.solve(kernel[train] + 0.3 * np.eye(train.sum()), one_hot[train])
    predicted = (kernel @ weights).argmax(axis=1)
    assert (predicted == target)[~train].mean() >= least


def test_settings_and_names_are_plain(extractor: BuiltinExtractor) -> None:
    assert json.loads(json.dumps(extractor.settings())) == extractor.settings()
    assert extractor.object_names == []
    assert {"red", "green", "blue", "yellow", "black", "white", "gray"} <= set(extractor.attribute_names)


@pytest.mark.parametrize(
    "options",
    [{"max_regions": 0}, {"working_side": 8}, {"photo_side": 999}, {"overlap": 0.0}, {"overlap": 1.5}],
)
def test_settings_out_of_range(options: dict) -> None:
    with pytest.raises(ConfigError):
        BuiltinExtractor(**options)


@pytest.mark.parametrize(
    ("shape", "kind"), [((4, 4), "uint8"), ((4, 4, 4), "uint8"), ((4, 4, 3), "float32"), ((0, 4, 3), "uint8")]
)
def test_not_an_rgb_array(extractor: BuiltinExtractor, shape: tuple[int, ...], kind: str) -> None:
    image: NDArray[Any] = np.zeros(shape, kind)
    with pytest.raises(DataError, match="image 7"):
        extractor.extract(7, image, 4, 4)


def test_photographs(extractor: BuiltinExtractor, shared_data: Path) -> None:
    paths = sorted((shared_data / "coco" / "val2017").glob("*.jpg"))[:5]
    for path in paths:
        image, width, height = load_image(path, max_side=320)
        found = extractor.extract(path.stem, image, width, height)
        check(found, width, height, extractor)
        assert len(found) == extractor.max_regions


# Image files


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def corner_image(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red upper left quarter on blue."""
    image = Image.new("RGB", size, (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return image


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "F": "tif", "I": "tif"}.get(mode, "png")
    source = corner_image()
    if mode in ("I;16", "I"):
        values = np.asarray(source.convert("L")).astype(np.int32) * 257
        image = Image.fromarray(values.astype(np.uint16) if mode == "I;16" else values)
    else:
        image = source.convert(mode)
    path = save(tmp_path / f"x.{suffix}", image)
    pixels, width, height = load_image(path)
    assert (pixels.shape, pixels.dtype, width, height) == ((20, 40, 3), np.uint8, 40, 20)
    expected = np.asarray((source if mode in ("RGB", "P", "RGBA", "CMYK", "YCbCr") else source.convert(
        "1" if mode == "1" else "L")).convert("RGB"))  # fmt: skip
    assert np.abs(pixels.astype(int) - expected).mean() < 12


def twelve_bit_tiff(path: Path, values: np.ndarray) -> Path:
    """A grey TIFF of 12 bits per sample, two pixels in three bytes."""
    height, width = values.shape
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = pairs[:, 0] << 12 | pairs[:, 1]
    data = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    end = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + end)
    return path


def test_twelve_bits_of_a_tiff_are_scaled_from_twelve(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 40 * 20).astype(np.uint16).reshape(20, 40)
    path = twelve_bit_tiff(tmp_path / "x.tif", values)
    expected = np.rint(values / 4095 * 255)
    assert np.abs(load_image(path)[0][..., 0] - expected).max() <= 1
    assert used_bits(path) == 0, "nothing to tell of it"


@pytest.mark.parametrize(("top", "bits"), [(4095, 12), (1000, 10), (200, 8), (16383, 14), (16384, 0), (0, 0)])
def test_few_bits_in_sixteen_are_told_of_and_left_as_they_are(tmp_path: Path, top: int, bits: int) -> None:
    values = np.linspace(0, top, 40 * 20).astype(np.uint16).reshape(20, 40)
    for name in ("x.png", "x.tif"):
        path = save(tmp_path / name, Image.fromarray(values))
        assert used_bits(path) == bits
        assert load_image(path)[0].max() == round(top / 257)
    assert used_bits(save(tmp_path / "dark.png", Image.new("L", (4, 4), 3))) == 0, "of 8 bits"
    (tmp_path / "broken.png").write_bytes(b"x")
    assert used_bits(tmp_path / "broken.png") == 0


def test_extraction_names_pictures_that_use_few_bits(tmp_path: Path) -> None:
    grey = np.asarray(corner_image((80, 60)).convert("L")).astype(np.uint16)
    for number, scale in enumerate((16, 16, 257)):
        save(tmp_path / f"{number}.png", Image.fromarray(grey * scale))
    problems = json.loads(succeeds("extract-features", tmp_path, "--json", cwd=tmp_path).out)["problems"]
    (note,) = [problem for problem in problems if "16 bits" in problem]
    assert "2 of 3 PNG and TIFF pictures looked at, such as 0.png" in note and "multiply them by 32" in note


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (load_image(save(tmp_path / "a.png", image))[0] == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    path = save(tmp_path / "b.png", palette, transparency=bytes([255, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (load_image(path)[0] == 255).all()


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    path = save(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert load_image(path)[0][0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x.{suffix}", corner_image(), exif=exif)
    pixels, width, height = load_image(path)
    assert (width, height) == ((20, 40) if orientation >= 5 else (40, 20))
    assert pixels.shape == (height, width, 3)
    right, bottom = orientation in (2, 3, 7, 6), orientation in (3, 4, 7, 8)
    quarter = pixels[
        height // 4 if not bottom else 3 * height // 4, width // 4 if not right else 3 * width // 4
    ]
    assert quarter[0] > 200
    assert quarter[2] < 60


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_max_side_scales_down_and_keeps_the_original_size(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / f"x.{suffix}", corner_image((1000, 500)), exif=exif)
    pixels, width, height = load_image(path, max_side=100)
    assert (pixels.shape, width, height) == ((100, 50, 3), 500, 1000)
    assert load_image(path, max_side=5000)[0].shape == (1000, 500, 3)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20), (30_000, 3)])
def test_extreme_sizes_end_to_end(tmp_path: Path, extractor: BuiltinExtractor, size: tuple[int, int]) -> None:
    pixels, width, height = load_image(save(tmp_path / "x.png", corner_image(size)), max_side=640)
    assert (width, height) == size
    check(extractor.extract(1, pixels, width, height), width, height, extractor)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*chunks, (b"IEND", b"")]
    )


@pytest.mark.parametrize(
    "kind", ["missing", "directory", "empty", "text", "truncated", "garbage", "short", "eps"]
)
def test_broken_files_name_the_file_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.jpg"
    whole = save(tmp_path / "whole.jpg", corner_image((400, 400))).read_bytes()
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(
            {
                "empty": b"",
                "text": b"not an image\n" * 40,
                "truncated": whole[: len(whole) // 2],
                "garbage": whole[:200] + bytes(range(256)) * 8,
                "short": whole[:3],
                "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
            }[kind]
        )
    with pytest.raises(DataError) as caught:
        load_image(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("size", [(60_000, 60_000), (13_500, 13_000), (12_300, 12_300)])
def test_decompression_bombs_are_refused_unread(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="too large") as caught:
            load_image(path, max_side=64)
    # What the limit is, what was found and what to do, in the line that a run prints of a skipped image.
    for part in (f"{size[0] * size[1]:,} pixels", "150,000,000 pixels", "scale it down"):
        assert part in caught.value.message


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    suffix = data.draw(st.sampled_from(["png", "jpg", "gif", "bmp", "webp", "tif", "ppm"]))
    path = save(directory / f"x.{suffix}", corner_image((60, 30)))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 400)))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.integers(1, len(raw)))]))
    try:
        pixels, width, height = load_image(path, max_side=200)
    except DataError as error:
        assert str(path) in error.message
    else:
        assert pixels.ndim == 3
        assert width >= 1
        assert height >= 1


def test_threads_read_alike_and_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jpg", corner_image((300, 200)))
    filters = list(warnings.filters)
    shapes: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: shapes.append(load_image(path, 150)[0].shape)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == [(100, 150, 3)] * 8
    assert list(warnings.filters) == filters
