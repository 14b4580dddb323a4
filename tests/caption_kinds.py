"""Reads and scores `tests/golden/captions.txt`: captions with graphs written by hand, by kind.

`python tests/caption_kinds.py [--wrong]` prints, of each kind, the share of captions whose graph is exactly right,
and of the objects and of the relations that were found, the share that is wrong.
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

CAPTIONS = Path(__file__).parent / "golden" / "captions.txt"
Fact = tuple[str, ...]

SAME_PREDICATE = {
    "with": ("with", "have"),
    "with*": ("with", "have", "wear"),
    "in*": ("in", "wear"),
    "without": ("without", "not have", "not wear"),
}
INSIDE, HOLDS = ("in", "inside", "on"), ("have", "of", "with")
COLLECTIVE = ("2", "couple", "pair", "group", "bunch", "row", "line", "crowd", "herd", "flock", "pack", "team")
COLLECTIVE += ("set", "lot", "lots", "number", "dozen", "12", "variety", "many")
COLLECTIVE += tuple(f"{word} of" for word in COLLECTIVE) + tuple(f"a {word} of" for word in COLLECTIVE)


@dataclass(frozen=True)
class Reference:
    """What the graph of a caption must say, one of each set, and what else it may say."""

    kind: str
    caption: str
    needed: tuple[frozenset[Fact], ...]
    allowed: frozenset[Fact]

    def is_exact(self, found: frozenset[Fact]) -> bool:
        return found <= self.allowed and all(found & one_of for one_of in self.needed)


def facts(graph: TextGraph) -> frozenset[Fact]:
    """Objects, attributes and relations by name."""
    names = [item.name for item in graph.objects]
    found: set[Fact] = {(name,) for name in names}
    found |= {(names[item.object], item.name) for item in graph.attributes}
    return frozenset(found | {(names[item.subject], item.predicate, names[item.object]) for item in graph.relations})


def read_references() -> list[Reference]:
    """The captions of the file, in its order."""
    kind, references = "", []
    for line in CAPTIONS.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            kind = line[3:]
        elif " :: " in line:
            caption, written = line.split(" :: ")
            references.append(_reference(kind, caption, written))
    return references


def _reference(kind: str, caption: str, written: str) -> Reference:
    needed: list[frozenset[Fact]] = []
    allowed: set[Fact] = set()
    for item in written.split("; "):
        one_of = {fact for part in item.lstrip("?*").split(" or ") for fact in _facts(part)}
        if item.startswith("*"):
            allowed |= {(name, said) for (name,) in one_of for said in COLLECTIVE}
            continue
        allowed |= one_of
        if not item.startswith("?"):
            needed.append(frozenset(one_of))
            # Whichever of them is said, its objects are there.
            allowed |= {(name,) for fact in one_of for name in fact[:: 2 if len(fact) == 3 else 5]}
    objects = [{(name,) for fact in one_of for name in fact[:: 2 if len(fact) == 3 else 5]} for one_of in needed]
    single = [frozenset({name}) for names in objects for name in names if len(names) <= 2]
    return Reference(kind, caption, tuple(needed + single), frozenset(allowed))


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
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--wrong", nargs="*", help="show what is wrong in captions (of these kinds)")
    wrong = options.parse_args().wrong
    references = read_references()
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * 6)
    for reference, graph in zip(references, CaptionParser().parse(item.caption for item in references), strict=True):
        found = facts(graph)
        rows = [counts[reference.kind], counts["all"]]
        exact = reference.is_exact(found)
        objects, relations = ({fact for fact in found if len(fact) == size} for size in (1, 3))
        numbers = (1, exact, len(objects), len(objects - reference.allowed), len(relations))
        for row in rows:
            for place, number in enumerate((*numbers, len(relations - reference.allowed))):
                row[place] += number
        if wrong is not None and not exact and (not wrong or reference.kind in wrong):
            missing = [sorted(one_of)[:2] for one_of in reference.needed if not found & one_of]
            print(f"{reference.kind}: {reference.caption}\n    extra {sorted(found - reference.allowed)}")
            print(f"    missing {missing}")
    print(f"{'kind':14}exact  wrong objects  wrong relations")
    for kind, (captions, exact, objects, wrong_objects, relations, wrong_relations) in counts.items():
        shares = exact / captions, wrong_objects / max(objects, 1), wrong_relations / max(relations, 1)
        print(f"{kind:14}{shares[0]:5.0%}  {shares[1]:13.1%}  {shares[2]:15.1%}")


if __name__ == "__main__":
    main()
