"""What a phrase about an image means, and the phrases that mean one of its objects and no other.

Annotations leave things out, so that a phrase may be right, wrong or doubtful of an object; one that is
doubtful of any object but its own is not used. Names of one thing ("man", "person"), a crowd of its kind,
an unknown colour, two centres that are hardly apart: all these are doubts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from tbkin_core.boxes import pairwise_iou
from tbkin_core.expressions.geometry import OPPOSITE, Point, lies
from tbkin_core.questions import wordlists
from tbkin_core.questions.english import alike, is_noun, is_person

SAME_OBJECT = 0.6  # overlap of two boxes of one name that are one object, annotated twice
LEAST_AREA, MOST_AREA = 0.02, 0.95  # of the image, of what is referred to
LEAST_SEEN = 0.005  # of the image, of what it is compared with or told from by its place
LARGER = 2.5  # times the area of the others: "the bigger dog"
NEGLIGIBLE = 4  # times smaller than the largest of its name: what nobody thinks of who looks for it
IN_ORDER = 0.08  # of the image's width between neighbours: "the second dog from the left"
MOST_IN_ORDER = 5
APART = 0.2  # of the smaller box: what both share at most where one thing is left of the other, not on it
HIDDEN = 0.7  # of a box within a person's: what the person mostly hides
SIDES = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
_ORDINALS = {2: "second", 3: "third"}


@dataclass(frozen=True, slots=True)
class Item:
    """An annotated object.

    Attributes:
        name: In lower case, single blanks between words; "" where unknown.
        box: xyxy in pixels.
        attributes: As annotators wrote them, in lower case.
        in_doubt: Whether it may be several, or none: a crowd, or what a model hardly recognised.
    """

    name: str
    box: tuple[float, float, float, float]
    attributes: frozenset[str] = frozenset()
    in_doubt: bool = False

    @property
    def center(self) -> Point:
        """(x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        return max(self.box[2] - self.box[0], 0.0) * max(self.box[3] - self.box[1], 0.0)


@dataclass(frozen=True)
class Phrase:
    """The meaning of "the red car on the left", "the second dog from the right", "the man riding the horse".

    Attributes:
        name: What it is.
        attribute: A colour, material or pattern; "" for none, as below.
        place: A key of `SIDES`, or "middle": a superlative over what fits name and attribute.
        size: "bigger" or "smaller", likewise.
        order: Number from the left (1, 2, ...) or from the right (-1, ...), 0 for none.
        relation: A key of `OPPOSITE`, or an annotated predicate; `anchor` is what it is relative to.
    """

    name: str
    attribute: str = ""
    place: str = ""
    size: str = ""
    order: int = 0
    relation: str = ""
    anchor: Phrase | None = None


class ImageObjects:
    """The annotated objects of an image, each once.

    Args:
        items: As annotated.
        size: Width and height in pixels.
        relations: (subject, predicate, object), numbers into `items`.
    """

    def __init__(
        self, items: Sequence[Item], size: Point, relations: Iterable[tuple[int, str, int]] = ()
    ) -> None:
        self.items, self.size = items, size
        self.overlap = pairwise_iou(np.array([item.box for item in items], np.float32).reshape(-1, 4))
        areas = np.array([item.area for item in items], np.float32)
        both = self.overlap * (areas[:, None] + areas) / (1 + self.overlap)
        self._shared = both / np.maximum(np.minimum(areas[:, None], areas), 1e-6)
        self.twin = self._twins()  # the first annotation of each item's object
        self._fitting: dict[tuple[str, str], list[int] | None] = {}
        self.relations = {
            (self.twin[first], predicate, self.twin[second]) for first, predicate, second in relations
        }

    def _twins(self) -> list[int]:
        twins = list(range(len(self.items)))
        for place, other in np.argwhere(np.tril(self.overlap >= SAME_OBJECT, -1)).tolist():
            one, two = self.items[place], self.items[other]
            named = one.name and two.name and alike(one.name, two.name)
            if twins[place] == place and named and not one.in_doubt and not two.in_doubt:
                twins[place] = twins[other]
        return twins

    @cached_property
    def own(self) -> list[int]:
        """The objects, as numbers of items."""
        return [place for place, twin in enumerate(self.twin) if place == twin]

    def means(self, phrase: Phrase) -> int | None:
        """The one object that a phrase means; None where it fits none or several, or that is in doubt."""
        found = self._found(phrase.name, phrase.attribute)
        if found is None:
            return None
        if phrase.relation:
            found = self._related(found, phrase)
        if phrase.order:
            found = self._ordered(found, phrase.order)
        elif phrase.place or phrase.size:
            found = [place for place in found if self._is_most(place, found, phrase)]
        return found[0] if len(found) == 1 else None

    def _found(self, name: str, attribute: str) -> list[int] | None:
        """The objects that a name and an attribute fit; None where that is in doubt of any."""
        if (name, attribute) not in self._fitting:
            fits = {place: self._fits(place, name, attribute) for place in self.own}
            found = None if None in fits.values() else [place for place, value in fits.items() if value]
            self._fitting[name, attribute] = found
        return self._fitting[name, attribute]

    def _fits(self, place: int, name: str, attribute: str) -> bool | None:
        """Whether name and attribute fit an object; of one without a name nobody knows."""
        item = self.items[place]
        named: bool | None = item.name == name or (None if _may_be(item.name, name) else False)
        if item.in_doubt and named is not False:
            return None
        if named is False or not attribute:
            return named
        looks = _looks_of(item, attribute)
        return looks if named or looks is False else None

    def _related(self, places: Sequence[int], phrase: Phrase) -> list[int]:
        anchor = None if phrase.anchor is None else self.means(phrase.anchor)
        if anchor is None:
            return []
        holds = {place: self._holds(place, phrase.relation, anchor) for place in places if place != anchor}
        return [] if None in holds.values() else [place for place, value in holds.items() if value]

    def _holds(self, place: int, relation: str, anchor: int) -> bool | None:
        if relation not in OPPOSITE:
            if (place, relation, anchor) in self.relations:
                return True
            # What people did not annotate may be so where the boxes touch.
            return None if self.overlap[place, anchor] > 0 else False
        found = self._lies(place, relation, anchor)
        return None if found and self._shared[place, anchor] > APART else found

    def _lies(self, place: int, relation: str, other: int) -> bool | None:
        """Whether a centre lies on that side of another; None also where another side is as good a word."""
        first, second = self.items[place].center, self.items[other].center
        found = lies(first, relation, second, self.size)
        across, along = abs(first[0] - second[0]), abs(first[1] - second[1])
        if relation in ("above", "below"):
            across, along = along, across
        return None if found and across < along else found

    def _ordered(self, places: Sequence[int], order: int) -> list[int]:
        ranked = sorted(places, key=lambda place: self.items[place].center[0])
        steps = np.diff([self.items[place].center[0] / self.size[0] for place in ranked])
        if not 3 <= len(ranked) <= MOST_IN_ORDER or abs(order) > len(ranked) or steps.min() < IN_ORDER:
            return []
        return [ranked[order - 1 if order > 0 else order]] if self._are_alike(ranked) else []

    def _are_alike(self, places: Sequence[int]) -> bool:
        """Whether things are all seen well and apart, so that one can count and compare them."""
        areas = [self.items[place].area for place in places]
        pairs = itertools.combinations(places, 2)
        return (
            min(areas) * NEGLIGIBLE >= max(areas)
            and min(areas) >= LEAST_SEEN * self.size[0] * self.size[1]
            and all(self._shared[pair] <= APART for pair in pairs)
        )

    def _is_most(self, place: int, places: Sequence[int], phrase: Phrase) -> bool:
        item, others = self.items[place], [other for other in places if other != place]
        if not others or any(self._shared[place, other] > APART for other in others):
            return False
        areas = [self.items[other].area for other in others]
        if phrase.size:
            if min(*areas, item.area) < LEAST_SEEN * self.size[0] * self.size[1]:
                return False
            if phrase.size == "bigger":
                return all(item.area >= LARGER * area for area in areas)
            return all(item.area * LARGER <= area for area in areas)
        if item.area * NEGLIGIBLE < max(areas):
            return False
        if phrase.place == "middle":
            sides = ("left of", "right of")
            return (
                len(others) == 2
                and self._are_alike(places)
                and all(any(self._lies(other, side, place) for other in others) for side in sides)
            )
        share = item.center[0] / self.size[0], item.center[1] / self.size[1]
        within = {"left": share[0], "right": 1 - share[0], "top": share[1], "bottom": 1 - share[1]}
        return within[phrase.place] < 0.5 and all(
            self._lies(place, SIDES[phrase.place], other) is True for other in others
        )

    # ---- phrases of an object ----

    def phrases_of(self, place: int) -> Iterator[tuple[str, Phrase]]:
        """The phrases that mean an object, each with its kind: name, attribute, place, size, order, relation.

        The kind is the last that was needed: "the red car on the left" is by place.
        """
        item = self.items[place]
        if not item.name:
            return
        heads = [Phrase(item.name), *(Phrase(item.name, look) for look in sorted(_looks(item)))]
        for head in heads:
            kind = "attribute" if head.attribute else "name"
            if self.means(head) == place:
                yield kind, head
                if not head.attribute:
                    yield from (("relation", phrase) for phrase in self._relative(place, head))
                continue
            places = [replace(head, place=side) for side in (*SIDES, "middle")]
            last = item.name.split()[-1]
            compared = last not in wordlists.CROWDED
            sizes = [replace(head, size=size) for size in ("bigger", "smaller")]
            sizes = sizes if compared and not is_person(item.name) else []
            orders = [replace(head, order=order) for order in (2, -2, 3, -3)] if compared else []
            for kind, phrases in (("place", places), ("size", sizes), ("order", orders)):
                yield from ((kind, phrase) for phrase in phrases if self.means(phrase) == place)
            yield from (("relation", phrase) for phrase in self._relative(place, head))

    @cached_property
    def _anchors(self) -> dict[int, Phrase]:
        """The objects whose names alone mean them."""
        phrases = {place: Phrase(self.items[place].name) for place in self.own if self.may_be_named(place)}
        return {place: phrase for place, phrase in phrases.items() if self.means(phrase) == place}

    def _relative(self, place: int, head: Phrase) -> Iterator[Phrase]:
        annotated = [(relation, other) for first, relation, other in sorted(self.relations) if first == place]
        spatial = [(relation, other) for other in self._anchors for relation in OPPOSITE]
        for relation, other in annotated + spatial:
            anchor = self._anchors.get(other)
            if other == place or anchor is None or _may_be(anchor.name, head.name):
                continue
            phrase = replace(head, relation=relation, anchor=anchor)
            if self.means(phrase) == place:
                yield phrase

    def count(self, name: str, attribute: str = "") -> int:
        """How many objects have a name and an attribute for sure."""
        return len(self._found(name, attribute) or ())

    def may_be_named(self, place: int) -> bool:
        """Whether an object is large enough to be seen, alone, and has a name that people say."""
        item, whole = self.items[place], self.size[0] * self.size[1]
        if (
            item.in_doubt
            or not is_noun(item.name)
            or not LEAST_AREA * whole <= item.area <= MOST_AREA * whole
        ):
            return False
        return is_person(item.name) or not any(
            is_person(other.name) and self._within(place, number) > HIDDEN
            for number, other in enumerate(self.items)
            if other.name
        )

    def _within(self, place: int, other: int) -> float:
        """Share of a box that lies within another."""
        areas = self.items[place].area, self.items[other].area
        smaller = min(areas)
        return float(self._shared[place, other]) * smaller / max(areas[0], 1e-6)


def text_of(phrase: Phrase, several: int) -> str:
    """A phrase in words.

    Args:
        phrase: What it means.
        several: How many objects its name and attribute fit: of two one is bigger, of three the biggest.
    """
    name = f"{phrase.attribute} {phrase.name}".strip()
    if phrase.order:
        side = "left" if phrase.order > 0 else "right"
        return f"the {_ORDINALS[abs(phrase.order)]} {name} from the {side}"
    if phrase.size:
        size = (
            phrase.size
            if several == 2
            else phrase.size.removesuffix("ger").removesuffix("er")
            + ("gest" if phrase.size == "bigger" else "est")
        )
        return f"the {size} {name}"
    if phrase.place:
        places = {"left": "on the left", "right": "on the right", "middle": "in the middle"}
        return f"the {name} {places.get(phrase.place, f'at the {phrase.place}')}"
    if phrase.relation and phrase.anchor is not None:
        sides = {"left of": "to the left of", "right of": "to the right of"}
        return f"the {name} {sides.get(phrase.relation, phrase.relation)} the {phrase.anchor.name}"
    return f"the {name}"


@lru_cache(1 << 16)
def _may_be(name: str, other: str) -> bool:
    """Whether a thing of one name may be what somebody means by the other; one without a name may be any."""
    if not name or not other:
        return True
    lasts = {name.split()[-1], other.split()[-1]}
    return alike(name, other) or any(lasts <= names for names in wordlists.CONFUSED)


# ---- how things look ----------------------------------------------------------------------------


def _class_of(look: str) -> str:
    if look in wordlists.COLORS:
        return "color"
    if look in wordlists.MATERIALS:
        return "material"
    return "pattern" if look in wordlists.PATTERNS else ""


def _looks(item: Item) -> set[str]:
    """Colours, materials and patterns of an object."""
    return {
        look
        for attribute in item.attributes
        if _class_of(look := wordlists.SAME_COLOR.get(attribute, attribute)) and look != "blond"
    }


def _looks_of(item: Item, look: str) -> bool | None:
    """Whether an object looks so; None where nobody says."""
    looks = _looks(item)
    if look in looks:
        return True
    same = {other for other in looks if _class_of(other) == _class_of(look)}
    near = any({look, other} <= colors for other in same for colors in wordlists.NEAR_COLORS)
    return False if same and not near else None
