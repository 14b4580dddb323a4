"""Reads and scores captions of several kinds whose graphs were written by hand, in `golden`.

`python tests/caption_kinds.py [--file captions_unseen.txt] [--wrong]` prints, of each kind, the share of
captions whose graph is exactly right, and of the objects and relations that were found, the share that is
wrong.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.parsing.text_graph import TextGraph

GOLDEN = Path(__file__).parent / "golden"
Fact = tuple[str, ...]

SAME_PREDICATE = {
    "with": ("with", "have"),
    "with*": ("with", "have", "wear"),
    "in*": ("in", "wear"),
    "without": ("without", "not have", "not wear"),
}
INSIDE, HOLDS = ("in", "inside", "on"), ("have", "of", "with")
COLLECTIVE = (
    "2",
    "couple",
    "pair",
    "group",
    "bunch",
    "row",
    "line",
    "crowd",
    "herd",
    "flock",
    "pack",
    "team",
)
COLLECTIVE += ("set", "lot", "lots", "number", "dozen", "12", "variety", "many")
COLLECTIVE += tuple(f"{word} of" for word in COLLECTIVE) + tuple(f"a {word} of" for word in COLLECTIVE)


@dataclass(frozen=True)
class Wording:
    """What a graph must say, one of each set, and what else it may say."""

    needed: tuple[frozenset[Fact], ...]
    allowed: frozenset[Fact]

    def is_met(self, found: frozenset[Fact]) -> bool:
        return found <= self.allowed and all(found & one_of for one_of in self.needed)


@dataclass(frozen=True)
class Reference:
    """A caption with the graphs that are right, of which one is as good as another."""

    kind: str
    caption: str
    wordings: tuple[Wording, ...]

    @property
    def allowed(self) -> frozenset[Fact]:
        """What some right graph says."""
        return frozenset().union(*(wording.allowed for wording in self.wordings))

    def is_exact(self, found: frozenset[Fact]) -> bool:
        return any(wording.is_met(found) for wording in self.wordings)


def facts(graph: TextGraph) -> frozenset[Fact]:
    """Objects, attributes and relations by name."""
    names = [item.name for item in graph.objects]
    found: set[Fact] = {(name,) for name in names}
    found |= {(names[item.object], item.name) for item in graph.attributes}
    return frozenset(
        found | {(names[item.subject], item.predicate, names[item.object]) for item in graph.relations}
    )


def read_references(name: str = "captions.txt") -> list[Reference]:
    """The captions of a file in `golden`, in its order."""
    kind, references = "", []
    for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            kind = line[3:]
        elif " :: " in line:
            caption, written = line.split(" :: ")
            wordings = tuple(_wording(part) for part in written.split(" || "))
            references.append(Reference(kind, caption, wordings))
    return references


def _wording(written: str) -> Wording:
    needed: list[frozenset[Fact]] = []
    allowed: set[Fact] = set()
    for item in written.split("; "):
        one_of = {fact for part in item.lstrip("?*").split(" or ") for fact in _facts(part)}
        if item.startswith("*"):
            one_of = {(name, said) for (name,) in one_of for said in COLLECTIVE}
        elif not item.startswith("?"):
            needed.append(frozenset(one_of))
            allowed |= {(name,) for fact in one_of for name in (fact[0], *fact[2:])}
        allowed |= one_of
    return Wording(tuple(needed), frozenset(allowed))


def _facts(part: str) -> Iterable[Fact]:
    if " ~ " in part:
        content, vessel = part.split(" ~ ")
        for name in content.split("/"):
            yield from ((name, word, vessel) for word in INSIDE)
            yield from ((vessel, word, name) for word in HOLDS)
        return
    fields = [field.split("/") for field in part.split(", ")]
    if len(fields) == 3:
        fields[1] = [same for word in fields[1] for same in SAME_PREDICATE.get(word, (word,))]
    yield from itertools.product(*fields)


def main() -> None:
    """Print the shares of each kind as a table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--wrong", nargs="*", help="show what is wrong in captions (of these kinds)")
    options.add_argument("--file", default="captions.txt")
    arguments = options.parse_args()
    wrong, references = arguments.wrong, read_references(arguments.file)
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * 6)
    for reference, graph in zip(
        references, CaptionParser().parse(item.caption for item in references), strict=True
    ):
        found = facts(graph)
        rows = [counts[reference.kind], counts["all"]]
        exact = reference.is_exact(found)
        objects, relations = ({fact for fact in found if len(fact) == size} for size in (1, 3))
        numbers = (1, exact, len(objects), len(objects - reference.allowed), len(relations))
        for row in rows:
            for place, number in enumerate((*numbers, len(relations - reference.allowed))):
                row[place] += number
        if wrong is not None and not exact and (not wrong or reference.kind in wrong):
            missing = [sorted(one_of)[:2] for one_of in reference.wordings[0].needed if not found & one_of]
            print(f"{reference.kind}: {reference.caption}\n    extra {sorted(found - reference.allowed)}")
            print(f"    missing {missing}")
    print(f"{'kind':14}exact  wrong objects  wrong relations")
    for kind, (captions, exact, objects, wrong_objects, relations, wrong_relations) in counts.items():
        shares = exact / captions, wrong_objects / max(objects, 1), wrong_relations / max(relations, 1)
        print(f"{kind:14}{shares[0]:5.0%}  {shares[1]:13.1%}  {shares[2]:15.1%}")


if __name__ == "__main__":
    main()
