"""What a grammar cannot know about captions: counts from human-made scene graphs, and lemmas.

`resources/parser/lexicon.json` tells that "tennis racket" is one thing and "metal racket" a racket of metal;
see the README beside it for where it comes from.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Lexicon:
    """Counts condensed to decisions; every table may be empty.

    Attributes:
        compounds: "modifier noun" or "modifier" -> "merge", "join" (merge without the
            space: "snow board"), "attribute", "have", "in" or "drop".
        relations: Produced predicate, or "predicate|object", -> predicate to use; "~" in front swaps the
            ends, "-" alone drops the relation. "predicate^" or "preposition^" decides on a verb with an
            object of its own: "^predicate" relates that object instead of the subject, "=" does not.
        partitives: First noun of "X of Y" -> attribute of Y, "" to drop X, "have" to keep both.
        attributes: Produced attribute -> attribute to use; "" drops it.
        agents: Nouns of what acts (people, animals).
        agentive_verbs: Verbs whose subject mostly is one of them.
        inanimate_subjects: "noun verb" pairs of other nouns that such verbs do take.
        noun_lemmas: Irregular plurals.
        verb_lemmas: Irregular or ambiguous verb forms.
    """

    compounds: dict[str, str] = field(default_factory=dict)
    relations: dict[str, str] = field(default_factory=dict)
    partitives: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    agents: frozenset[str] = frozenset()
    agentive_verbs: frozenset[str] = frozenset()
    inanimate_subjects: frozenset[str] = frozenset()
    noun_lemmas: dict[str, str] = field(default_factory=dict)
    verb_lemmas: dict[str, str] = field(default_factory=dict)


@cache
def shipped_lexicon() -> Lexicon:
    """The lexicon in `tbkin_core/resources/parser`."""
    file = resources.files("tbkin_core").joinpath("resources", "parser", "lexicon.json")
    if not file.is_file():
        return Lexicon()
    tables: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for name in ("agents", "agentive_verbs", "inanimate_subjects"):
        tables[name] = frozenset(tables.get(name, ()))
    return Lexicon(**tables)


# Short or irregular forms that the suffix rules miss, whatever the lexicon holds.
_VERB_FORMS = {
    "has": "have", "had": "have", "does": "do", "goes": "go", "is": "be", "are": "be", "ate": "eat",
    "met": "meet",
    "rode": "ride", "laid": "lay", "lain": "lay", "lying": "lay", "lies": "lay", "lie": "lay", "sat": "sit",
    "seated": "sit", "tied": "tie", "tying": "tie", "dyed": "dye",
}  # fmt: skip
_F_PLURALS = frozenset(
    {
        "leaves", "knives", "wolves", "shelves", "scarves", "wives", "loaves", "calves", "halves", "thieves",
        "lives", "hooves",
    }
)  # fmt: skip
_SINGULAR_S = ("ss", "us", "is")


def lemmatize_noun(word: str, exceptions: dict[str, str] | None = None) -> str:
    """Singular of an English noun in lower case, from a table of exceptions and suffix rules."""
    if exceptions is None:
        exceptions = shipped_lexicon().noun_lemmas
    known = exceptions.get(word)
    if known is not None:
        return known
    if len(word) < 4 or not word.endswith("s") or word.endswith(_SINGULAR_S):
        return word
    if word in _F_PLURALS:
        return word[:-3] + ("fe" if word in {"knives", "wives", "lives"} else "f")
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if word.endswith(("sses", "shes", "ches", "xes", "zzes", "toes")) and word != "toes":
        return word[:-2]
    return word[:-1]


_VOWELS = frozenset("aeiou")
_DOUBLED = re.compile(r"([bdgklmnprtvz])\1$")
_UNSTRESSED_END = re.compile(r"[aeiou][^aeiou]+(?:en|er|on|or|el|it|et|ow|in|al|om)$")


def lemmatize_verb(word: str, exceptions: dict[str, str] | None = None) -> str:
    """Base form of an English verb form in lower case, from a table of exceptions and suffix rules."""
    if exceptions is None:
        exceptions = shipped_lexicon().verb_lemmas
    known = _VERB_FORMS.get(word) or exceptions.get(word)
    if known is not None:
        return known
    if len(word) < 4:
        return word
    if word.endswith("ing") and len(word) > 4:
        return _verb_stem(word[:-3])
    if word.endswith("ied"):
        return word[:-3] + "y"
    if word.endswith("ed") and not word.endswith("eed"):
        return _verb_stem(word[:-2])
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(_SINGULAR_S):
        return word[:-1]
    return word


def _verb_stem(stem: str) -> str:
    """The verb whose -ing or -ed form leaves this stem."""
    if not any(letter in _VOWELS or letter == "y" for letter in stem):
        return stem
    if _DOUBLED.search(stem) and not stem.endswith(("ll", "zz")):
        return stem[:-1]
    if stem.endswith(("v", "c", "u", "dg", "rg", "ng", "rs", "ns", "z")) and not stem.endswith(
        ("ong", "zz", "ing", "ang")
    ):
        return stem + "e"
    if len(stem) >= 2 and stem[-1] == "l" and stem[-2] in "tbdgkpc":  # handle, tumble, cuddle
        return stem + "e"
    if len(stem) >= 3 and stem[-1] not in "aeiouwxyh" and stem[-2] in _VOWELS and stem[-3] not in _VOWELS:
        return stem if _UNSTRESSED_END.search(stem) else stem + "e"
    if len(stem) == 2 and stem[0] in _VOWELS and stem[1] not in _VOWELS:  # use
        return stem + "e"
    return stem
