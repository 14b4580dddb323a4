"""Figures: valid files for whatever comes in, nothing cut off, no text over other text."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image
from tiny_traces import tiny_graph, tiny_trace

from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.looks import true_colours
from tbkin_core.figures.answer import (
    CHOSEN,
    PREDICTED,
    RUNNER_UP,
    TARGET,
    Side,
    answer_figure,
    trace_figure,
)
from tbkin_core.figures.attention_panels import SIDE_COLORS
from tbkin_core.figures.canvas import COLORS, Page, clean_text, figure_mark, figure_style
from tbkin_core.figures.contact_sheet import GIVEN, RIGHT, SheetGroup, SheetItem, contact_sheet
from tbkin_core.figures.curves import training_figure
from tbkin_core.figures.graph import graph_figure, graph_regions
from tbkin_core.figures.page import write_page
from tbkin_core.figures.sweep_curves import sweep_figure
from tbkin_core.figures.trace import Pass, Trace, load_trace, save_trace
from tbkin_core.figures.views import AttentionView, attention_views, rollout

LONG = "what is the color of the shirt that the man on the left side of the picture is wearing while he " * 3


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponents = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def attention(regions: int, words: int, threshold: float) -> AttentionView:
    source = np.random.default_rng(regions * 1000 + words)
    word_region = softmax(1.5 * source.standard_normal((words + 1, regions)))
    word_weights = softmax(source.standard_normal((1, words)))
    for weights in (word_region, word_weights):
        weights[weights < threshold * weights.max(axis=-1, keepdims=True, initial=0)] = 0
    return AttentionView(word_region[-1], word_weights[0], word_region[:-1])


def answer_arguments(
    regions: int = 36,
    text: str = "what color is the umbrella ?",
    size: tuple[int, int] = (120, 160),
    labels: tuple[str, ...] = ("dog", "tall building", "a", ""),
    rec: bool = False,
) -> dict[str, Any]:
    height, width = size
    source = np.random.default_rng(0)
    corners = np.sort(source.random((regions, 2, 2)), axis=1) * np.array([width, height])  # (K, corner, xy)
    boxes = corners.reshape(regions, 4)
    words = text.split()
    arguments: dict[str, Any] = {
        "image": source.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "boxes": boxes,
        "region_labels": [labels[index % len(labels)] for index in range(regions)],
        "words": words,
        "dense": Side(
            attention(regions, len(words), 0),
            [("blue", 0.5), ("a very long answer that nobody would ever give to this", 0.2)],
        ),
        "thresholded": Side(
            attention(regions, len(words), 0.3), [("white", 0.99), ("blue", 0.005), ("x", 0.0)]
        ),
        "threshold": 0.3,
        "selection": "relative",
        "kept_fraction": 0.1234,
        "title": text,
    }
    if rec:
        arguments["target_box"] = [0, 0, width / 2, height]
        arguments["dense"] = replace(arguments["dense"], chosen=0)
        arguments["thresholded"] = replace(
            arguments["thresholded"], chosen=regions - 1, runner_up=0, box=[0, 0, width / 3, height]
        )
    return arguments


ODD_INPUTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "rec": {"rec": True},
    "rec, long": {"rec": True, "text": LONG},
    "no words": {"text": ""},
    "one word": {"text": "dog"},
    "one region": {"regions": 1},
    "one region, rec": {"regions": 1, "rec": True},
    "no regions": {"regions": 0},
    "no regions, no words": {"regions": 0, "text": ""},
    "100 regions": {"regions": 100},
    "long text": {"text": LONG},
    "one very long word": {"text": "donaudampfschifffahrt" * 20, "labels": ("donaudampfschifffahrt" * 5,)},
    "not Latin": {"text": "这 张 照片 里 有 什么 颜色 ? 🐶 नमस्ते مرحبا", "labels": ("狗", "🐶", "\x00\ud800")},
    "mathematics": {"text": "is it $\\frac{$ or 6_{ ? %s <b>&amp;</b>", "labels": ("$x^2", "a_b$")},
    "1 x 1": {"size": (1, 1)},
    "wide": {"size": (20, 900), "rec": True},
    "wider": {"size": (40, 110)},
    "tall": {"size": (900, 20)},
    "a line": {"size": (1, 3000)},
}


DRAWN: dict[Page, list[tuple[Text, Bbox]]] = {}


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Page]]:
    """The pages saved in a test, so that what is on them can be looked at.

    `DRAWN` has the texts of each with their extent in pixels: only what is drawn, so without the tick labels
    beyond the ends of an axis.
    """
    saved: list[Page] = []
    save, draw = Page.save, Text.draw

    def remember_page(page: Page, path: Path, mark: str = "") -> None:
        found: list[Text] = []

        def remember_text(text: Text, *arguments: Any, **options: Any) -> None:
            found.append(text)
            draw(text, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Text, "draw", remember_text)
            save(page, path, mark)
        extents = [(text, text.get_window_extent()) for text in found if text.get_text().strip()]
        DRAWN[page] = [(text, extent) for text, extent in extents if extent.width > 1]
        saved.append(page)

    monkeypatch.setattr(Page, "save", remember_page)
    yield saved
    DRAWN.clear()


def assert_readable(page: Page) -> None:
    """All text lies on the page, and no two level texts lie over each other."""
    found = DRAWN[page]
    assert found
    width, height = page.figure.bbox.width, page.figure.bbox.height
    for text, extent in found:
        where = (text.get_text(), extent)
        assert extent.x0 >= -1 and extent.y0 >= -1, where
        assert extent.x1 <= width + 1 and extent.y1 <= height + 1, where
    level = [(text, extent) for text, extent in found if text.get_rotation() == 0]
    for index, (text, extent) in enumerate(level):
        for other, other_extent in level[index + 1 :]:
            both = Bbox.intersection(extent, other_extent)
            # A few pixels are the space around the letters.
            overlap = both is not None and min(both.width, both.height) > 5
            assert not overlap, (text.get_text(), other.get_text())


@pytest.mark.parametrize("column", [False, True], ids=["page", "column"])
@pytest.mark.parametrize("name", ODD_INPUTS)
def test_answer_figure_is_readable_whatever_comes_in(
    name: str, column: bool, tmp_path: Path, pages: list[Page]
) -> None:
    path = tmp_path / "answer.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer_figure(path, **answer_arguments(**ODD_INPUTS[name]), column=column)
    with Image.open(path) as image:
        image.load()
        assert image.width == (680 if column else 1440)
        assert 300 < image.height < 4000
    # Printed at this width, nothing is smaller than a footnote.
    assert min(text.get_fontsize() for text, _ in DRAWN[pages[0]]) >= 6.5
    assert_readable(pages[0])
    assert [file.name for file in tmp_path.iterdir()] == ["answer.png"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_formats_and_repeatability(suffix: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    arguments = answer_arguments(text="is it 🐶 & <dog> \x01 \x0c \ud83d ?")
    answer_figure(first, **arguments)
    answer_figure(second, **arguments)
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    if suffix == ".svg":
        root = ElementTree.fromstring(content)
        assert root.tag.endswith("svg")
        words = " ".join("".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text"))
        assert "<dog>" in words, "letters, which can be searched"
    if suffix == ".pdf":
        assert b"/CIDFontType2" in content and b"/Type3" not in content, "fonts are embedded as TrueType"


def test_dense_and_thresholded_share_their_colours_and_dropped_cells_are_grey(
    tmp_path: Path, pages: list[Page]
) -> None:
    arguments = answer_arguments()
    answer_figure(tmp_path / "answer.png", **arguments)
    images = [image for axes in pages[0].figure.axes for image in axes.images]
    arrays: dict[Any, Any] = {image: image.get_array() for image in images}
    matrices = {image: array for image, array in arrays.items() if array.ndim == 2}
    dense, thresholded = matrices.values()
    assert len({(image.norm.vmin, image.norm.vmax) for image in matrices}) == 1
    assert np.ma.count_masked(dense) == 0
    assert np.ma.count_masked(thresholded) == np.count_nonzero(thresholded.data == 0) > 0


def shown_pictures(page: Page, shape: tuple[int, int]) -> list[NDArray[np.float64]]:
    """The image as both panels show it, one pixel for each of its own (nearest), (H, W, 3)."""
    arrays = [np.asarray(image.get_array()) for axes in page.figure.axes for image in axes.images]
    # Those of the key to the scale are small.
    pictures = [array for array in arrays if array.ndim == 3 and array.shape[1] > 100]
    height, width = shape
    return [
        array[
            np.ix_(
                ((np.arange(height) + 0.5) / height * len(array)).astype(int),
                ((np.arange(width) + 0.5) / width * array.shape[1]).astype(int),
            )
        ]
        for array in pictures
    ]


def test_the_picture_keeps_its_colours_where_the_model_looked(tmp_path: Path, pages: list[Page]) -> None:
    arguments = answer_arguments(regions=2, size=(4, 8))
    arguments["image"] = np.full((4, 8, 3), (250, 20, 30), np.uint8)
    arguments["boxes"] = [[0, 0, 4, 4], [4, 0, 8, 4]]
    words = len(arguments["words"])
    for name, weights in (("dense", [0.5, 0.1]), ("thresholded", [0.5, 0.0])):
        view = AttentionView(np.array(weights), np.ones(words), np.ones((words, 2)), positions=20)
        arguments[name] = Side(view)
    answer_figure(tmp_path / "answer.png", **arguments)
    dense, thresholded = shown_pictures(pages[0], (4, 8))
    saturation = [np.ptp(picture, axis=-1) for picture in (dense, thresholded)]
    for picture in (dense, thresholded):
        np.testing.assert_allclose(picture[:, :4] * 255, arguments["image"][:, :4], atol=1)
    assert saturation[1][:, 4:].max() < 1e-6
    assert 0.1 < saturation[0][:, 4:].max() < 0.8 * saturation[0][:, :4].min()


def expected_strength(share: Any, positions: int) -> Any:
    """The scale as its docstring has it: of the share and the number of positions alone."""
    full = min(8, positions)
    return np.sqrt(np.minimum(np.asarray(share) * positions, full) / full)


@pytest.mark.parametrize("seed", range(4))
def test_a_share_of_attention_looks_alike_in_pictures_words_and_maps(
    seed: int, tmp_path: Path, pages: list[Page]
) -> None:
    source = np.random.default_rng(seed)
    count, positions = int(source.integers(2, 7)), int(source.integers(10, 60))
    arguments = answer_arguments(regions=count, size=(10, 10 * count))
    words = len(arguments["words"])
    arguments["image"] = np.full((10, 10 * count, 3), (250, 20, 30), np.uint8)
    arguments["boxes"] = [[10 * number, 0, 10 * number + 10, 10] for number in range(count)]
    shares = {}
    for name in ("dense", "thresholded"):
        row = source.dirichlet(np.full(positions, source.choice([0.2, 1, 50])))
        rows = source.dirichlet(np.full(positions, 0.5), size=words)
        shares[name] = (row[:count], row[count : count + words], rows[:, :count])
        arguments[name] = Side(AttentionView(*shares[name], positions=positions))
    answer_figure(tmp_path / "answer.png", **arguments)
    axes = pages[0].figure.axes
    maps = [image for one in axes for image in one.images if np.asarray(image.get_array()).ndim == 2]
    of_bars = next(one.patches for one in axes if len(one.patches) == 2 * words and not one.images)
    for side, (name, (regions, of_words, _)) in enumerate(shares.items()):
        picture = shown_pictures(pages[0], (10, 10 * count))[side][5, 5::10]  # (count, 3)
        clear = np.ptp(picture, axis=-1) / (230 / 255)
        np.testing.assert_allclose(clear, expected_strength(regions, positions), atol=0.01)
        color = np.array(to_rgb(COLORS[side]))
        bars = of_bars[side * words : (side + 1) * words]
        drawn = np.array([bar.get_facecolor()[:3] for bar in bars])  # (words, 3)
        strong = ((1 - drawn) / (1 - color)).mean(axis=1)
        np.testing.assert_allclose(strong, expected_strength(of_words, positions), atol=0.01)
        cells = np.ma.filled(maps[side].get_array(), 0.0)
        np.testing.assert_allclose(
            np.asarray(maps[side].norm(cells)), expected_strength(cells, positions), atol=1e-6
        )
        outlined = [one for one in axes if one.images][side].patches
        assert len(outlined) == min(3, np.count_nonzero(regions * positions >= 2)), name


@pytest.mark.parametrize("column", [False, True], ids=["page", "column"])
def test_even_attention_looks_even(column: bool, tmp_path: Path, pages: list[Page]) -> None:
    """3.1 % on the strongest of 29 regions, where the even share among 36 positions is 2.8 %."""
    arguments = answer_arguments(regions=29, size=(60, 80))
    arguments["image"] = np.full((60, 80, 3), (10, 120, 230), np.uint8)
    words = len(arguments["words"])
    for name in ("dense", "thresholded"):
        weights = np.linspace(0.026, 0.031, 29)
        arguments[name] = Side(
            AttentionView(weights, np.full(words, 0.03), np.full((words, 29), 0.028), "a test", 36)
        )
    answer_figure(tmp_path / "answer.png", **arguments, column=column)
    caption = said(pages[0]).replace("\n", " ")
    assert "nearly even on regions: at most 3.1 %" in caption and "the even share of 2.8 %" in caption
    assert "Weights: a test." in caption
    for axes in pages[0].figure.axes:
        assert not (axes.images and axes.patches), "nothing is outlined"
    for picture in shown_pictures(pages[0], (60, 80)):
        clear = np.ptp(picture.reshape(-1, 3), axis=-1) / (220 / 255)
        covered = clear[clear > 0]
        assert covered.min() > 0.3 and covered.max() < 0.4


def test_little_attention_on_all_regions_is_not_called_even(tmp_path: Path, pages: list[Page]) -> None:
    arguments = answer_arguments(regions=4)
    words = len(arguments["words"])
    for name, weights in (("dense", [0.002, 0.001, 0.001, 0.001]), ("thresholded", [0.9, 0, 0, 0])):
        view = AttentionView(np.array(weights), np.full(words, 0.1), np.full((words, 4), 0.1), positions=20)
        arguments[name] = Side(view)
    answer_figure(tmp_path / "answer.png", **arguments)
    caption = said(pages[0]).replace("\n", " ")
    assert "Dense attention reaches that on no region: at most 0.2 %." in caption and "even on" not in caption
    dense, thresholded = [axes for axes in pages[0].figure.axes if axes.images][:2]
    assert not dense.patches and len(thresholded.patches) == 1


def said(page: Page) -> str:
    return " ".join(text.get_text() for text in page.figure.texts)


@pytest.mark.parametrize("column", [False, True], ids=["page", "column"])
def test_regions_that_nothing_attends_to_are_told_of(column: bool, tmp_path: Path, pages: list[Page]) -> None:
    arguments = answer_arguments(regions=2, size=(60, 80))
    words = len(arguments["words"])
    dropped = Side(AttentionView(np.zeros(2), np.ones(words), np.zeros((words, 2))))
    answer_figure(tmp_path / "answer.png", **(arguments | {"thresholded": dropped}), column=column)
    assert "all regions dropped" in said(pages[0]) and "no attention on regions" not in said(pages[0])
    # A model that does not see the image has nothing to map and nothing that was dropped.
    blind = arguments | {"dense": dropped, "thresholded": dropped, "note": "A note on names."}
    answer_figure(tmp_path / "answer.png", **blind, column=column)
    assert said(pages[1]).count("no attention on regions") == 2
    assert "the answer is from the words alone" in said(pages[1]).replace("\n", " ")
    assert all(
        word not in said(pages[1]) for word in ("dropped", "thresholded map", "A note", "region weight")
    )
    for page in pages:
        assert_readable(page)


def test_one_key_is_not_told_of_as_many(tmp_path: Path, pages: list[Page]) -> None:
    for count in (1, 2):
        arguments = answer_arguments() | {"selection": "topk", "threshold": count}
        answer_figure(tmp_path / "answer.png", **arguments)
    assert "(top 1 key)" in said(pages[0]) and "(top 2 keys)" in said(pages[1])


def test_a_column_names_a_transform(tmp_path: Path, pages: list[Page]) -> None:
    arguments = answer_arguments(regions=2) | {"selection": "entmax15", "threshold": 1}
    answer_figure(tmp_path / "answer.png", **arguments, column=True)
    shown = [text.get_text() for text in pages[0].figure.texts]
    assert "entmax15" in shown and "Sparse attention (entmax15) keeps" in said(pages[0])


def test_borrowed_names_are_told_of(tmp_path: Path, pages: list[Page]) -> None:
    for borrowed in (True, False):
        trace_figure(tmp_path / "figure.png", traced(names_annotated=borrowed))
    assert [("annotated boxes" in said(page)) for page in pages] == [True, False]


@pytest.mark.parametrize("column", [False, True], ids=["page", "column"])
def test_the_caption_says_what_it_used(column: bool, tmp_path: Path, pages: list[Page]) -> None:
    trace = traced(
        answered_by="dense",
        also_by="the words and the mean region",
        names_from="photo",
        layers=[1],
        scope="cross-modal",
    )
    choices: list[dict[str, Any]] = [{}, {"layer": 0, "head": 1}, {"aggregate": "rollout"}]
    for choice in choices:
        trace_figure(tmp_path / "figure.png", trace, **choice, column=column)
    trace_figure(tmp_path / "figure.png", replace(trace, answered_by="", also_by=""), column=column)
    trace_figure(tmp_path / "figure.png", replace(trace, region_labels=[""] * 4), column=column)
    captions = [said(page).replace("\n", " ") for page in pages]
    assert "attention in layer 2, the last of 3, mean of 2 heads, as read by [CLS]" in captions[0]
    assert "attention in layer 0 of 0 to 2, head 1 of 2" in captions[1]
    assert "attention rollout over 3 layers" in captions[2]
    for caption in captions[:3]:
        assert "(relative, τ = 0.3) keeps" in caption and "The threshold selects" in caption
        assert "The dense answer is the model's own, which was trained without a threshold." in caption
        assert "It also goes by the words and the mean region." in caption
        assert "named by the extractor (photo), where it is sure" in caption
    assert "the model's own" not in captions[3] and "It also" not in captions[3]
    assert "named by" not in captions[4], "nothing has a name"


def test_colours_name_a_region_where_most_of_its_box_has_them() -> None:
    picture = np.full((100, 200, 3), (0, 128, 0), np.uint8)
    picture[:, 100:] = (225, 35, 35)
    boxes = np.array(
        [[0, 0, 100, 100], [200, 0, 400, 200], [100, 0, 300, 200], [150, 0, 390, 200]], np.float32
    )
    looks = ["green", "green", "red", "red"]
    # The picture is shown at half its size. A look that a store has of what lies behind is none of the box.
    assert true_colours(picture, boxes, looks, (400, 200)) == ["green", "", "", "red"]
    assert true_colours(picture, boxes[:1], ["striped"], (400, 200)) == [""]
    assert true_colours(picture, boxes[:0], [], (400, 200)) == []


def traced(task: str = "vqa", **changes: Any) -> Trace:
    """A trace of random scores: [CLS], a word of two pieces, a word of one, [SEP], then four regions."""
    source = np.random.default_rng(3)
    text, regions = 5, 4
    shape = (3, 2, text + regions, text + regions)
    dense = source.standard_normal(shape).astype(np.float16)
    kept = source.random(shape) > 0.4
    kept[..., 0] = True
    kept[-1, :, 0, text] = False  # the last layer's [CLS] drops region 0
    choice: dict[str, Any] = (
        {"chosen": 1, "runner_up": 2, "box": (0.0, 0.0, 30.0, 20.0)} if task == "rec" else {}
    )
    answers = [("region 1", 0.7)] if task == "rec" else [("red", 0.7), ("blue", 0.2)]
    values: dict[str, Any] = {
        "task": task,
        "text": "reddish star",
        "image": np.full((20, 40, 3), 90, np.uint8),
        "image_size": (80, 40),
        "boxes": np.array([[0, 0, 40, 20], [40, 0, 80, 20], [0, 20, 40, 40], [40, 20, 80, 40]], np.float32),
        "region_labels": ["red", "", "blue", "green"],
        "words": ["reddish", "star"],
        "pieces": ["[CLS]", "red", "##dish", "star", "[SEP]"],
        "word_ids": np.array([-1, 0, 0, 1, -1]),
        "selection": "relative",
        "threshold": 0.3,
        "dense": Pass(dense, np.ones(shape, bool), answers=answers, **choice),
        "thresholded": Pass(dense, kept, answers=answers, **choice),
    }
    return Trace(**(values | changes))


def test_an_answer_shows_what_cls_read_and_a_grounding_what_the_chosen_region_read() -> None:
    trace = traced()
    dense, answer = attention_views(trace)
    row = trace.thresholded.weights()[-1].mean(axis=0)[0]
    np.testing.assert_allclose(answer.region_weights, row[5:], atol=1e-6)
    np.testing.assert_allclose(answer.word_weights, [row[1:3].sum(), row[3]], atol=1e-6)
    assert answer.region_weights[0] == 0 < dense.region_weights[0]

    trace = traced("rec")
    grounding = attention_views(trace)[1]
    matrix = rollout(trace.thresholded.weights())
    np.testing.assert_allclose(grounding.region_weights, matrix[5 + 1, 5:], atol=1e-6)
    np.testing.assert_allclose(grounding.word_weights, [matrix[6, 1:3].sum(), matrix[6, 3]], atol=1e-6)
    np.testing.assert_allclose(grounding.word_region[0], matrix[1:3, 5:].mean(axis=0), atol=1e-6)
    assert answer.source != grounding.source


def test_a_layer_and_a_head_are_shown_alone() -> None:
    trace = traced()
    weights = trace.dense.weights()
    for chosen, expected in (
        ({"layer": 0}, weights[0].mean(axis=0)),
        ({"layer": 1, "head": 1}, weights[1, 1]),
        ({"head": 0}, weights[-1, 0]),
        ({"aggregate": "rollout"}, rollout(weights)),
    ):
        view = attention_views(trace, **chosen)[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(view.region_weights, expected[0, 5:], atol=1e-6, err_msg=str(chosen))
    for chosen, message in (
        ({"layer": 3}, "layer: expected a number from 0 to 2"),
        ({"head": 2}, "head: .*1"),
    ):
        with pytest.raises(ConfigError, match=message):
            attention_views(trace, **chosen)  # type: ignore[arg-type]


def test_rollout_shares_out_each_position() -> None:
    weights = traced().dense.weights()
    result = rollout(weights)
    np.testing.assert_allclose(result.sum(axis=-1), 1, atol=1e-5)
    expected = np.eye(9)
    for layer in weights.astype(np.float64):
        expected = (layer.mean(axis=0) / 2 + np.eye(9) / 2) @ expected
    np.testing.assert_allclose(result, expected, atol=1e-5)
    identity = np.broadcast_to(np.eye(4), (3, 2, 4, 4))
    np.testing.assert_allclose(rollout(identity), np.eye(4))


@pytest.mark.parametrize("task", ["vqa", "rec", "pretrain"])
def test_a_saved_trace_draws_the_same_figure(task: str, tmp_path: Path) -> None:
    trace = traced(task, target_box=(0.0, 0.0, 40.0, 20.0))
    save_trace(tmp_path / "trace.npz", trace)
    trace_figure(tmp_path / "first.png", trace)
    trace_figure(tmp_path / "second.png", load_trace(tmp_path / "trace.npz"))
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_the_kept_fraction_counts_what_the_dense_pass_has() -> None:
    trace = traced()
    assert trace.kept_fraction() == pytest.approx(trace.thresholded.kept.mean())
    hidden = trace.dense.kept.copy()
    hidden[..., -1] = False  # padding
    half = replace(
        trace, dense=replace(trace.dense, kept=hidden), thresholded=replace(trace.dense, kept=hidden)
    )
    assert half.kept_fraction() == 1


def test_grounding_names_the_overlap_with_the_target(tmp_path: Path, pages: list[Page]) -> None:
    arguments = answer_arguments(rec=True)
    arguments["target_box"] = arguments["boxes"][-1]
    answer_figure(tmp_path / "answer.png", **arguments)
    shown = [text.get_text() for text in pages[0].figure.texts]
    assert any(text.startswith("chosen region: 35") and text.endswith("IoU 1.00") for text in shown)
    assert any(text.startswith("runner-up: 0 dog") for text in shown)


def test_what_share_went_to_the_regions_is_said(tmp_path: Path, pages: list[Page]) -> None:
    arguments = answer_arguments(regions=2)
    words = len(arguments["words"])
    for name, weights in (("dense", [0.03, 0.01]), ("thresholded", [0.0, 0.0])):
        arguments[name] = Side(AttentionView(np.array(weights), np.ones(words), np.ones((words, 2))))
    answer_figure(tmp_path / "answer.png", **arguments)
    shown = [text.get_text() for text in pages[0].figure.texts]
    assert [text for text in shown if text.endswith("on regions")] == ["4 % on regions", "0 % on regions"]


def test_a_grounding_names_its_regions_alike_everywhere(tmp_path: Path, pages: list[Page]) -> None:
    trace_figure(tmp_path / "answer.png", traced("rec", region_labels=["red", "green", "", ""]))
    shown = [text.get_text() for text in pages[0].figure.texts]
    assert "1 green" in shown and "chosen region: 1 green" in shown and "region 1" not in shown


# Machado, Oliveira and Fernandes (2009), severity 1, of linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def seen(color: str) -> NDArray[np.float64]:
    """CIELAB of a colour as a deuteranope sees it."""
    from skimage.color import rgb2lab

    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    linear = np.clip(DEUTERANOPIA @ linear, 0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize(
    "colors",
    [SIDE_COLORS, (CHOSEN, RUNNER_UP, TARGET, PREDICTED), (GIVEN, RIGHT), COLORS[:3]],
    ids=["dense and thresholded", "boxes of a grounding", "given and right", "curves"],
)
def test_colours_are_told_apart_by_the_colour_blind(colors: tuple[str, ...]) -> None:
    distances = [np.linalg.norm(seen(one) - seen(other)) for one, other in combinations(colors, 2)]
    assert min(distances) > 20, distances
    assert np.linalg.norm(seen(COLORS[2]) - seen(COLORS[3])) < 20, "what it would refuse"


def test_boxes_of_a_grounding_differ_in_line_style_too(tmp_path: Path, pages: list[Page]) -> None:
    trace_figure(tmp_path / "answer.png", traced("rec", target_box=(0.0, 0.0, 40.0, 20.0)))
    boxes = pages[0].figure.axes[0].patches
    styles = {to_hex(box.get_edgecolor()).upper(): box.get_linestyle() for box in boxes}
    assert set(styles) == {CHOSEN, RUNNER_UP, TARGET, PREDICTED}
    assert len(set(styles.values())) == 4


def test_a_label_stands_at_its_box(tmp_path: Path, pages: list[Page]) -> None:
    """A small box in a large one: the small one's label is not pushed out of the large one."""
    arguments = answer_arguments(regions=2, size=(200, 300), labels=("a", "b"))
    arguments["boxes"] = [[10, 10, 290, 190], [140, 90, 170, 110]]
    words = len(arguments["words"])
    for name in ("dense", "thresholded"):
        arguments[name] = Side(AttentionView(np.array([0.5, 0.4]), np.ones(words), np.ones((words, 2))))
    answer_figure(tmp_path / "answer.png", **arguments)
    picture = pages[0].figure.axes[0]
    box = picture.transData.transform([[140, 110], [170, 90]])
    label = next(extent for text, extent in DRAWN[pages[0]] if text.get_text() == "1 b")
    assert label.x0 < box[1, 0] + 20 and label.x1 > box[0, 0] - 20
    assert min(abs(label.y0 - box[1, 1]), abs(label.y1 - box[0, 1])) < 20


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_says_what_it_was_drawn_from(tmp_path: Path, suffix: str) -> None:
    mark, trace = "tbkin trace 0123abcd", tiny_trace()
    drawn = [tmp_path / f"{name}.{suffix}" for name in ("answer", "graph", "sheet")]
    trace_figure(drawn[0], trace, mark=mark)
    graph_figure(drawn[1], trace, mark=mark)
    contact_sheet(drawn[2], SHEETS["one"], mark=mark)
    write_page(tmp_path / "page.html", trace, mark)
    assert {figure_mark(file) for file in (*drawn, tmp_path / "page.html")} == {mark}
    # A figure of nothing that is known, and what is none.
    trace_figure(drawn[0], trace)
    Image.new("RGB", (9, 9)).save(tmp_path / "own.png")
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    others = [drawn[0], *(tmp_path / name for name in ("own.png", "link", "pipe", "none")), tmp_path]
    assert {figure_mark(file) for file in others} == {""}


