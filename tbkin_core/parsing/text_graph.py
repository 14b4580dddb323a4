"""The text scene graph: objects, their attributes, and relations, as indices into the tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextObject:
    """`head` is a token index, `span` a half-open token range around it, `name` the lemmatised name."""

    head: int
    span: tuple[int, int]
    name: str


@dataclass(frozen=True, slots=True)
class TextAttribute:
    """`object` indexes `TextGraph.objects`; `tokens` are its words; numbers are digits in `name`."""

    object: int
    name: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextRelation:
    """`subject` and `object` index `TextGraph.objects`.

    `tokens` are the predicate's words; there are none where nothing but the order says it ("clock face").
    """

    subject: int
    predicate: str
    object: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextGraph:
    """Scene graph of one caption; every index lies inside `tokens` and `objects`."""

    tokens: tuple[str, ...]
    objects: tuple[TextObject, ...] = ()
    attributes: tuple[TextAttribute, ...] = ()
    relations: tuple[TextRelation, ...] = ()
