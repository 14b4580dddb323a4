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
_HEADING = 0.22
_THUMBNAIL = 0.36
_THUMBNAIL_ROW = 0.42
_OBJECT = 0.2
_ATTRIBUTE = 0.17
_BETWEEN_OBJECTS = 0.14
_RELATION_ROW = 0.27


@dataclass(frozen=True)
class _Layout:
    """Where the parts stand, in inches from the left edge, and the letters' sizes in points."""

    width: float
    margin: float
    title: float  # size
    text: float  # size of the caption
    image: tuple[float, float]  # width and height at most
    regions: float  # where the thumbnails begin; arcs between them stand to the left
    edges: float  # where the names of the regions end
    objects: float
    object_width: float
    relations: float
    most: tuple[int, int, int]  # regions, objects and relations
    below: bool = False  # whether regions, objects and relations stand below the image, the caption last

    @property
    def inner(self) -> float:
        return self.width - 2 * self.margin

    @property
    def relation_width(self) -> float:
        return self.width - self.margin - self.relations


_PAGE = _Layout(7.2, 0.15, 10, 7.5, (2.65, 3.6), 3.15, 4.38, 4.98, 1.0, 6.28, (10, 12, 12))
_COLUMN = _Layout(3.4, 0.05, 9, 7, (3.3, 2.3), 0.27, 1.33, 1.63, 0.8, 2.65, (8, 8, 8), below=True)

_MAX_ATTRIBUTES = 4  # of one object
_MAX_IMAGE_EDGES = 8
_LEAST_IOU = 0.1  # of an edge that is drawn between regions
_ATTENDED_SHARE = 0.1  # of the largest weight; what has less was hardly looked at
_OTHER = "#8c8c8c"  # regions linked with no object
_OBJECT_FILL, _ATTRIBUTE_FILL, _RELATION_FILL = "#fff4e0", "#eef4fa", "#f2f2f2"
_INK = "#444444"


