"""What the captions of an image speak of: which of their nouns mean the same thing.

"A boy runs", "a young child running" and "the kid is on the grass" speak of one boy. Two nouns mean one thing
where one may be said for the other and no caption tells them apart. A thing that some caption says there are
several of cannot be asked about as "the boy".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tbkin_core.parsing.text_graph import TextGraph
from tbkin_core.questions.english import is_animal, is_person, is_plural, noun_of, number, same_thing


@dataclass(eq=False)
class Thing:
    """A thing, or several of a kind, that captions of an image name.

    Attributes:
        nouns: What it is called, in the singular, with how often.
        plural: Whether the captions speak of several.
        sure: Whether "the dog" tells which is meant: no caption knows two, or another number of them.
        captions: The captions that name it.
        numbers: The numbers that captions give of it.
    """

    plural: bool
    nouns: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    captions: set[int] = field(default_factory=set)
    numbers: list[int] = field(default_factory=list)
    sure: bool = True

    @property
    def noun(self) -> str:
        """What it is called most, in the singular."""
        return max(self.nouns, key=self.nouns.__getitem__)

    @property
    def word(self) -> str:
        """What it is called most, as the captions have it."""
        noun = self.noun
        return max((word for word in self.words if self._singular[word] == noun), key=self.words.__getitem__)

    def __post_init__(self) -> None:
        self._singular: dict[str, str] = {}

    def add(self, caption: int, word: str, noun: str, number: int) -> None:
        """Another mention."""
        if caption in self.captions:
            self.sure = False
        self._singular[word] = noun
        self.nouns[noun] += 1
        self.words[word] += 1
        self.captions.add(caption)
        if number:
            self.numbers.append(number)

    def take(self, other: Thing) -> None:
        """What another is called, too."""
        self._singular |= other._singular
        self.nouns += other.nouns
        self.words += other.words
        self.captions |= other.captions
        self.numbers += other.numbers
        self.sure &= other.sure

    @property
    def is_person(self) -> bool:
        """Whether it is a person or several."""
        return is_person(self.noun)

    @property
    def is_animate(self) -> bool:
        """Whether it can be said to do something."""
        return self.is_person or is_animal(self.noun)


class Things:
    """The things of an image.

    Attributes:
        all: Each once.
        of: For each caption, the thing of each of its objects; None of one that nothing names.
    """

    def __init__(self, graphs: Sequence[TextGraph]) -> None:
        self.of: list[list[Thing | None]] = []
        found: dict[tuple[str, bool], Thing] = {}
        for caption, graph in enumerate(graphs):
            numbers = {it.object: number(it.name) for it in graph.attributes if number(it.name)}
            row: list[Thing | None] = []
            heads = {item.head for item in graph.objects}
            for place, item in enumerate(graph.objects):
                word, noun = noun_of(graph, item)
                # "dog climbs": a verb that was taken for a noun.
                if not noun or item.span[0] - 1 in heads:
                    row.append(None)
                    continue
                plural = is_plural(word, noun) or place in numbers
                thing = found.setdefault((noun, plural), Thing(plural))
                thing.add(caption, word, noun, numbers.get(place, 0))
                row.append(thing)
            self.of.append(row)
        for (noun, plural), thing in found.items():
            if (noun, not plural) in found or len(set(thing.numbers)) > 1:
                thing.sure = False
        self._join(list(found.values()))

    def _join(self, things: list[Thing]) -> None:
        """Make one of those that are one."""
        things.sort(key=lambda thing: -len(thing.captions))
        joined: dict[int, Thing] = {}
        self.all: list[Thing] = []
        for thing in things:
            for known in self.all:
                if (
                    known.plural == thing.plural
                    and known.sure
                    and thing.sure
                    and not known.captions & thing.captions
                    and len({*known.numbers, *thing.numbers}) <= 1
                    and any(same_thing(one, other) for one in known.nouns for other in thing.nouns)
                ):
                    known.take(thing)
                    joined[id(thing)] = known
                    break
            else:
                self.all.append(thing)
        people = [thing for thing in self.all if thing.is_person]
        several = {noun for thing in people if thing.plural for noun in thing.nouns}
        single = [thing for thing in people if not thing.plural]
        # "Two people" beside "a man and a boy" are these; beside "a man" alone he is one of them.
        if len(single) == 1 and any(same_thing(one, other) for one in several for other in single[0].nouns):
            single[0].sure = False
        if joined:
            self.of = [[None if it is None else joined.get(id(it), it) for it in row] for row in self.of]
