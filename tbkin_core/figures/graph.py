"""The unified scene graph of an image and a text, drawn over and beside the image."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import DataError
from tbkin_core.figures.canvas import (
    COLORS,
    Page,
    Slot,
    check_format,
    draw_box,
    figure_style,
    placed_inside,
    region_name,
)
from tbkin_core.figures.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# All in inches.
_WIDTH = 7.2
_MARGIN = 0.15
_IMAGE_WIDTH = 2.75
_IMAGE_HEIGHT = 3.6  # at most
_HEADING = 0.22
_THUMBNAIL = 0.36
_THUMBNAIL_ROW = 0.42
_OBJECT = 0.2
_ATTRIBUTE = 0.17
_BETWEEN_OBJECTS = 0.14
_RELATION_ROW = 0.27
# Where the columns right of the image begin.
_REGIONS = _MARGIN + _IMAGE_WIDTH + 0.2
_EDGES = _REGIONS + 1.28
_OBJECTS = _EDGES + 0.6
_OBJECT_WIDTH = 1.0
_RELATIONS = _OBJECTS + _OBJECT_WIDTH + 0.3
_RELATION_WIDTH = _WIDTH - _MARGIN - _RELATIONS

_MAX_REGIONS = 10
_MAX_OBJECTS = 12
_MAX_ATTRIBUTES = 4  # of one object
_MAX_RELATIONS = 12
_MAX_IMAGE_EDGES = 8
_LEAST_IOU = 0.1  # of an edge that is drawn between regions
_ATTENDED_SHARE = 0.1  # of the largest weight; what has less was hardly looked at
_OTHER = "#8c8c8c"  # regions linked with no object
_OBJECT_FILL, _ATTRIBUTE_FILL, _RELATION_FILL = "#fff4e0", "#eef4fa", "#f2f2f2"
_INK = "#444444"


def graph_regions(trace: Trace, limit: int) -> list[int]:
    """Regions of the scene graph worth drawing: the chosen, the linked ones, then the most attended.

    Regions without a link only fill up to half of the limit. Where nothing is linked, regions that hardly
    were attended to are drawn too, rather than next to none. Without a graph there are none.

    Returns:
        Numbers of regions: the linked ones in the order of the objects they are linked with, then the others.
    """
    if trace.graph is None:
        return []
    count = len(trace.graph["regions"])
    edges = sorted(trace.graph["cross_edges"], key=lambda edge: (edge["weight"], edge["object"]))
    strongest = {edge["region"]: (edge["weight"], edge["object"]) for edge in edges}
    wanted = sorted(strongest, key=lambda region: (-strongest[region][0], region))
    others: list[int] = list(range(count))
    if regions_agree(trace):
        weights = _attended(trace)
        order = np.argsort(-weights, kind="stable")
        least = _ATTENDED_SHARE * weights.max(initial=0) if strongest else 0
        others = [int(region) for region in order if weights[region] >= max(least, 1e-9 * bool(strongest))]
        chosen = (trace.thresholded.chosen, trace.thresholded.runner_up)
        wanted = [region for region in chosen if region is not None] + wanted
    shown = list(dict.fromkeys(wanted))[:limit]
    others = [region for region in others if region not in shown]
    shown += others[: max(0, limit // 2 - len(shown))]
    linked = sorted((region for region in shown if region in strongest), key=lambda one: strongest[one][1])
    return linked + [region for region in shown if region not in strongest]


def regions_agree(trace: Trace) -> bool:
    """Whether the graph's regions are the model's, so that attention to them can be shown."""
    if trace.graph is None or len(trace.graph["regions"]) != len(trace.boxes):
        return False
    boxes = np.array([region["box"] for region in trace.graph["regions"]], np.float64).reshape(-1, 4)
    return bool(np.allclose(boxes, trace.boxes, atol=1.0))


def graph_figure(path: Path, trace: Trace, mark: str = "") -> None:
    """Draw the unified scene graph: regions over and beside the image, the text graph, and links by weight.

    For `mark` see `tbkin_core.figures.canvas.figure_mark`.

    Raises:
        DataError: The trace holds no graph.
        ConfigError: The format is unknown.
    """
    check_format(path)
    if trace.graph is None:
        raise DataError(
            "trace: holds no scene graph to draw", hint="make it anew: `tbkin visualize` with --graph"
        )
    with figure_style():
        _draw(trace, trace.graph).save(Path(path), mark)


@dataclass(frozen=True)
class _Object:
    """A text object as it is drawn: its middle on the page, its colour and its attributes."""

    middle: float
    color: str
    name: str
    attributes: list[str]


def _draw(trace: Trace, graph: dict[str, Any]) -> Page:
    page = Page(_WIDTH)
    inner = _WIDTH - 2 * _MARGIN
    regions = graph_regions(trace, _MAX_REGIONS)
    title = page.wrap(trace.text or graph["text"], inner, 10, lines=3, bold=True)
    caption = page.wrap(_caption(graph, regions), inner, 7.5, lines=4)

    heights, attributes = [], []
    for number in range(min(len(graph["objects"]), _MAX_OBJECTS)):
        names = [item["name"] for item in graph["attributes"] if item["object"] == number]
        if len(names) > _MAX_ATTRIBUTES:
            names = [*names[: _MAX_ATTRIBUTES - 1], f"and {len(names) - _MAX_ATTRIBUTES + 1} more"]
        attributes.append(names)
        heights.append(_OBJECT + _ATTRIBUTE * len(names) + _BETWEEN_OBJECTS)
    relations = [
        item
        for item in graph["relations"]
        if max(item["subject"], item["object"]) < len(heights) and item["predicate"]
    ][:_MAX_RELATIONS]

    height, width = trace.image.shape[:2]
    scale = min(_IMAGE_WIDTH / max(width, 1), _IMAGE_HEIGHT / max(height, 1))
    image_size = (max(width * scale, 0.1), max(height * scale, 0.1))
    body = max(
        image_size[1], _THUMBNAIL_ROW * len(regions), sum(heights), _RELATION_ROW * len(relations), 0.6
    )
    caption_top = _MARGIN + 0.19 * len(title) + 0.03
    body_top = caption_top + 0.14 * len(caption) + 0.1 + _HEADING
    page.resize(body_top + body + _MARGIN)

    page.lines(_MARGIN, _MARGIN, title, 0.19, size=10, fontweight="bold")
    page.lines(_MARGIN, caption_top, caption, 0.14, color=_INK)
    headings = ((_MARGIN, "Image"), (_REGIONS, "Regions"), (_OBJECTS, "Objects"), (_RELATIONS, "Relations"))
    for left, heading in headings:
        page.text(left, body_top - _HEADING, heading, 8, fontweight="bold")

    # Lines and boxes in inches over the whole page, below the pictures.
    canvas = page.axes(0, 0, page.width, page.height)
    canvas.set(xlim=(0, page.width), ylim=(page.height, 0))
    canvas.axis("off")
    canvas.set_zorder(-1)

    colors = _region_colors(graph, regions)
    image_left = _MARGIN + (_IMAGE_WIDTH - image_size[0]) / 2
    _draw_image(page, trace, graph, colors, (image_left, body_top, *image_size))
    ends = _draw_regions(page, trace, graph, colors, (body_top, body))
    top = body_top + (body - sum(heights)) / 2
    objects: list[_Object] = []
    for number, (height, names) in enumerate(zip(heights, attributes, strict=True)):
        name = graph["objects"][number]["name"]
        objects.append(_Object(top + _OBJECT / 2, _object_color(number), name, names))
        top += height
    _draw_cross_edges(canvas, graph, ends, objects)
    _draw_objects(page, canvas, objects)
    _draw_relations(page, canvas, relations, objects, (body_top, body))
    for left, found, note in ((_OBJECTS, objects, "none found"), (_REGIONS, regions, "none")):
        if not found:
            page.text(left, body_top + body / 2, note, style="italic", va="center", color=_INK)
    return page


def _caption(graph: dict[str, Any], regions: list[int]) -> str:
    caption = "No region's label fits an object or its attributes, so nothing links image and text."
    if graph["cross_edges"]:
        caption = "Links between regions and objects are as wide as their names are alike"
        caption += " (weight, 0 to 1; by colour alone, half)."
    if len(regions) < len(graph["regions"]):
        caption += f" Shown: {len(regions)} of {len(graph['regions'])} regions, those"
        caption += f" {'linked, ' * bool(graph['cross_edges'])}chosen or most attended."
    if len(graph["objects"]) > _MAX_OBJECTS:
        caption += f" {_MAX_OBJECTS} of {len(graph['objects'])} objects are shown."
    if len(graph["relations"]) > _MAX_RELATIONS:
        caption += f" At most {_MAX_RELATIONS} of {len(graph['relations'])} relations are shown."
    if _image_edges(graph, regions):
        caption += f" White lines join regions that overlap (IoU at least {_LEAST_IOU:g})."
    return caption


def _region_colors(graph: dict[str, Any], regions: list[int]) -> dict[int, str]:
    """The colour of the object that a region is linked with most; grey without one."""
    edges = sorted(graph["cross_edges"], key=lambda edge: (edge["weight"], -edge["object"]))
    colors = {edge["region"]: _object_color(edge["object"]) for edge in edges if edge["weight"] > 0}
    return {region: colors.get(region, _OTHER) for region in regions}


def _object_color(number: int) -> str:
    """Six of the colours: neither black nor yellow is seen on every picture."""
    return COLORS[number % 6]


def _image_edges(graph: dict[str, Any], regions: Collection[int]) -> list[dict[str, Any]]:
    """Edges between drawn regions that overlap well, the highest IoU first."""
    edges = [
        edge
        for edge in graph["image_edges"]
        if edge["iou"] >= _LEAST_IOU and edge["first"] in regions and edge["second"] in regions
    ]
    return sorted(edges, key=lambda edge: -edge["iou"])[:_MAX_IMAGE_EDGES]


def _draw_image(page: Page, trace: Trace, graph: dict[str, Any], colors: dict[int, str], slot: Slot) -> None:
    """The image, the boxes of the drawn regions with their numbers, and lines between those that overlap."""
    from matplotlib.patheffects import Normal, Stroke

    left, top, width, height = slot
    axes = page.axes(*slot)
    original_width, original_height = trace.image_size
    axes.imshow(trace.image, extent=(0, original_width, original_height, 0), aspect="auto")
    axes.set(xlim=(0, original_width), ylim=(original_height, 0), xticks=[], yticks=[])
    halo = Stroke(linewidth=2.6, foreground="white")
    boxes = {region: np.array(graph["regions"][region]["box"], np.float64) for region in colors}
    centres = {region: ((x1 + x2) / 2, (y1 + y2) / 2) for region, (x1, y1, x2, y2) in boxes.items()}
    for edge in _image_edges(graph, colors):
        ends = zip(centres[edge["first"]], centres[edge["second"]], strict=True)
        thickness = 1.5 * edge["iou"]
        under = [Stroke(linewidth=1.2 + thickness, foreground=_INK), Normal()]
        axes.plot(*ends, color="white", linewidth=0.5 + thickness, path_effects=under)
    taken: list[tuple[float, float]] = []
    size = (0.21, 0.14)
    # Large boxes first, so that small ones lie over them.
    for region in sorted(colors, key=lambda one: -float(np.prod(boxes[one][2:] - boxes[one][:2]))):
        color = colors[region]
        draw_box(axes, boxes[region], halo, edgecolor=color, linewidth=1.3)
        corners = boxes[region] * np.array([width / original_width, height / original_height] * 2)
        corners += np.array([left, top, left, top])
        place = _free_place(corners, size, slot, taken)
        taken.append(place)
        middle = (place[0] + size[0] / 2, place[1] + size[1] / 2)
        if (np.array(middle) < corners[:2]).any() or (np.array(middle) > corners[2:]).any():
            # The number had to go elsewhere: a line leads to its box.
            xs = (centres[region][0], (middle[0] - left) * original_width / width)
            ys = (centres[region][1], (middle[1] - top) * original_height / height)
            axes.plot(xs, ys, color=color, linewidth=0.8)
        box = {"boxstyle": "square,pad=0.15", "facecolor": "#000000", "edgecolor": color}
        page.text(*middle, str(region), 6.5, ha="center", va="center_baseline", color="white", bbox=box)


def _free_place(
    box: NDArray[np.float64], size: tuple[float, float], slot: Slot, taken: list[tuple[float, float]]
) -> tuple[float, float]:
    """Left and top for a number at a corner of `box`, or else near it, clear of the numbers in `taken`."""
    x1, y1, x2, y2 = box
    corners = [(x, y) for y in (y1, y2 - size[1]) for x in (x1, x2 - size[0])]
    around = [
        (x1 + column * size[0], y1 + row * size[1])
        for row in sorted(range(-8, 9), key=abs)
        for column in sorted(range(-4, 5), key=abs)
    ]
    inside = [placed_inside(slot, *corner, size) for corner in (*corners, *around)]

    def free(place: tuple[float, float]) -> bool:
        return all(
            abs(place[0] - x) >= size[0] + 0.01 or abs(place[1] - y) >= size[1] + 0.02 for x, y in taken
        )

    return next((place for place in inside if free(place)), inside[0])


def _draw_regions(
    page: Page, trace: Trace, graph: dict[str, Any], colors: dict[int, str], body: tuple[float, float]
) -> dict[int, tuple[float, float]]:
    """Thumbnails with their names; for each where its links begin."""
    ends = {}
    top = body[0] + (body[1] - _THUMBNAIL_ROW * len(colors)) / 2
    scale = trace.image.shape[1] / trace.image_size[0]
    for row, (region, color) in enumerate(colors.items()):
        item = graph["regions"][region]
        cut = _crop(trace.image, np.array(item["box"], np.float64) * scale)
        middle = top + _THUMBNAIL_ROW * (row + 0.5)
        # The whole region, in the shape it has.
        fit = _THUMBNAIL / max(cut.shape[:2])
        width, height = max(cut.shape[1] * fit, 0.04), max(cut.shape[0] * fit, 0.04)
        axes = page.axes(_REGIONS + (_THUMBNAIL - width) / 2, middle - height / 2, width, height)
        axes.imshow(cut, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(edgecolor=color, linewidth=1.2)
        name = page.fit(region_name(region, item["label"]), _EDGES - _REGIONS - _THUMBNAIL - 0.1, 7)
        page.text(_REGIONS + _THUMBNAIL + 0.06, middle, name, 7, va="center")
        ends[region] = (_REGIONS + _THUMBNAIL + 0.12 + page.measure(name, 7), middle)
    return ends


def _crop(image: NDArray[np.uint8], box: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The pixels of a box, at least one."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.nan_to_num(box)
    left, top = int(np.clip(x1, 0, width - 1)), int(np.clip(y1, 0, height - 1))
    right, bottom = math.ceil(np.clip(x2, left + 1, width)), math.ceil(np.clip(y2, top + 1, height))
    return image[top:bottom, left:right]


def _draw_cross_edges(
    canvas: Axes, graph: dict[str, Any], ends: dict[int, tuple[float, float]], objects: list[_Object]
) -> None:
    """Links between regions and objects, the weak ones below the strong, one for each two."""
    edges = sorted(graph["cross_edges"], key=lambda one: one["weight"])
    for edge in {(one["region"], one["object"]): one for one in edges}.values():
        if edge["region"] in ends and edge["object"] < len(objects):
            weight = float(np.clip(edge["weight"], 0, 1))
            item = objects[edge["object"]]
            style = {"color": item.color, "linewidth": 0.4 + 2.6 * weight, "alpha": 0.3 + 0.7 * weight}
            _curve(canvas, ends[edge["region"]], (_OBJECTS, item.middle), **style)


def _draw_objects(page: Page, canvas: Axes, objects: list[_Object]) -> None:
    for item in objects:
        size = (_OBJECT_WIDTH, _OBJECT)
        _node(page, canvas, item.name, (_OBJECTS, item.middle), size, _OBJECT_FILL, item.color)
        for place, name in enumerate(item.attributes):
            middle = item.middle + _OBJECT / 2 + 0.02 + _ATTRIBUTE * (place + 0.5)
            xs = (_OBJECTS + 0.08, _OBJECTS + 0.08, _OBJECTS + 0.16)
            canvas.plot(xs, (item.middle + _OBJECT / 2, middle, middle), color=_INK, linewidth=0.6)
            size = (_OBJECT_WIDTH - 0.16, _ATTRIBUTE - 0.03)
            _node(page, canvas, name, (_OBJECTS + 0.16, middle), size, _ATTRIBUTE_FILL, "#b8c8d8")


def _draw_relations(
    page: Page, canvas: Axes, relations: list[Any], objects: list[_Object], body: tuple[float, float]
) -> None:
    """Each relation between its subject and its object, with the arrow at the object."""
    wanted = [(objects[item["subject"]].middle + objects[item["object"]].middle) / 2 for item in relations]
    lowest = body[0] + _RELATION_ROW / 2
    places = [0.0] * len(relations)
    for number in sorted(range(len(relations)), key=wanted.__getitem__):
        places[number] = max(wanted[number], lowest)
        lowest = places[number] + _RELATION_ROW
    beyond = max([0.0, *(place + _RELATION_ROW / 2 - body[0] - body[1] for place in places)])
    side = _OBJECTS + _OBJECT_WIDTH
    for item, place in zip(relations, places, strict=True):
        middle = place - beyond
        subject, other = objects[item["subject"]].middle, objects[item["object"]].middle
        _curve(canvas, (side, subject), (_RELATIONS, middle), color=_INK, linewidth=0.8)
        _curve(canvas, (_RELATIONS, middle), (side + 0.05, other), color=_INK, linewidth=0.8)
        tip = (side + 0.01, side + 0.09, side + 0.09), (other, other - 0.035, other + 0.035)
        canvas.fill(*tip, color=_INK)
        size = (_RELATION_WIDTH, _OBJECT)
        _node(page, canvas, item["predicate"], (_RELATIONS, middle), size, _RELATION_FILL, _INK)


def _node(
    page: Page,
    canvas: Axes,
    name: str,
    place: tuple[float, float],
    size: tuple[float, float],
    fill: str,
    edge: str,
) -> None:
    """A name in a round box; `place` is the middle of its left side."""
    from matplotlib.patches import FancyBboxPatch

    (left, middle), (width, height) = place, size
    style: dict[str, Any] = {"facecolor": fill, "edgecolor": edge, "linewidth": 0.9, "zorder": 3}
    corner, shape = (left, middle - height / 2), "round,pad=0,rounding_size=0.05"
    canvas.add_patch(FancyBboxPatch(corner, width, height, boxstyle=shape, **style))
    page.text(left + 0.05, middle, page.fit(name, width - 0.1, 7), 7, va="center_baseline")


def _curve(canvas: Axes, start: tuple[float, float], end: tuple[float, float], **options: Any) -> None:
    """A curve that leaves and arrives level."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    bend = (start[0] + end[0]) / 2
    curve = Curve([start, (bend, start[1]), (bend, end[1]), end], [Curve.MOVETO, *[Curve.CURVE4] * 3])
    canvas.add_patch(PathPatch(curve, fill=False, capstyle="butt", **options))


def _attended(trace: Trace) -> NDArray[np.float32]:
    """(K,) weights of the regions where the answer is read, in the last layer, mean of heads.

    A region counts with its share in either pass, so that none is overlooked.
    """
    text = len(trace.pieces)
    row = 0 if trace.thresholded.chosen is None else text + trace.thresholded.chosen
    shares = []
    for content in (trace.dense, trace.thresholded):
        weights = content.weights()[-1].mean(axis=0)[row, text:]
        shares.append(weights / (weights.sum() or 1))
    return np.maximum(*shares)