def graph_regions(trace: Trace, limit: int) -> list[int]:
    """Regions of the scene graph worth drawing: the chosen, the linked ones, the named, the most attended.

    Regions without a link only fill up to half of the limit; of those with one name, the most attended comes
    first. Where nothing is linked, regions that hardly were attended to are drawn too, rather than next to
    none. Without a graph there are none.

    Returns:
        Numbers of regions: the linked ones in the order of the objects they are linked with, then the others.
    """
    if trace.graph is None:
        return []
    count = len(trace.graph["regions"])
    edges = sorted(trace.graph["cross_edges"], key=lambda edge: (edge["weight"], edge["object"]))
    strongest = {edge["region"]: (edge["weight"], edge["object"]) for edge in edges}
    wanted = sorted(strongest, key=lambda region: (-strongest[region][0], region))
    others = order = list(range(count))
    if regions_agree(trace):
        weights = _attended(trace)
        order = np.argsort(-weights, kind="stable").tolist()
        least = _ATTENDED_SHARE * weights.max(initial=0) if strongest else 0
        others = [region for region in order if weights[region] >= max(least, 1e-9 * bool(strongest))]
        chosen = (trace.thresholded.chosen, trace.thresholded.runner_up)
        wanted = [region for region in chosen if region is not None] + wanted
    shown = list(dict.fromkeys(wanted))[:limit]
    others = [*_one_of_each_name(trace.graph, order, shown), *others]
    others = [region for region in dict.fromkeys(others) if region not in shown]
    shown += others[: max(0, limit // 2 - len(shown))]
    linked = sorted((region for region in shown if region in strongest), key=lambda one: strongest[one][1])
    return linked + [region for region in shown if region not in strongest]


def _one_of_each_name(graph: dict[str, Any], order: list[int], shown: list[int]) -> list[int]:
    """The first region of each name that none shown has: what an image holds says more than parts of it."""
    from tbkin_core.features.descriptors import COLOUR_PROTOTYPES  # with it comes Pillow

    labels = [region["label"] for region in graph["regions"]]
    told = {"", *COLOUR_PROTOTYPES, *(labels[region] for region in shown)}
    names: dict[str, int] = {}
    for region in order:
        if labels[region] not in told:
            names.setdefault(labels[region], region)
    return list(names.values())


def regions_agree(trace: Trace) -> bool:
    """Whether the graph's regions are the model's, so that attention to them can be shown."""
    if trace.graph is None or len(trace.graph["regions"]) != len(trace.boxes):
        return False
    boxes = np.array([region["box"] for region in trace.graph["regions"]], np.float64).reshape(-1, 4)
    return bool(np.allclose(boxes, trace.boxes, atol=1.0))


def graph_figure(path: Path, trace: Trace, mark: str = "", column: bool = False) -> None:
    """Draw the unified scene graph: regions over and beside the image, the text graph, and links by weight.

    With `column` for one column of a paper, 3.4 inches wide, in place of 7.2: the graph below the image, in
    letters of the same size. For `mark` see `tbkin_core.figures.canvas.figure_mark`.

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
        _draw(trace, trace.graph, _COLUMN if column else _PAGE).save(Path(path), mark)


@dataclass(frozen=True)
class _Object:
    """A text object as it is drawn: its middle on the page, its colour and its attributes."""

    middle: float
    color: str
    name: str
    attributes: list[str]


def _draw(trace: Trace, graph: dict[str, Any], layout: _Layout) -> Page:
    page = Page(layout.width)
    most_regions, most_objects, most_relations = layout.most
    regions = graph_regions(trace, most_regions)
    title = page.wrap(trace.text or graph["text"], layout.inner, layout.title, lines=3, bold=True)
    attributes, heights = _attributes(graph, most_objects)
    relations = [
        item
        for item in graph["relations"]
        if max(item["subject"], item["object"]) < len(heights) and item["predicate"]
    ]
    told = (len(relations), most_relations)
    relations = relations[:most_relations]
    words = _caption(graph, regions, len(heights), told)
    caption = page.wrap(words, layout.inner, layout.text, lines=9 if layout.below else 4)

    height, width = trace.image.shape[:2]
    scale = min(layout.image[0] / max(width, 1), layout.image[1] / max(height, 1))
    image_size = (max(width * scale, 0.1), max(height * scale, 0.1))
    columns = (_THUMBNAIL_ROW * len(regions), sum(heights), _RELATION_ROW * len(relations), 0.6)
    body = max(columns) if layout.below else max(image_size[1], *columns)
    row = layout.text * 0.0187
    image_top = layout.margin + 0.019 * layout.title * len(title) + 0.03
    if not layout.below:
        image_top += row * len(caption) + 0.1 + _HEADING
    body_top = image_top + image_size[1] + 0.1 + _HEADING if layout.below else image_top
    caption_top = body_top + body + 0.1 if layout.below else image_top - row * len(caption) - 0.1 - _HEADING
    page.resize((caption_top + row * len(caption) if layout.below else body_top + body) + layout.margin)

    page.lines(
        layout.margin, layout.margin, title, 0.019 * layout.title, size=layout.title, fontweight="bold"
    )
    page.lines(layout.margin, caption_top, caption, row, size=layout.text, color=_INK)
    places = {"Regions": layout.regions, "Objects": layout.objects, "Relations": layout.relations}
    if not layout.below:
        places["Image"] = layout.margin
    for heading, left in places.items():
        page.text(left, body_top - _HEADING, heading, 8, fontweight="bold")

    # Lines and boxes in inches over the whole page, below the pictures.
    canvas = page.axes(0, 0, page.width, page.height)
    canvas.set(xlim=(0, page.width), ylim=(page.height, 0))
    canvas.axis("off")
    canvas.set_zorder(-1)

    colors = _region_colors(graph, regions)
    image_left = layout.margin + (layout.image[0] - image_size[0]) / 2
    _draw_image(page, trace, graph, colors, (image_left, image_top, *image_size))
    ends = _draw_regions(page, layout, trace, graph, colors, (body_top, body))
    top = body_top + (body - sum(heights)) / 2
    objects: list[_Object] = []
    for number, (height, names) in enumerate(zip(heights, attributes, strict=True)):
        name = graph["objects"][number]["name"]
        objects.append(_Object(top + _OBJECT / 2, _object_color(number), name, names))
        top += height
    _draw_cross_edges(canvas, layout, graph, ends, objects)
    _draw_objects(page, canvas, layout, objects)
    _draw_relations(page, canvas, layout, relations, objects, (body_top, body))
    _draw_image_edges(canvas, layout, graph, ends)
    for heading, found in (("Regions", regions), ("Objects", objects), ("Relations", relations)):
        if not found:
            page.text(places[heading], body_top + body / 2, "none", style="italic", va="center", color=_INK)
    return page


def _attributes(graph: dict[str, Any], most: int) -> tuple[list[list[str]], list[float]]:
    """Of each object that is drawn its attributes, and its height with them."""
    attributes, heights = [], []
    for number in range(min(len(graph["objects"]), most)):
        names = [item["name"] for item in graph["attributes"] if item["object"] == number]
        if len(names) > _MAX_ATTRIBUTES:
            names = [*names[: _MAX_ATTRIBUTES - 1], f"and {len(names) - _MAX_ATTRIBUTES + 1} more"]
        attributes.append(names)
        heights.append(_OBJECT + _ATTRIBUTE * len(names) + _BETWEEN_OBJECTS)
    return attributes, heights


def _caption(graph: dict[str, Any], regions: list[int], objects: int, relations: tuple[int, int]) -> str:
    if graph["cross_edges"]:
        caption = "Links between regions and objects are as wide as their names are alike"
        caption += (
            " (weight, 0 to 1; half where the colour alone fits, or where a region without a name looks"
        )
        caption += " like a part of the object). What is linked is an anchor: through anchors,"
        caption += " pretraining tells what is hidden on one side from the other."
    else:
        named = any(item["label"] for item in graph["regions"])
        caption = "No region's name fits" if named else "No region has a name that would fit"
        caption += " an object or its attributes"
        caption = caption if graph["objects"] else "The text names no object"
        caption += ", so nothing links image and text (there is no anchor)."
    if len(regions) < len(graph["regions"]):
        caption += f" Shown: {len(regions)} of {len(graph['regions'])} regions, those"
        caption += f" {'linked, ' * bool(graph['cross_edges'])}chosen, named or most attended."
    if len(graph["objects"]) > objects:
        caption += f" {objects} of {len(graph['objects'])} objects are shown."
    if relations[0] > relations[1]:
        caption += f" {relations[1]} of {relations[0]} relations are shown."
    if _image_edges(graph, regions):
        caption += f" Arcs join regions that overlap (IoU at least {_LEAST_IOU:g})."
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
    """The image, and the boxes of the drawn regions with their numbers."""
    from matplotlib.patheffects import Stroke

    left, top, width, height = slot
    axes = page.axes(*slot)
    original_width, original_height = trace.image_size
    axes.imshow(trace.image, extent=(0, original_width, original_height, 0), aspect="auto")
    axes.set(xlim=(0, original_width), ylim=(original_height, 0), xticks=[], yticks=[])
    halo = Stroke(linewidth=2.6, foreground="white")
    boxes = {region: np.array(graph["regions"][region]["box"], np.float64) for region in colors}
    centres = {region: ((x1 + x2) / 2, (y1 + y2) / 2) for region, (x1, y1, x2, y2) in boxes.items()}
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
    page: Page,
    layout: _Layout,
    trace: Trace,
    graph: dict[str, Any],
    colors: dict[int, str],
    body: tuple[float, float],
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
        axes = page.axes(layout.regions + (_THUMBNAIL - width) / 2, middle - height / 2, width, height)
        axes.imshow(cut, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(edgecolor=color, linewidth=1.2)
        name = page.fit(
            region_name(region, item["label"]), layout.edges - layout.regions - _THUMBNAIL - 0.1, 7
        )
        page.text(layout.regions + _THUMBNAIL + 0.06, middle, name, 7, va="center")
        ends[region] = (layout.regions + _THUMBNAIL + 0.12 + page.measure(name, 7), middle)
    return ends


def _crop(image: NDArray[np.uint8], box: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The pixels of a box, at least one."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.nan_to_num(box)
    left, top = int(np.clip(x1, 0, width - 1)), int(np.clip(y1, 0, height - 1))
    right, bottom = math.ceil(np.clip(x2, left + 1, width)), math.ceil(np.clip(y2, top + 1, height))
    return image[top:bottom, left:right]


def _draw_image_edges(
    canvas: Axes, layout: _Layout, graph: dict[str, Any], ends: dict[int, tuple[float, float]]
) -> None:
    """Arcs left of the thumbnails of regions that overlap, the wider the more they do."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    right = layout.regions - 0.03
    for edge in _image_edges(graph, ends):
        upper, lower = sorted(ends[edge[name]][1] for name in ("first", "second"))
        # Ends a little apart, so that arcs of neighbours do not run into one.
        start, end = upper + 0.06, lower - 0.06
        reach = right - min(0.25, 0.1 + 0.12 * (end - start))
        curve = Curve(
            [(right, start), (reach, start), (reach, end), (right, end)], [Curve.MOVETO, *[Curve.CURVE4] * 3]
        )
        width = 0.5 + 2.0 * edge["iou"]
        canvas.add_patch(PathPatch(curve, fill=False, capstyle="butt", color=_OTHER, linewidth=width))


def _draw_cross_edges(
    canvas: Axes,
    layout: _Layout,
    graph: dict[str, Any],
    ends: dict[int, tuple[float, float]],
    objects: list[_Object],
) -> None:
    """Links between regions and objects, the weak ones below the strong, one for each two."""
    edges = sorted(graph["cross_edges"], key=lambda one: one["weight"])
    for edge in {(one["region"], one["object"]): one for one in edges}.values():
        if edge["region"] in ends and edge["object"] < len(objects):
            weight = float(np.clip(edge["weight"], 0, 1))
            item = objects[edge["object"]]
            style = {"color": item.color, "linewidth": 0.4 + 2.6 * weight, "alpha": 0.3 + 0.7 * weight}
            _curve(canvas, ends[edge["region"]], (layout.objects, item.middle), **style)


def _draw_objects(page: Page, canvas: Axes, layout: _Layout, objects: list[_Object]) -> None:
    left, width = layout.objects, layout.object_width
    for item in objects:
        size = (width, _OBJECT)
        _node(page, canvas, item.name, (left, item.middle), size, _OBJECT_FILL, item.color)
        for place, name in enumerate(item.attributes):
            middle = item.middle + _OBJECT / 2 + 0.02 + _ATTRIBUTE * (place + 0.5)
            xs = (left + 0.08, left + 0.08, left + 0.16)
            canvas.plot(xs, (item.middle + _OBJECT / 2, middle, middle), color=_INK, linewidth=0.6)
            size = (width - 0.16, _ATTRIBUTE - 0.03)
            _node(page, canvas, name, (left + 0.16, middle), size, _ATTRIBUTE_FILL, "#b8c8d8")


def _draw_relations(
    page: Page,
    canvas: Axes,
    layout: _Layout,
    relations: list[Any],
    objects: list[_Object],
    body: tuple[float, float],
) -> None:
    """Each relation between its subject and its object, with the arrow at the object."""
    wanted = [(objects[item["subject"]].middle + objects[item["object"]].middle) / 2 for item in relations]
    lowest = body[0] + _RELATION_ROW / 2
    places = [0.0] * len(relations)
    for number in sorted(range(len(relations)), key=wanted.__getitem__):
        places[number] = max(wanted[number], lowest)
        lowest = places[number] + _RELATION_ROW
    beyond = max([0.0, *(place + _RELATION_ROW / 2 - body[0] - body[1] for place in places)])
    side, left = layout.objects + layout.object_width, layout.relations
    for item, place in zip(relations, places, strict=True):
        middle = place - beyond
        subject, other = objects[item["subject"]].middle, objects[item["object"]].middle
        _curve(canvas, (side, subject), (left, middle), color=_INK, linewidth=0.8)
        _curve(canvas, (left, middle), (side + 0.05, other), color=_INK, linewidth=0.8)
        tip = (side + 0.01, side + 0.09, side + 0.09), (other, other - 0.035, other + 0.035)
        canvas.fill(*tip, color=_INK)
        size = (layout.relation_width, _OBJECT)
        _node(page, canvas, item["predicate"], (left, middle), size, _RELATION_FILL, _INK)


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
