"""Scores a parsed scene graph against one drawn by hand, on FACTUAL (Li et al., ACL Findings 2023).

FACTUAL writes a graph as "( subject , predicate , object ) , ( object , is , attribute )", or "( object )"
where there is nothing else to say. Its tuples, as in SPICE (Anderson et al., 2016), are objects (o,),
attributes (o, a) and relations (s, p, o), over singular words; synonyms do not count here.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tbkin_core.errors import DataError
from tbkin_core.names.lexicon import lemmatize_noun
from tbkin_core.parsing.text_graph import TextGraph

Tuples = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class FactualScore:
    """Means over captions, in [0, 1]; `exact` is the share whose sets of tuples are equal."""

    f1: float
    exact: float
    captions: int


def lemmatize_phrase(phrase: str) -> str:
    """Words of a phrase in lower case and singular, one space between them."""
    return " ".join(lemmatize_noun(word) for word in phrase.lower().split())


def parse_factual_graph(text: str) -> Tuples:
    """Tuples of a graph in FACTUAL's notation; an object counts once, however often it is mentioned.

    Raises:
        DataError: A group has neither one nor three parts.
    """
    tuples: set[tuple[str, ...]] = set()
    for group in text.split(") , ("):
        parts = [lemmatize_phrase(part) for part in group.strip().strip("()").split(" , ")]
        if parts == [""]:
            continue
        if len(parts) not in (1, 3):
            raise DataError(
                f"scene graph {text!r}: expected (object) or (subject, predicate, object), got {group!r}",
                hint="the parts are separated by ' , ', the groups by ' ) , ( '",
            )
        tuples.add((parts[0],))
        if len(parts) == 3:
            subject, predicate, last = parts
            if predicate == "is":
                tuples.add((subject, last))
            else:
                tuples |= {(last,), (subject, predicate, last)}
    return frozenset(tuples)


def graph_tuples(graph: TextGraph) -> Tuples:
    """Tuples of a text scene graph."""
    names = [lemmatize_phrase(item.name) for item in graph.objects]
    tuples: set[tuple[str, ...]] = {(name,) for name in names}
    tuples.update((names[item.object], lemmatize_phrase(item.name)) for item in graph.attributes)
    tuples.update(
        (names[item.subject], lemmatize_phrase(item.predicate), names[item.object])
        for item in graph.relations
    )
    return frozenset(tuples)


def tuple_f1(candidate: Tuples, reference: Tuples) -> float:
    """F1 of two sets of tuples; 0 where nothing is shared, also when both are empty (as FACTUAL has it)."""
    shared = len(candidate & reference)
    return 2 * shared / (len(candidate) + len(reference)) if shared else 0.0


def score(candidates: Sequence[Tuples], references: Sequence[Tuples]) -> FactualScore:
    """Mean F1 and share of exact matches.

    Raises:
        DataError: The two differ in length, or are empty.
    """
    if len(candidates) != len(references) or not candidates:
        raise DataError(
            "need as many parsed graphs as references and at least one, "
            f"got {len(candidates)} and {len(references)}"
        )
    pairs = list(zip(candidates, references, strict=True))
    return FactualScore(
        f1=sum(tuple_f1(candidate, reference) for candidate, reference in pairs) / len(pairs),
        exact=sum(candidate == reference for candidate, reference in pairs) / len(pairs),
        captions=len(pairs),
    )


def read_factual(path: Path) -> list[tuple[str, str]]:
    """(caption, scene graph) pairs of a FACTUAL file (CSV with columns caption and scene_graph).

    Raises:
        DataError: The file is missing or lacks the columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [(row["caption"], row["scene_graph"]) for row in csv.DictReader(file)]
    except OSError as error:
        what, hint = f"cannot be read: {error.strerror}", "expected FACTUAL's train.csv or dev.csv"
        raise DataError(f"{path}: {what}", hint=hint) from error
    except KeyError as error:
        hint = "expected the columns caption, scene_graph"
        raise DataError(f"{path}: no column {error}", hint=hint) from error
