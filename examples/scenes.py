"""A small drawn world in the file formats of the real benchmarks.

    python examples/scenes.py OUT --train 800 --val 100 --test 100 --seed 0

draws pictures of three to eight flat shapes and writes what is known about them as COCO captions and
instances, VQA v2 questions and annotations, RefCOCO refs, and Visual Genome scene graphs, so that the
loaders for the real data read it unchanged:

    OUT/{train,val,test}/000001000000.jpg
    OUT/annotations/{captions,instances}_{train,val,test}.json
    OUT/v2_OpenEnded_scenes_{train,val,test}_questions.json
    OUT/v2_scenes_{train,val,test}_annotations.json
    OUT/refcoco/refs(unc).p, OUT/refcoco/instances.json
    OUT/scene_graphs.json, OUT/image_data.json

An image and everything said about it depend on (seed, split, index) and the size alone. Every question and
every expression has exactly one right reading, with a margin: see `relation_holds`. A model that sees no
image stays low, because each answer is drawn before the question that has it: see `draw_attributes` (counts)
and `ask` (the rest). Of the test images, those of even index are RefCOCO's testA, those of odd index testB.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import pickle
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from tbkin_core.expressions.geometry import OPPOSITE, lies

SPLITS = ("train", "val", "test")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "moon")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 30, 34),
    "green": (28, 150, 52),
    "blue": (38, 72, 222),
    "yellow": (246, 220, 36),
    "purple": (142, 42, 176),
    "orange": (250, 132, 20),
    "black": (22, 22, 22),
    "white": (250, 250, 250),
}
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "size": SIZES,
    "texture": TEXTURES,
}
BACKGROUNDS = ("plain", "gradient", "noise", "stripes", "checker")
PLACES = ("leftmost", "rightmost", "topmost", "bottommost")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")

LARGEST_COUNT = 4  # counts asked for are uniform over 0 .. LARGEST_COUNT
VISIBLE = 0.68  # smallest part of an object's silhouette that nothing covers
DEFAULT_SIZE = (256, 192)
FIRST_IMAGE_ID = {"train": 1_000_000, "val": 2_000_000, "test": 3_000_000}
SOURCE = {"description": "tbkin drawn scenes", "version": "1.0", "year": 2025}


# The scene ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawn shape.

    Attributes:
        shape: One of SHAPES; likewise `color`, `size` and `texture`.
        box: Tight box of the whole silhouette, hidden parts included: integer pixels, xywh.
        polygon: (P, 2) outline, pixels.
        pattern_angle: Direction of stripes and dots, radians.
    """

    shape: str
    color: str
    size: str
    texture: str
    box: tuple[int, int, int, int]
    polygon: NDArray[np.float64]
    pattern_angle: float

    @property
    def center(self) -> tuple[float, float]:
        x, y, width, height = self.box
        return x + width / 2, y + height / 2

    @property
    def area(self) -> float:
        """Of the silhouette in square pixels (shoelace formula)."""
        x, y = self.polygon.T
        return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture's contents, back to front.

    Attributes:
        counted: Per attribute the value whose count was drawn first, uniformly over 0 .. LARGEST_COUNT.
        covered: (front, back) index pairs of objects that overlap.
    """

    image_id: int
    split: str
    index: int
    width: int
    height: int
    background: str
    objects: tuple[SceneObject, ...]
    counted: dict[str, str]
    covered: frozenset[tuple[int, int]]

    @property
    def file_name(self) -> str:
        return f"{self.image_id:012d}.jpg"

    def count(self, **wanted: str) -> int:
        """Objects that have all of the attribute values given."""
        return sum(all(getattr(o, name) == value for name, value in wanted.items()) for o in self.objects)


def make_scene(seed: int, split: str, index: int, size: tuple[int, int] = DEFAULT_SIZE) -> Scene:
    """Draw the contents of image number `index` of `split`; `size` is (width, height) in pixels."""
    generator = _generator(seed, split, index, "scene")
    counted, attributes = draw_attributes(generator)
    objects, covered = place(attributes, size, generator)
    return Scene(
        image_id=FIRST_IMAGE_ID[split] + index,
        split=split,
        index=index,
        width=size[0],
        height=size[1],
        background=generator.choice(BACKGROUNDS),
        objects=objects,
        counted=counted,
        covered=covered,
    )


def draw_attributes(generator: random.Random) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Choose each object's attributes so that counts are hard to guess.

    For each attribute one value and its count are drawn first, independently, the count uniformly; the rest
    of the objects get any other value. "How many stars are there?", asked only of the value drawn, is then
    exactly uniform over 0 .. LARGEST_COUNT, and no shape, color, size or texture is favoured.

    Returns:
        The counted value of each attribute, and the attributes of each object.
    """
    counted = {name: generator.choice(values) for name, values in VALUES.items()}
    counts = {name: generator.randint(0, LARGEST_COUNT) for name in VALUES}
    number = generator.randint(max(3, *counts.values()), 8)
    attributes: list[dict[str, str]] = [{} for _ in range(number)]
    for name, values in VALUES.items():
        others = [value for value in values if value != counted[name]]
        drawn = [counted[name]] * counts[name]
        drawn += [generator.choice(others) for _ in range(number - counts[name])]
        generator.shuffle(drawn)
        for target, value in zip(attributes, drawn, strict=True):
            target[name] = value
    return counted, attributes