SHEETS: dict[str, list[SheetGroup]] = {
    "one": [SheetGroup("color", [SheetItem(np.zeros((4, 4, 3), np.uint8), "what?", "red (0.50)", "blue")])],
    "many": [
        SheetGroup(
            f"{LONG} {kind}",
            [
                SheetItem(
                    np.full((10 + 40 * number, 90, 3), 99, np.uint8),
                    LONG,
                    LONG,
                    LONG,
                    number == 2,
                    [1, 1, 9, 9],
                )
                for number in range(kind + 3)
            ],
        )
        for kind in range(4)
    ],
    "odd": [
        SheetGroup("", []),
        SheetGroup(
            "狗 🐶 $x^2", [SheetItem(None, "", "", ""), SheetItem(None, "$\\frac{", "x" * 300, "\x00")]
        ),
        SheetGroup(
            "a line", [SheetItem(np.zeros((1, 900, 3), np.uint8), "?", "no", "yes", target=[0, 0, np.nan, 1])]
        ),
    ],
}


@pytest.mark.parametrize("column", [False, True], ids=["page", "column"])
@pytest.mark.parametrize("name", SHEETS)
def test_a_contact_sheet_is_readable(name: str, column: bool, tmp_path: Path, pages: list[Page]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contact_sheet(tmp_path / "sheet.png", SHEETS[name], title=LONG, caption=LONG, column=column)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width == (680 if column else 1440)
    assert_readable(pages[0])


def test_a_contact_sheet_marks_right_and_wrong_and_draws_both_boxes(
    tmp_path: Path, pages: list[Page]
) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    items = [
        SheetItem(picture, "star", "IoU 0.90", "", True, [1, 2, 11, 22], [0, 0, 10, 20]),
        SheetItem(picture, "moon", "red", "blue"),
    ]
    contact_sheet(tmp_path / "sheet.svg", [SheetGroup("all", items)])
    shown = [text.get_text() for text in pages[0].figure.texts]
    assert shown == ["all", "star", "✓ IoU 0.90", "moon", "✗ red", "✓ blue"]
    first, second = pages[0].figure.axes
    assert [patch.get_bbox().bounds for patch in first.patches] == [(0, 0, 10, 20), (1, 2, 10, 20)]  # type: ignore[attr-defined]
    assert not second.patches


def test_an_empty_contact_sheet_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one answer"):
        contact_sheet(tmp_path / "sheet.png", [SheetGroup("none")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((5, 4))}, r"boxes must be \(36, 4\), got \(5, 4\)"),
        ({"dense": Side(attention(36, 5, 0))}, r"dense.word_weights must be \(6,\)"),
        ({"thresholded": Side(attention(30, 6, 0))}, r"thresholded.region_weights must be \(36,\)"),
        ({"image": np.zeros((4, 4, 3))}, "uint8"),
        ({"thresholded": Side(attention(36, 6, 0), chosen=36)}, "not one of the 36 regions"),
        ({"target_box": [1, 2]}, r"box must be \(4,\)"),
    ],
)
def test_unfit_arrays_are_explained(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        answer_figure(tmp_path / "answer.png", **(answer_arguments() | change))
    assert not list(tmp_path.iterdir())


def sweep_rows(selection: str, thresholds: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "selection": selection,
            "threshold": threshold,
            "accuracy": 60.0 - index,
            "accuracy_low": 59.0 - index,
            "accuracy_high": 61.0 - index,
            "kept_fraction": 1 / (1 + index),
        }
        for index, threshold in enumerate(thresholds)
    ]


