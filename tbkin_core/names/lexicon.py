"""Lemmas of English nouns and verbs: a table of exceptions that ships with tbkin, then suffix rules."""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path


def parser_file(name: str) -> Path:
    """A file or directory of the parser that ships with tbkin; "" for its directory."""
    return Path(str(resources.files("tbkin_core"))) / "resources" / "parser" / name


@cache
def shipped_lemmas() -> dict[str, dict[str, str]]:
    """Forms of "nouns" and "verbs" whose lemma the suffix rules miss, from `resources/parser/lemmas.json`."""
    return json.loads(parser_file("lemmas.json").read_text(encoding="utf-8"))


_SINGULAR_S = ("ss", "us", "is")


def lemmatize_noun(word: str, exceptions: dict[str, str] | None = None) -> str:
    """Singular of an English noun in lower case, from a table of exceptions and suffix rules."""
    known = (shipped_lemmas()["nouns"] if exceptions is None else exceptions).get(word)
    if known is not None:
        return known
    if len(word) < 4 or not word.endswith("s") or word.endswith(_SINGULAR_S):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if word.endswith(("sses", "shes", "ches", "xes", "zzes", "toes")) and word != "toes":
        return word[:-2]
    return word[:-1]


def lemmatize_name(name: str) -> str:
    """An object's name in lower case, its last word singular."""
    *first, last = name.lower().split() or [""]
    return " ".join([*first, lemmatize_noun(last)])


def lemmatize_predicate(predicate: str) -> str:
    """A predicate in lower case, its verb as a lemma, without "be" before it and articles after it.

    "is parked ON the" is "park on", "on the left side of" is "left of".
    """
    words = predicate.lower().split()
    while len(words) > 1 and words[0] in {"is", "are", "was", "were", "be", "being", "been"}:
        words = words[1:]
    while len(words) > 1 and words[-1] in {"a", "an", "the"}:
        words = words[:-1]
    if words and words[0] not in _NO_VERBS and not words[0].endswith("wards"):
        words[0] = lemmatize_verb(words[0])
    return plain_sides(" ".join(words))


# Words that begin predicates and look like forms of verbs.
_NO_VERBS = frozenset({"left", "during", "wings", "sides", "rows", "lots", "pieces", "parts"})
_SIDE = re.compile(r"(?:^|(?<= ))(?:(?:at|on|to|in|from|by) )?(left|right)(?: hand)?(?: sides?)? of$")


@lru_cache(65_536)
def plain_sides(predicate: str) -> str:
    """A predicate with sides in one form: "at the left of" and "on the left side of" are "left of"."""
    if "left" not in predicate and "right" not in predicate:
        return predicate
    return _SIDE.sub(r"\1 of", re.sub(r"\bthe ", "", predicate))


_VOWELS = frozenset("aeiou")
_DOUBLED = re.compile(r"([bdgklmnprtvz])\1$")
_UNSTRESSED_END = re.compile(r"[aeiou][^aeiou]+(?:en|er|on|or|el|it|et|ow|in|al|om)$")


def lemmatize_verb(word: str, exceptions: dict[str, str] | None = None) -> str:
    """Base form of an English verb form in lower case, from a table of exceptions and suffix rules."""
    known = (shipped_lemmas()["verbs"] if exceptions is None else exceptions).get(word)
    if known is not None:
        return known
    if len(word) < 4:
        return word
    if word.endswith("ing") and len(word) > 4:
        return _verb_stem(word[:-3]) or word
    if word.endswith(("ied", "ies")):
        return word[:-3] + "y"
    if word.endswith("ed") and not word.endswith("eed"):
        return _verb_stem(word[:-2]) or word
    if word.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(_SINGULAR_S):
        return word[:-1]
    return word


def _verb_stem(stem: str) -> str:
    """The verb whose -ing or -ed form leaves this stem; "" for the stem of "string" and "shred"."""
    if not any(letter in _VOWELS or letter == "y" for letter in stem):
        return ""
    if _DOUBLED.search(stem) and not stem.endswith(("ll", "zz")):
        return stem[:-1]
    soft = stem.endswith(("v", "c", "u", "dg", "rg", "ng", "rs", "ns", "z"))
    if soft and not stem.endswith(("ong", "zz", "ing", "ang")):
        return stem + "e"
    if len(stem) >= 2 and stem[-1] == "l" and stem[-2] in "tbdgkpc":  # handle, tumble, cuddle
        return stem + "e"
    if len(stem) >= 3 and stem[-1] not in "aeiouwxyh" and stem[-2] in _VOWELS and stem[-3] not in _VOWELS:
        return stem if _UNSTRESSED_END.search(stem) else stem + "e"
    if len(stem) == 2 and stem[0] in _VOWELS and stem[1] not in _VOWELS:  # use
        return stem + "e"
    return stem