def place(
    attributes: Sequence[dict[str, str]], size: tuple[int, int], generator: random.Random
) -> tuple[tuple[SceneObject, ...], frozenset[tuple[int, int]]]:
    """Give each object a place: inside the image, at least VISIBLE of it uncovered, most of them apart.

    Returns:
        The objects, back to front, and the (front, back) index pairs that overlap.
    """
    width, height = size
    scale = min(width / DEFAULT_SIZE[0], height / DEFAULT_SIZE[1])
    overlap = generator.random() < 0.4
    apart = 1.1
    while True:
        apart *= 0.99  # a crowded scene may need its objects closer together
        objects: list[SceneObject] = []
        disks: list[tuple[float, float, float]] = []
        for wanted in attributes:
            low, high = (15.0, 17.0) if wanted["size"] == "small" else (25.0, 29.0)
            radius = generator.uniform(low, high) * scale
            angle = math.radians(generator.uniform(-10, 10))
            outline = _outline(wanted["shape"], angle) * radius
            reach = outline.max(axis=0) + 2
            for _ in range(40):
                x = generator.uniform(reach[0], width - reach[0])
                y = generator.uniform(reach[1], height - reach[1])
                # Some scenes have a pair or two that overlap.
                close = 0.62 if overlap and generator.random() < 0.3 else apart
                if all(math.dist((x, y), disk[:2]) >= close * (radius + disk[2]) for disk in disks):
                    break
            else:
                break
            polygon = outline + np.array((x, y))
            left, top = np.floor(polygon.min(axis=0)).astype(int)
            right, bottom = np.ceil(polygon.max(axis=0)).astype(int)
            objects.append(
                SceneObject(
                    **wanted,
                    box=(int(left), int(top), int(right - left), int(bottom - top)),
                    polygon=polygon,
                    pattern_angle=generator.choice((0.0, 0.25, 0.5, 0.75)) * math.pi,
                )
            )
            disks.append((x, y, radius))
        if len(objects) < len(attributes):
            continue
        hidden = _hidden(objects, width, height)
        total = hidden.sum(axis=0)
        if (total <= 1 - VISIBLE).all():
            pairs = frozenset((int(front), int(back)) for front, back in np.argwhere(hidden > 0.03))
            return tuple(objects), pairs


def _hidden(objects: Sequence[SceneObject], width: int, height: int) -> NDArray[np.float64]:
    """(N, N): the part of the silhouette of the second that is seen to be covered by the first."""
    number = len(objects)
    top = np.full((height, width), -1, np.int8)
    masks = []
    for position, item in enumerate(objects):
        picture = Image.new("1", (width, height))
        ImageDraw.Draw(picture).polygon([tuple(point) for point in item.polygon], fill=1)
        masks.append(np.asarray(picture))
        top[masks[-1]] = position
    hidden = np.zeros((number, number))
    for back, mask in enumerate(masks):
        hidden[:, back] = np.bincount(top[mask].astype(int), minlength=number) / mask.sum()
        hidden[back, back] = 0
    return hidden