SWEEPS: dict[str, list[dict[str, Any]]] = {
    "one rule": sweep_rows("relative", [0, 0.1, 0.2, 0.5, 0.9]),
    "all rules": [
        *sweep_rows("relative", [0, 0.1, 0.9]),
        *sweep_rows("probability", [0, 0.01, 0.1]),
        *sweep_rows("score", [-3, -1, 2]),
        *sweep_rows("topk", [0, 1, 8, 64]),
    ],
    "one row": sweep_rows("relative", [0.3]),
    "dense only": sweep_rows("relative", [0]),
    "one top-k": sweep_rows("topk", [16]),
    "no intervals": [
        {"selection": "relative", "threshold": 0.1 * step, "accuracy": 100, "kept_fraction": 0.5}
        for step in range(4)
    ],
    "nothing measured": [
        {"selection": "relative", "threshold": 0.1, "accuracy": float("nan"), "kept_fraction": None}
    ],
}


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize(
    ("title", "column"), [("", False), (LONG, False), (LONG, True)], ids=["plain", "page", "column"]
)
def test_sweep_figure_is_readable(
    name: str, title: str, column: bool, tmp_path: Path, pages: list[Page]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep_figure(tmp_path / "sweep.png", SWEEPS[name], title=title, column=column)
    assert pages[0].width == (3.4 if column else 7.2)
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    assert_readable(pages[0])


def test_sweep_draws_the_dense_model_as_a_level_line_in_every_plot(tmp_path: Path, pages: list[Page]) -> None:
    sweep_figure(tmp_path / "sweep.svg", SWEEPS["all rules"])
    plots = pages[0].figure.axes[::2]  # each is followed by its twin for the kept share
    assert len(plots) == 3
    for axes in plots:
        assert any(
            np.array_equal(line.get_ydata(), [60, 60]) and line.get_linestyle() == ":" for line in axes.lines
        )
    topk = plots[-1].lines[-1]
    assert np.array_equal(topk.get_xdata(), [1, 8, 64])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([{"threshold": 1}], "no selection, accuracy, kept_fraction"),
        (sweep_rows("nearest", [0.1]), "unknown selection rule 'nearest'"),
    ],
)
def test_unfit_sweeps_are_explained(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        sweep_figure(tmp_path / "sweep.png", rows)


TRAININGS: dict[str, list[dict[str, Any]]] = {
    "long": [
        {"step": step, "epoch": 0, "loss": 5 / (step + 1), "mlm_loss": 1.0, "lr": 0.1} for step in range(500)
    ]
    + [{"step": step, "accuracy": step / 10, "val_loss": 1.0, "note": "text"} for step in range(0, 500, 50)],
    "one row": [{"step": 10, "loss": 0.5}],
    "metric only": [{"step": step, "accuracy": 50.0} for step in range(3)],
    "not a number": [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 3}, {"step": 3, "loss": None}],
    "many": [{"step": step, **{f"loss_{'x' * key}": 1e-9 * key for key in range(30)}} for step in range(3)],
    "large": [{"step": 10**7 + step, "loss": 1e12 + step} for step in range(3)],
}


@pytest.mark.parametrize("column", [False, True], ids=["page", "column"])
@pytest.mark.parametrize("name", TRAININGS)
def test_training_figure_is_readable(name: str, column: bool, tmp_path: Path, pages: list[Page]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training_figure(tmp_path / "training.png", TRAININGS[name], title="Pretraining", column=column)
    assert pages[0].width == (3.4 if column else 7.2)
    assert (tmp_path / "training.png").stat().st_size > 5000
    assert_readable(pages[0])


def test_a_training_shows_what_is_learnt_without_the_image(tmp_path: Path, pages: list[Page]) -> None:
    row = {"accuracy": 50.0, "accuracy_without_image": 30.0, "best_accuracy": 50.0, "loss_vqa": 1.0}
    training_figure(tmp_path / "training.png", [{"step": step, **row} for step in range(3)])
    assert "accuracy without image" in said(pages[0]) and "best" not in said(pages[0])


def test_training_figure_separates_losses_from_metrics(tmp_path: Path, pages: list[Page]) -> None:
    training_figure(tmp_path / "training.png", TRAININGS["long"])
    shown = [text.get_text() for text in pages[0].figure.texts]
    assert [text for text in shown if text not in "■—╌"] == [
        "loss",
        "mlm",
        "training",
        "validation",
        "accuracy",
    ]
    upper, lower = pages[0].figure.axes
    dashed = [line for line in upper.lines if line.get_linestyle() == "--"]
    assert [line.get_color() for line in dashed] == [upper.lines[0].get_color()]
    assert lower.get_ylabel() == "Validation (%)"


@pytest.mark.parametrize("metrics", [[], [{"step": 1}], [{"loss": 1.0}], [{"step": 1, "loss": float("nan")}]])
def test_a_training_without_measurements_is_explained(metrics: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs rows with a step"):
        training_figure(tmp_path / "training.png", metrics)


def test_an_unknown_format_is_explained_before_anything_is_drawn(tmp_path: Path) -> None:
    for draw in (
        lambda path: sweep_figure(path, SWEEPS["one row"]),
        lambda path: training_figure(path, TRAININGS["one row"]),
        lambda path: answer_figure(path, **answer_arguments()),
    ):
        with pytest.raises(ConfigError, match=r"unknown figure format '\.gif'"):
            draw(tmp_path / "figure.gif")


def test_the_callers_matplotlib_settings_stay(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31, "lines.linewidth": 9}):
        sweep_figure(tmp_path / "sweep.png", SWEEPS["one rule"])
        assert matplotlib.rcParams["font.size"] == 31
        settings_matter = (tmp_path / "sweep.png").read_bytes()
    sweep_figure(tmp_path / "sweep.png", SWEEPS["one rule"])
    assert (tmp_path / "sweep.png").read_bytes() == settings_matter


def test_text_is_fitted_and_wrapped_to_a_width() -> None:
    with figure_style():
        page = Page(4)
        assert page.fit("dog", 1) == "dog"
        assert page.measure(page.fit(LONG, 1)) <= 1
        lines = page.wrap(LONG, 2, 8, lines=3)
        assert len(lines) == 3 and lines[-1].endswith("…")
        assert all(page.measure(line, 8) <= 2 for line in lines)
        assert page.wrap("", 2, 8, lines=3) == []
        assert " ".join(page.wrap(LONG.strip(), 4, 6, lines=30)) == LONG.strip()
    assert clean_text("a\x00b\n c\ud800") == "ab c"


def test_importing_figures_does_not_load_matplotlib() -> None:
    code = (
        "import sys, tbkin_core.figures.answer, tbkin_core.figures.sweep_curves;"
        "import tbkin_core.figures.curves, tbkin_core.figures.graph;"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'torch', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_font_is_asked_for_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        answer_figure(tmp_path / "answer.png", **answer_arguments(text="狗 在 哪里 ?"))
    assert not caplog.records


def test_words_next_to_nothing_look_like_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    from matplotlib.axes import Axes

    real = Axes.barh

    def noted(self: Axes, places: Any, widths: Any, **style: Any) -> Any:
        bars = real(self, places, widths, **style)
        limits.append((self, float(np.max(widths, initial=0.0))))
        return bars

    monkeypatch.setattr(Axes, "barh", noted)
    view = AttentionView(np.array([1.0, 0.0]), np.full(3, 1e-7), np.full((3, 2), 0.5))
    side = Side(view, [("red", 0.9)])
    answer_figure(
        tmp_path / "words.png",
        image=np.full((40, 60, 3), 200, np.uint8),
        boxes=np.array([[0, 0, 30, 40], [30, 0, 60, 40]]),
        region_labels=["red", "blue"],
        words=["what", "color", "?"],
        dense=side,
        thresholded=side,
        threshold=0.3,
        selection="relative",
        kept_fraction=0.5,
        title="what color?",
    )
    spans = [(axes.get_xlim()[1], longest) for axes, longest in limits if longest < 1e-3]
    assert spans and all(span > 1000 * longest for span, longest in spans)


# ---- the scene graph ----------------------------------------------------------------------------

GRAPHS: dict[str, dict[str, Any]] = {
    "usual": {},
    "no objects": {"names": ()},
    "no links": {"labels": ("cat",)},
    "36 regions": {"regions": 36},
    "36 linked regions": {"regions": 36, "labels": ("dog",)},
    "no regions": {"regions": 0},
    "no regions, no objects": {"regions": 0, "names": ()},
    "long names": {"names": (LONG, "donaudampfschifffahrt" * 5), "labels": (LONG,), "predicate": LONG},
    "many objects": {"names": ("dog",) * 30},
    "long text": {"text": LONG},
    "not Latin": {"names": ("狗", "$x^2 🐶", "\x00\ud800"), "labels": ("狗",), "predicate": "नमस्ते"},
    "rec": {"task": "rec", "text": "the large dog"},
}


def graph_trace(
    names: tuple[str, ...] = ("umbrella", "dog"), predicate: str = "above", **arguments: Any
) -> Any:
    trace = tiny_trace(graph=False, **arguments)
    graph = tiny_graph(trace.text, trace.boxes, trace.region_labels, names, predicate)
    return replace(trace, graph=graph.to_dict())


@pytest.mark.parametrize("column", [False, True], ids=["page", "column"])
@pytest.mark.parametrize("name", GRAPHS)
def test_graph_figure_is_readable_whatever_comes_in(
    name: str, column: bool, tmp_path: Path, pages: list[Page]
) -> None:
    trace = graph_trace(**GRAPHS[name])
    path = tmp_path / "graph.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph_figure(path, trace, column=column)
    with Image.open(path) as image:
        assert image.width == (680 if column else 1440)
        assert 200 < image.height < 2000
    assert min(text.get_fontsize() for text, _ in DRAWN[pages[0]]) >= 6.5
    assert_readable(pages[0])
    texts = {text.get_text() for text, _ in DRAWN[pages[0]]}
    shown = graph_regions(trace, 8 if column else 10)
    assert len(shown) <= 10
    assert {str(region) for region in shown} <= texts  # every box has its number
    caption = said(pages[0]).replace("\n", " ")
    assert "anchor" in caption
    left_out = len(trace.boxes) - len(shown)
    assert (f"{len(shown)} of {len(trace.boxes)} regions" in caption) == (left_out > 0)
    assert ("nothing links" in caption) == (not trace.graph["cross_edges"])


def test_graph_figure_is_drawn_alike_again_and_in_known_formats_alone(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("first.svg", "second.svg")]
    for path in paths:
        graph_figure(path, graph_trace())
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(ConfigError):
        graph_figure(tmp_path / "graph.bmp", graph_trace())


def test_links_of_the_graph_are_as_wide_as_they_weigh(tmp_path: Path, pages: list[Page]) -> None:
    from matplotlib.patches import PathPatch

    trace = graph_trace(regions=9)  # three of them are dogs, with weights 1, 0.75 and 0.5
    graph_figure(tmp_path / "graph.png", trace)
    # Links come before the lines of the relations, the weakest first.
    curves = [
        patch for axes in pages[0].figure.axes for patch in axes.patches if isinstance(patch, PathPatch)
    ]
    widths = [patch.get_linewidth() for patch in curves[:3]]
    assert widths == sorted(widths) and widths[0] < widths[1] < widths[2]
    ends = [float(curve.get_path().vertices[:, 0].max()) for curve in curves]
    arcs = [end for end in ends if end < 3.2]  # of overlapping regions, left of the thumbnails
    assert len(curves) - len(arcs) == 3 + 2


def test_regions_of_the_graph_are_the_linked_then_the_most_attended() -> None:
    trace = graph_trace(regions=36)
    linked = [edge["region"] for edge in trace.graph["cross_edges"]]
    assert set(graph_regions(trace, 12)) >= set(linked)
    assert len(graph_regions(trace, 4)) == 4 and set(graph_regions(trace, 4)) <= set(linked)
    unlinked = graph_trace(regions=36, labels=("cat",))
    text = len(unlinked.pieces)
    weights = [one.weights()[-1].mean(axis=0)[0, text:] for one in (unlinked.dense, unlinked.thresholded)]
    shares = np.maximum(*(weight / weight.sum() for weight in weights))
    looked_at = np.argsort(-shares, kind="stable").tolist()
    assert graph_regions(unlinked, 6) == looked_at[:3]
    # Beside linked regions, those that hardly were looked at are left out.
    few = [region for region in looked_at if shares[region] >= 0.5 * shares.max()]
    assert len(few) < 10 <= len(graph_regions(unlinked, 20))
    # Of what nothing links, one region of each name comes first; a colour is no name.
    several = graph_trace(regions=36, labels=("cat", "", "red", "car"))
    named = graph_regions(several, 8)[:2]
    assert sorted(several.region_labels[region] for region in named) == ["car", "cat"]
    beside = graph_regions(trace, 30)  # 9 dogs are linked; of what else is named, one each comes next
    assert {trace.region_labels[region] for region in beside[len(linked) :][:2]} == {"tall building", "car"}
    grounded = graph_trace(task="rec", regions=36, labels=("cat",))
    assert graph_regions(grounded, 12)[:2] == [grounded.thresholded.chosen, grounded.thresholded.runner_up]


def test_a_trace_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scene graph"):
        graph_figure(tmp_path / "graph.png", tiny_trace(graph=False))
    assert list(tmp_path.iterdir()) == []