def _outline(shape: str, angle: float) -> NDArray[np.float64]:
    """(P, 2) corners of a shape of radius about 1, turned by `angle`, its box centred on the origin."""
    if shape == "circle":
        turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        points = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    elif shape == "square":
        points = 0.9 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    elif shape == "triangle":
        points = np.array([(0, -1), (1, 0.8), (-1, 0.8)], float)
    elif shape == "star":
        turn = np.arange(10) * math.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.1, 0.46)
        points = np.stack([reach * np.sin(turn), -reach * np.cos(turn)], axis=1)
    elif shape == "diamond":
        points = np.array([(0, -1.12), (0.8, 0), (0, 1.12), (-0.8, 0)], float)
    elif shape == "cross":
        arm = 0.34
        quarter = np.array([(-arm, -1), (arm, -1), (arm, -arm)], float)
        turns = [np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        points = np.concatenate([quarter @ turn for turn in turns])
    elif shape == "heart":
        turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        points = np.stack([x, y], axis=1) / 15.5
    elif shape == "moon":
        # A unit disk less a disk of radius 0.8 centred at (0.6, 0); they meet at x = 0.6.
        outer = np.linspace(math.acos(0.6), 2 * math.pi - math.acos(0.6), 36)
        inner = np.linspace(1.5 * math.pi, 0.5 * math.pi, 24)[1:-1]
        points = np.concatenate(
            [
                np.stack([np.cos(outer), np.sin(outer)], axis=1),
                np.stack([0.6 + 0.8 * np.cos(inner), 0.8 * np.sin(inner)], axis=1),
            ]
        )
    else:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    cosine, sine = math.cos(angle), math.sin(angle)
    points = points @ np.array([(cosine, sine), (-sine, cosine)])
    return points - (points.min(axis=0) + points.max(axis=0)) / 2


def _generator(seed: int, split: str, index: int, part: str) -> random.Random:
    """Seeded by a string, so that no part's draws depend on another's; the same in every Python version."""
    return random.Random(f"{seed}/{split}/{index}/{part}")


# The picture -------------------------------------------------------------------------------------------


def render(scene: Scene, seed: int) -> Image.Image:
    """Draw a scene: RGB of the scene's size; edges are drawn at twice the resolution and averaged."""
    generator = _generator(seed, scene.split, scene.index, "render")
    image = _background(scene, generator)
    scale = min(scene.width / DEFAULT_SIZE[0], scene.height / DEFAULT_SIZE[1])
    for item in scene.objects:
        x, y, width, height = item.box
        patch = Image.fromarray(_pattern(item, 2 * width, 2 * height, 2 * scale))
        corners = [tuple(2 * point) for point in item.polygon - (x, y)]
        edge = (215, 215, 215) if item.color == "black" else (40, 40, 40)
        # The line is centred on the outline; the mask keeps its inner half.
        thick = max(2, round((3 if item.size == "small" else 5) * scale))
        ImageDraw.Draw(patch).line([*corners, *corners[:2]], fill=edge, width=thick, joint="curve")
        mask = Image.new("L", patch.size)
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        image.paste(patch.reduce(2), (x, y), mask.reduce(2))
    return image


def _pattern(item: SceneObject, width: int, height: int, scale: float) -> NDArray[np.uint8]:
    """(height, width, 3): the object's color with its stripes or dots."""
    color = np.array(COLORS[item.color], float)
    if item.texture == "plain":
        return np.broadcast_to(color.astype(np.uint8), (height, width, 3)).copy()
    # A shade of the same hue: lighter on dark colors, darker on light ones.
    light = item.color in ("yellow", "orange", "white")
    accent = color * 0.58 if light else color + (255 - color) * 0.62
    rows, columns = np.mgrid[:height, :width]
    along = columns * math.cos(item.pattern_angle) + rows * math.sin(item.pattern_angle)
    if item.texture == "striped":
        inked = along % (7.5 * scale) < 3.2 * scale
    else:
        across = rows * math.cos(item.pattern_angle) - columns * math.sin(item.pattern_angle)
        step = 7.0 * scale
        inked = (along % step - step / 2) ** 2 + (across % step - step / 2) ** 2 < (2.1 * scale) ** 2
    return np.where(inked[..., None], accent, color).astype(np.uint8)


def _background(scene: Scene, generator: random.Random) -> Image.Image:
    """A muted background; no part of it comes near an object's color."""
    width, height = scene.width, scene.height
    first = _muted(generator, generator.uniform(0.52, 0.82))
    second = first + generator.choice((-1, 1)) * generator.uniform(14, 26)
    if scene.background == "plain":
        weight = np.zeros((height, width))
    elif scene.background == "gradient":
        angle = generator.uniform(0, 2 * math.pi)
        rows, columns = np.mgrid[:height, :width]
        weight = 0.5 + math.cos(angle) * (columns / width - 0.5) + math.sin(angle) * (rows / height - 0.5)
        second = _muted(generator, generator.uniform(0.52, 0.82))
    elif scene.background == "noise":
        cells = np.frombuffer(generator.randbytes(width * height // 16), np.uint8)
        cells = cells[: (width // 4) * (height // 4)].reshape(height // 4, width // 4)
        smooth = Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR)
        weight = np.asarray(smooth) / 255
    else:
        step = generator.uniform(0.06, 0.13) * width
        rows, columns = np.mgrid[:height, :width]
        if scene.background == "stripes":
            angle = generator.uniform(0, math.pi)
            weight = (columns * math.cos(angle) + rows * math.sin(angle)) // step % 2
        else:
            weight = (columns // step + rows // step) % 2
    pixels = first + weight[..., None] * (second - first)
    return Image.fromarray(np.clip(pixels, 90, 225).astype(np.uint8))


def _muted(generator: random.Random, value: float) -> NDArray[np.float64]:
    """(3,) an RGB color of saturation 0.18 at most."""
    tint = np.array([generator.random() for _ in range(3)])
    return 255 * value * (1 - 0.18 * (1 - tint / tint.max()))


# What can be said --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Phrase:
    """The meaning of "the large red circle left of the blue square"; None where nothing is said.

    Attributes:
        place: One of PLACES, a superlative over the objects that fit the rest, or one of CORNERS.
        relation: A key of OPPOSITE, with `anchor` what it is relative to.
    """

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    texture: str | None = None
    place: str | None = None
    relation: str | None = None
    anchor: Phrase | None = None

    def noun(self, plural: bool = False) -> str:
        """ "large striped red circle"."""
        words = [word for word in (self.size, self.texture, self.color) if word]
        head = self.shape or "object"
        if plural:
            head += "es" if head.endswith("s") else "s"
        return " ".join([*words, head])

    def __str__(self) -> str:
        place = f"{self.place} " if self.place in PLACES else ""
        text = f"the {place}{self.noun()}"
        if self.place in CORNERS:
            text += f" at the {self.place}"
        if self.relation:
            text += f" {self.relation} {self.anchor}"
        return text


def relation_holds(scene: Scene, first: SceneObject, relation: str, second: SceneObject) -> bool | None:
    """Whether `first` is left of (right of, above, below) `second`, by their boxes' centres, as `lies`."""
    return lies(first.center, relation, second.center, (scene.width, scene.height))


def find(scene: Scene, phrase: Phrase) -> int | None:
    """Index of the one object that a phrase means; None where it fits none, several, or is borderline."""
    fitting = [
        index
        for index, item in enumerate(scene.objects)
        if all(getattr(phrase, name) in (None, getattr(item, name)) for name in VALUES)
    ]
    if phrase.relation is not None:
        anchor = None if phrase.anchor is None else find(scene, phrase.anchor)
        if anchor is None:
            return None
        near = scene.objects[anchor]
        holds = {
            index: relation_holds(scene, scene.objects[index], phrase.relation, near)
            for index in fitting
            if index != anchor
        }
        if None in holds.values():
            return None
        fitting = [index for index, value in holds.items() if value]
    if phrase.place in CORNERS and phrase.place is not None:
        inside = {index: _in_corner(scene, scene.objects[index], phrase.place) for index in fitting}
        if None in inside.values():
            return None
        fitting = [index for index, value in inside.items() if value]
    elif phrase.place in PLACES:
        relation = dict(zip(PLACES, OPPOSITE, strict=True))[phrase.place]
        fitting = [
            index
            for index in fitting
            if all(
                relation_holds(scene, scene.objects[index], relation, scene.objects[other])
                for other in fitting
                if other != index
            )
        ]
    return fitting[0] if len(fitting) == 1 else None


def _in_corner(scene: Scene, item: SceneObject, corner: str) -> bool | None:
    """Whether an object lies in a corner; None where one could argue."""
    vertical, horizontal = corner.split()
    x, y = item.center[0] / scene.width, item.center[1] / scene.height
    worst = max(y if vertical == "top" else 1 - y, x if horizontal == "left" else 1 - x)
    if worst <= 0.4:
        return True
    return False if worst >= 0.55 else None


def describe(
    scene: Scene, index: int, generator: random.Random, allowed: Iterable[str] = tuple(VALUES)
) -> Phrase | None:
    """A phrase of attributes that fits only this object, usually a short one.

    Args:
        allowed: The attributes that may be said; the answer to the question at hand is not one of them.

    Returns:
        None where no such phrase exists.
    """
    item = scene.objects[index]
    names = list(allowed)
    generator.shuffle(names)
    unique: list[tuple[str, ...]] = []
    for length in range(1, len(names) + 1):
        for said in itertools.combinations(names, length):
            if scene.count(**{name: getattr(item, name) for name in said}) == 1:
                unique.append(said)
        if unique and generator.random() < 0.8:
            break
    if not unique:
        return None
    # "the star" and "the red star" read better than "the red object".
    with_shape = [said for said in unique if "shape" in said]
    said = generator.choice(with_shape or unique)
    return Phrase(**{name: getattr(item, name) for name in said})


# Questions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """`kind` is exist, count, color, shape, relation or comparison."""

    text: str
    answer: str
    kind: str

    @property
    def answer_type(self) -> str:
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "number" if self.kind == "count" else "other"


def ask(scene: Scene, seed: int) -> list[Question]:
    """About eight questions on a scene, each with one right answer.

    The texts do not give the answers away: yes or no is tossed first, and a form of question is used only
    where the scene allows both; colors and shapes are alike in the world, so that each is as likely.
    """
    generator = _generator(seed, scene.split, scene.index, "questions")
    makers: tuple[Callable[[Scene, random.Random], Iterator[Question]], ...] = (
        _ask_exist,
        _ask_count,
        _ask_count,
        _ask_color,
        _ask_shape,
        _ask_order,
        _ask_relation,
        _ask_comparison,
    )
    questions: list[Question] = []
    for maker in makers:
        asked = {question.text for question in questions}
        fresh = (question for question in maker(scene, generator) if question.text not in asked)
        question = next(fresh, None)
        if question is not None:
            questions.append(question)
    return questions


def _ask_exist(scene: Scene, generator: random.Random) -> Iterator[Question]:
    forms = [("shape",), ("color", "shape"), ("color", "shape"), ("texture", "shape"), ("size", "shape")]
    for said in _shuffled(forms, generator):
        present = sorted({tuple(getattr(item, name) for name in said) for item in scene.objects})
        if said == ("shape",):
            absent = [(shape,) for shape in SHAPES if (shape,) not in present]
        else:
            # Not there although its parts are: what makes a model bind them.
            parts = (sorted({values[position] for values in present}) for position in range(len(said)))
            absent = [values for values in itertools.product(*parts) if values not in present]
        yes = generator.random() < 0.5
        if present and absent:
            values = generator.choice(present if yes else absent)
            noun = Phrase(**dict(zip(said, values, strict=True))).noun()
            yield Question(f"is there {_article(noun)}?", "yes" if yes else "no", "exist")


def _ask_count(scene: Scene, generator: random.Random) -> Iterator[Question]:
    for name in _shuffled(list(VALUES), generator):
        wanted: dict[str, Any] = {name: scene.counted[name]}
        noun = Phrase(**wanted).noun(plural=True)
        yield Question(f"how many {noun} are there?", str(scene.count(**wanted)), "count")


def _ask_color(scene: Scene, generator: random.Random) -> Iterator[Question]:
    for index in _shuffled(range(len(scene.objects)), generator):
        phrase = describe(scene, index, generator, ("shape", "size", "texture"))
        if phrase is not None and phrase.shape is not None:
            yield Question(f"what color is {phrase}?", scene.objects[index].color, "color")


def _ask_shape(scene: Scene, generator: random.Random) -> Iterator[Question]:
    for index in _shuffled(range(len(scene.objects)), generator):
        phrase = describe(scene, index, generator, ("color", "size", "texture"))
        if phrase is not None:
            yield Question(f"what shape is {phrase}?", scene.objects[index].shape, "shape")


def _ask_order(scene: Scene, generator: random.Random) -> Iterator[Question]:
    for relation in _shuffled(list(OPPOSITE), generator):
        for first, second in _shuffled(itertools.permutations(range(len(scene.objects)), 2), generator):
            if not relation_holds(scene, scene.objects[first], relation, scene.objects[second]):
                continue
            phrases = [describe(scene, index, generator, ("color", "shape")) for index in (first, second)]
            if None in phrases:
                continue
            # The false one is the true one turned round, so that the words are the same.
            yes = generator.random() < 0.5
            left, right = phrases if yes else phrases[::-1]
            yield Question(f"is {left} {relation} {right}?", "yes" if yes else "no", "relation")


def _ask_relation(scene: Scene, generator: random.Random) -> Iterator[Question]:
    indices = range(len(scene.objects))
    for form in _shuffled(("shape", "color", "place shape", "place color", "color of shape"), generator):
        if form.startswith("place"):
            asked = form.split()[1]
            candidates = [Phrase(place=place) for place in PLACES]
            if asked == "color":
                several = [shape for shape in SHAPES if scene.count(shape=shape) > 1]
                candidates += [Phrase(place=place, shape=shape) for place in PLACES for shape in several]
        else:
            asked = form.split()[0]
            heads = SHAPES if form == "color of shape" else (None,)
            anchors = [describe(scene, index, generator, ("color", "shape")) for index in indices]
            candidates = [
                Phrase(shape=shape, relation=relation, anchor=anchor)
                for shape in heads
                for relation in OPPOSITE
                for anchor in anchors
                if anchor is not None
            ]
        for phrase in _shuffled(candidates, generator):
            index = find(scene, phrase)
            if index is None:
                continue
            answer = getattr(scene.objects[index], asked)
            if form == "shape":
                yield Question(f"what shape is {phrase.relation} {phrase.anchor}?", answer, "relation")
            else:
                yield Question(f"what {asked} is {phrase}?", answer, "relation")


def _ask_comparison(scene: Scene, generator: random.Random) -> Iterator[Question]:
    for form in _shuffled(("count", "size", "same color", "same shape"), generator):
        yes = generator.random() < 0.5
        answer = "yes" if yes else "no"
        if form == "count":
            name = generator.choice(("shape", "color"))
            present = [value for value in VALUES[name] if scene.count(**{name: value})]
            for values in _shuffled(itertools.permutations(present, 2), generator):
                if scene.count(**{name: values[0]}) <= scene.count(**{name: values[1]}):
                    continue
                more, less = (
                    Phrase(**{name: value}).noun(plural=True) for value in values[:: 1 if yes else -1]
                )
                yield Question(f"are there more {more} than {less}?", answer, "comparison")
            continue
        allowed = {"size": ("color", "shape"), "same color": ("shape", "size", "texture")}
        said = allowed.get(form, ("color", "size", "texture"))
        phrases = [describe(scene, index, generator, said) for index in range(len(scene.objects))]
        pairs = [
            pair
            for pair in itertools.permutations(range(len(scene.objects)), 2)
            if phrases[pair[0]] is not None and phrases[pair[1]] is not None
        ]
        if form == "size":
            for first, second in _shuffled(pairs, generator):
                if (scene.objects[first].size, scene.objects[second].size) != ("large", "small"):
                    continue
                larger, smaller = (phrases[index] for index in ((first, second) if yes else (second, first)))
                yield Question(f"is {larger} larger than {smaller}?", answer, "comparison")
            continue
        name = form.split()[1]
        alike: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for first, second in pairs:
            same = getattr(scene.objects[first], name) == getattr(scene.objects[second], name)
            alike[same].append((first, second))
        if alike[True] and alike[False]:
            first, second = generator.choice(alike[yes])
            text = f"do {phrases[first]} and {phrases[second]} have the same {name}?"
            yield Question(text, answer, "comparison")


def _shuffled(values: Iterable[Any], generator: random.Random) -> list[Any]:
    drawn = list(values)
    generator.shuffle(drawn)
    return drawn


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


# Referring expressions ---------------------------------------------------------------------------------


def refer(scene: Scene, seed: int) -> list[tuple[int, list[Phrase]]]:
    """Three to five objects of a scene, each with one to three phrases that mean it and nothing else.

    Fewer in the rare scene whose objects are too alike to be told apart in words.
    """
    generator = _generator(seed, scene.split, scene.index, "expressions")
    wanted = min(generator.randint(3, 5), len(scene.objects))
    referred: list[tuple[int, list[Phrase]]] = []
    for index in _shuffled(range(len(scene.objects)), generator):
        if len(referred) == wanted:
            break
        phrases: dict[str, Phrase] = {}
        for make in _shuffled((_by_attributes, _by_place, _by_relation), generator):
            phrase = make(scene, index, generator)
            if phrase is not None:
                phrases.setdefault(str(phrase), phrase)
        if phrases:
            keep = generator.randint(1, 3)
            referred.append((index, list(phrases.values())[:keep]))
    return referred


def _by_attributes(scene: Scene, index: int, generator: random.Random) -> Phrase | None:
    return describe(scene, index, generator)


def _by_place(scene: Scene, index: int, generator: random.Random) -> Phrase | None:
    return _first_meaning(
        scene,
        index,
        (
            replace(head, place=place)
            for head in _heads(scene.objects[index])
            for place in (*PLACES, *CORNERS)
        ),
        generator,
    )


def _by_relation(scene: Scene, index: int, generator: random.Random) -> Phrase | None:
    anchors = [
        describe(scene, other, generator, ("color", "shape"))
        for other in range(len(scene.objects))
        if other != index
    ]
    return _first_meaning(
        scene,
        index,
        (
            replace(head, relation=relation, anchor=anchor)
            for head in _heads(scene.objects[index])
            for relation in OPPOSITE
            for anchor in anchors
            if anchor is not None
        ),
        generator,
    )


def _heads(item: SceneObject) -> tuple[Phrase, ...]:
    return (
        Phrase(shape=item.shape),
        Phrase(shape=item.shape, color=item.color),
        Phrase(color=item.color),
        Phrase(shape=item.shape, texture=item.texture),
        Phrase(shape=item.shape, size=item.size),
    )


def _first_meaning(
    scene: Scene, index: int, candidates: Iterable[Phrase], generator: random.Random
) -> Phrase | None:
    """The first, in random order, that means the object; rather one whose place or relation is needed."""
    spare = None
    for phrase in _shuffled(candidates, generator):
        if find(scene, phrase) != index:
            continue
        if find(scene, replace(phrase, place=None, relation=None, anchor=None)) is None:
            return phrase
        spare = spare or phrase
    return spare


# Captions ----------------------------------------------------------------------------------------------


def caption(scene: Scene, seed: int, number: int = 3) -> list[str]:
    """`number` different true English captions of a scene."""
    generator = _generator(seed, scene.split, scene.index, "captions")
    captions: list[str] = []
    templates = (
        _say_relation,
        _say_relation,
        _say_with,
        _say_chain,
        _say_list,
        _say_number,
        _say_counts,
        _say_predicate,
        _say_cover,
        _say_sides,
    )
    while len(captions) < number:
        text = generator.choice(templates)(scene, generator)
        if text is None:
            continue
        text = re.sub(r"\s+", " ", text)
        if text.lower() in (other.lower().rstrip(".") for other in captions):
            continue
        captions.append(f"{text[0].upper()}{text[1:]}." if generator.random() < 0.5 else text)
    return captions


def _mention(item: SceneObject, generator: random.Random) -> str:
    """ "a large red circle": the shape with one to three attributes, the color nearly always."""
    said = [
        name
        for name, chance in (("color", 0.9), ("size", 0.6), ("texture", 0.5))
        if generator.random() < chance
    ]
    return _article(Phrase(shape=item.shape, **{name: getattr(item, name) for name in said}).noun())


def _mentions(items: Iterable[SceneObject], generator: random.Random) -> list[str] | None:
    """Indefinite phrases for objects; None where two sound the same."""
    texts = [_mention(item, generator) for item in items]
    return texts if len(set(texts)) == len(texts) else None


def _spatial(scene: Scene, generator: random.Random) -> tuple[int, str, int] | None:
    """A clear relation between two objects, the axis of the greater distance."""
    first, second = generator.sample(range(len(scene.objects)), 2)
    items = scene.objects[first], scene.objects[second]
    apart = [abs(a - b) for a, b in zip(items[0].center, items[1].center, strict=True)]
    relations = ("left of", "right of") if apart[0] >= apart[1] else ("above", "below")
    for relation in relations:
        if relation_holds(scene, items[0], relation, items[1]):
            return first, relation, second
    return None


def _worded(relation: str, generator: random.Random) -> str:
    if relation in ("left of", "right of"):
        return generator.choice((relation, f"to the {relation}"))
    return relation


def _say_relation(scene: Scene, generator: random.Random) -> str | None:
    spatial = _spatial(scene, generator)
    if spatial is None:
        return None
    first, relation, second = spatial
    texts = _mentions((scene.objects[first], scene.objects[second]), generator)
    if texts is None:
        return None
    verb = generator.choice(("is ", "is ", ""))
    return f"{texts[0]} {verb}{_worded(relation, generator)} {texts[1]}"


def _say_with(scene: Scene, generator: random.Random) -> str | None:
    spatial = _spatial(scene, generator)
    if spatial is None or spatial[1] not in ("above", "below"):
        return None
    texts = _mentions((scene.objects[spatial[2]], scene.objects[spatial[0]]), generator)
    return None if texts is None else f"{texts[0]} with {texts[1]} {spatial[1]} it"


def _say_chain(scene: Scene, generator: random.Random) -> str | None:
    one, two = _spatial(scene, generator), _spatial(scene, generator)
    if one is None or two is None or one[0] != two[0] or one[2] == two[2]:
        return None
    phrases = [describe(scene, index, generator) for index in (one[0], one[2], two[2])]
    if None in phrases:
        return None
    relations = [_worded(relation, generator) for relation in (one[1], two[1])]
    return f"{phrases[0]} is {relations[0]} {phrases[1]} and {relations[1]} {phrases[2]}"


def _say_list(scene: Scene, generator: random.Random) -> str | None:
    chosen = generator.sample(scene.objects, min(len(scene.objects), generator.choice((2, 3, 3, 4))))
    texts = _mentions(chosen, generator)
    if texts is None:
        return None
    lead = generator.choice(("", "", "a picture of ", "an image with "))
    return f"{lead}{_joined(texts)}"


def _say_number(scene: Scene, generator: random.Random) -> str | None:
    spatial = _spatial(scene, generator)
    if spatial is None:
        return None
    first, second = (describe(scene, index, generator) for index in (spatial[0], spatial[2]))
    if first is None or second is None:
        return None
    number = NUMBERS[len(scene.objects)]
    return f"there are {number} objects; {first} is {_worded(spatial[1], generator)} {second}"


def _say_counts(scene: Scene, generator: random.Random) -> str | None:
    name = generator.choice(("shape", "color"))
    counts = Counter(getattr(item, name) for item in scene.objects)
    if max(counts.values()) < 2:
        return None
    texts = []
    for value in generator.sample(sorted(counts), min(len(counts), generator.randint(1, 3))):
        number = counts[value]
        texts.append(f"{NUMBERS[number]} {Phrase(**{name: value}).noun(plural=number > 1)}")
    verb = "is" if texts[0].startswith("one ") else "are"
    return generator.choice((f"there {verb} {_joined(texts)}", _joined(texts)))


def _say_predicate(scene: Scene, generator: random.Random) -> str | None:
    item = generator.choice(scene.objects)
    if scene.count(shape=item.shape) > 1:
        return None
    words = generator.sample((item.color, item.size, item.texture), 2)
    return f"the {item.shape} is {words[0]} and {words[1]}"


def _say_cover(scene: Scene, generator: random.Random) -> str | None:
    if not scene.covered:
        return None
    front, back = generator.choice(sorted(scene.covered))
    texts = _mentions((scene.objects[front], scene.objects[back]), generator)
    if texts is None:
        return None
    if generator.random() < 0.5:
        return f"{texts[0]} is in front of {texts[1]}"
    return f"{texts[1]} is behind {texts[0]}"


def _say_sides(scene: Scene, generator: random.Random) -> str | None:
    left = [item for item in scene.objects if item.center[0] < 0.35 * scene.width]
    right = [item for item in scene.objects if item.center[0] > 0.65 * scene.width]
    if not left or not right:
        return None
    texts = _mentions((generator.choice(left), generator.choice(right)), generator)
    return None if texts is None else f"on the left is {texts[0]}, and on the right is {texts[1]}"


def _joined(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


# Files -------------------------------------------------------------------------------------------------


def generate(
    out: Path | str,
    train: int = 800,
    val: int = 100,
    test: int = 100,
    seed: int = 0,
    size: tuple[int, int] = DEFAULT_SIZE,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, int]:
    """Draw a dataset and write it in the layout of the module's docstring.

    The same arguments give the same bytes, whatever `workers` is; another number of images in one split
    changes no image, caption, question or expression of the others.

    Args:
        out: Directory; made where it is missing. Pictures of an earlier, larger run are removed from it.
        size: Width and height in pixels, each 96 to 2048.
        workers: Processes that draw.
        progress: Show a bar on stderr.

    Returns:
        How many images, objects, captions, questions, refs and expressions were written.

    Raises:
        ValueError: A count or the size is out of range.
    """
    numbers = dict(zip(SPLITS, (train, val, test), strict=True))
    for split, number in numbers.items():
        if not 0 <= number < 1_000_000:
            raise ValueError(f"{split} must be 0 to 999999 images, got {number}")
    if not all(96 <= side <= 2048 for side in size):
        raise ValueError(f"size must be 96 to 2048 pixels per side, got {size[0]}x{size[1]}")
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    directory = Path(out)
    for split, number in numbers.items():
        (directory / split).mkdir(parents=True, exist_ok=True)
        for picture in (directory / split).glob("*.jpg"):
            if re.fullmatch(r"\d{12}", picture.stem) and int(picture.stem) >= FIRST_IMAGE_ID[split] + number:
                picture.unlink()
    jobs = [(split, index) for split, number in numbers.items() for index in range(number)]
    draw = partial(_draw, directory, seed, size)
    bar = partial(tqdm, total=len(jobs), desc="scenes", unit="image", disable=not progress)
    if workers == 1:
        scenes = list(bar(map(draw, jobs)))
    else:
        with ProcessPoolExecutor(workers) as pool:
            scenes = list(bar(pool.map(draw, jobs, chunksize=16)))
    return _write_annotations(directory, scenes, seed)


def _draw(directory: Path, seed: int, size: tuple[int, int], job: tuple[str, int]) -> Scene:
    """Draw and write one picture; what is said about it is quick, and left to the main process."""
    scene = make_scene(seed, *job, size)
    buffer = io.BytesIO()
    # No chroma subsampling: it would bleed the colors of small objects.
    render(scene, seed).save(buffer, "JPEG", quality=95, subsampling=0)
    _write(directory / scene.split / scene.file_name, buffer.getvalue())
    return scene


def _write_annotations(directory: Path, scenes: Sequence[Scene], seed: int) -> dict[str, int]:
    totals: Counter[str] = Counter(images=len(scenes))
    references: list[dict[str, Any]] = []
    for split in SPLITS:
        chosen = [scene for scene in scenes if scene.split == split]
        coco = {"info": SOURCE, "licenses": [], "images": [_coco_image(scene) for scene in chosen]}
        captions = [
            {"id": scene.image_id * 10 + position, "image_id": scene.image_id, "caption": text}
            for scene in chosen
            for position, text in enumerate(caption(scene, seed))
        ]
        instances = [item for scene in chosen for item in _coco_instances(scene)]
        _write_json(directory / f"annotations/captions_{split}.json", {**coco, "annotations": captions})
        _write_json(
            directory / f"annotations/instances_{split}.json",
            {**coco, "annotations": instances, "categories": _categories()},
        )
        questions, answers = _vqa(chosen, seed)
        vqa = {"info": SOURCE, "data_type": "scenes", "data_subtype": split, "license": {}}
        _write_json(
            directory / f"v2_OpenEnded_scenes_{split}_questions.json",
            {**vqa, "task_type": "Open-Ended", "questions": questions},
        )
        _write_json(directory / f"v2_scenes_{split}_annotations.json", {**vqa, "annotations": answers})
        references += [reference for scene in chosen for reference in _refs(scene, seed)]
        totals.update(objects=len(instances), captions=len(captions), questions=len(questions))
    # Pickle notes which strings are one object, which differs between one process and several; through JSON
    # every string is its own.
    plain = json.loads(json.dumps(references))
    _write(directory / "refcoco/refs(unc).p", pickle.dumps(plain, protocol=2))
    _write_json(
        directory / "refcoco/instances.json",
        {
            "info": SOURCE,
            "licenses": [],
            "images": [_coco_image(scene) for scene in scenes],
            "annotations": [item for scene in scenes for item in _coco_instances(scene)],
            "categories": _categories(),
        },
    )
    _write_json(directory / "scene_graphs.json", [_scene_graph(scene) for scene in scenes])
    _write_json(directory / "image_data.json", [_image_data(scene) for scene in scenes])
    totals.update(refs=len(references), expressions=sum(len(ref["sentences"]) for ref in references))
    return dict(totals)


def _object_id(scene: Scene, index: int) -> int:
    return scene.image_id * 100 + index


def _coco_image(scene: Scene) -> dict[str, Any]:
    return {"id": scene.image_id, "file_name": scene.file_name, "width": scene.width, "height": scene.height}


def _coco_instances(scene: Scene) -> list[dict[str, Any]]:
    return [
        {
            "id": _object_id(scene, index),
            "image_id": scene.image_id,
            "category_id": SHAPES.index(item.shape) + 1,
            "bbox": [float(value) for value in item.box],
            "area": round(item.area, 2),
            "iscrowd": 0,
            "segmentation": [[round(float(value), 2) for value in item.polygon.ravel()]],
        }
        for index, item in enumerate(scene.objects)
    ]


def _categories() -> list[dict[str, Any]]:
    return [{"id": index + 1, "name": name, "supercategory": "shape"} for index, name in enumerate(SHAPES)]


def _vqa(scenes: Iterable[Scene], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    questions, answers = [], []
    for scene in scenes:
        for position, question in enumerate(ask(scene, seed)):
            ids = {"image_id": scene.image_id, "question_id": scene.image_id * 100 + position}
            questions.append({**ids, "question": question.text})
            answers.append(
                {
                    **ids,
                    "question_type": question.kind,
                    "answer_type": question.answer_type,
                    "multiple_choice_answer": question.answer,
                    "answers": [
                        {"answer": question.answer, "answer_confidence": "yes", "answer_id": answer_id}
                        for answer_id in range(1, 11)
                    ],
                }
            )
    return questions, answers


def _refs(scene: Scene, seed: int) -> list[dict[str, Any]]:
    split = scene.split if scene.split != "test" else ("testA", "testB")[scene.index % 2]
    references = []
    for position, (index, phrases) in enumerate(refer(scene, seed)):
        ref_id = scene.image_id * 10 + position
        sentences = [
            {"tokens": text.split(), "raw": text, "sent_id": ref_id * 10 + number, "sent": text}
            for number, text in enumerate(map(str, phrases))
        ]
        references.append(
            {
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "file_name": f"{scene.image_id:012d}_{index}.jpg",
                "ann_id": _object_id(scene, index),
                "ref_id": ref_id,
                "image_id": scene.image_id,
                "split": split,
                "sentences": sentences,
                "category_id": SHAPES.index(scene.objects[index].shape) + 1,
            }
        )
    return references


def _scene_graph(scene: Scene) -> dict[str, Any]:
    objects = [
        {
            "object_id": _object_id(scene, index),
            "names": [item.shape],
            **dict(zip("xywh", item.box, strict=True)),
            "attributes": [item.color, item.size, item.texture],
            "synsets": [],
        }
        for index, item in enumerate(scene.objects)
    ]
    triples = [
        (first, relation, second)
        for first, second in itertools.permutations(range(len(scene.objects)), 2)
        for relation in OPPOSITE
        if relation_holds(scene, scene.objects[first], relation, scene.objects[second])
    ]
    triples += [(front, "in front of", back) for front, back in sorted(scene.covered)]
    triples += [(back, "behind", front) for front, back in sorted(scene.covered)]
    relationships = [
        {
            "relationship_id": scene.image_id * 1000 + number,
            "predicate": predicate,
            "subject_id": _object_id(scene, first),
            "object_id": _object_id(scene, second),
            "synsets": [],
        }
        for number, (first, predicate, second) in enumerate(triples)
    ]
    return {"image_id": scene.image_id, "objects": objects, "relationships": relationships}


def _image_data(scene: Scene) -> dict[str, Any]:
    return {
        "image_id": scene.image_id,
        "width": scene.width,
        "height": scene.height,
        "url": f"{scene.split}/{scene.file_name}",
        "coco_id": None,
        "flickr_id": None,
    }


def _write_json(path: Path, value: object) -> None:
    _write(path, json.dumps(value, separators=(",", ":")).encode())


def _write(path: Path, data: bytes) -> None:
    """Write under another name and rename, so that an interrupted run leaves no half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_bytes(data)
    draft.replace(path)


def main(
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    train: Annotated[int, typer.Option(min=0, help="Training images.")] = 800,
    val: Annotated[int, typer.Option(min=0, help="Validation images.")] = 100,
    test: Annotated[int, typer.Option(min=0, help="Test images.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed draws the same world.")] = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")] = "256x192",
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Draw a dataset of shapes: captions, instances, questions, expressions, scene graphs.

    Example: python examples/scenes.py demo --train 800 --val 100 --test 100 --seed 0
    """
    sides = re.fullmatch(r"(\d+)x(\d+)", size)
    if sides is None:
        raise typer.BadParameter(f"--size must be WIDTHxHEIGHT such as 256x192, got {size!r}")
    progress = not quiet and sys.stderr.isatty()
    try:
        totals = generate(
            out, train, val, test, seed, (int(sides[1]), int(sides[2])), workers=workers, progress=progress
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{out}: " + ", ".join(f"{number} {name}" for name, number in totals.items()))


if __name__ == "__main__":
    typer.run(main)
