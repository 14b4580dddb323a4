"""English for questions: forms of verbs and nouns, articles, which names mean one thing, and good grammar."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from tbkin_core.names.lexicon import lemmatize_noun
from tbkin_core.names.similarity import Profile, shipped_synonyms
from tbkin_core.parsing.text_graph import TextGraph, TextObject
from tbkin_core.questions.wordlists import (
    ANIMALS,
    EMPTY,
    FEMALE,
    GROUNDS,
    MALE,
    MOST_COUNTED,
    NOUNS_IN_ED,
    PEOPLE,
    PLURALS,
    SEVERAL,
)


def number(name: str) -> int:
    """The number that an attribute says, 0 for none."""
    return int(name) if name.isascii() and name.isdecimal() and 1 < int(name) <= MOST_COUNTED else 0


_ING = {
    "lie": "lying",
    "lay": "lying",
    "die": "dying",
    "tie": "tying",
    "be": "being",
    "snowboard": "snowboarding",
}
_KEEPING_E = frozenset({"singe", "swinge", "tinge"})
_DOUBLING = re.compile(r"^(?:[^aeiou]*|qu|squ)[aeiou][bdgklmnprtvz]$")
_ALSO_DOUBLED = frozenset(
    {"admit", "begin", "commit", "compel", "kidnap", "patrol", "propel", "rappel", "refer", "unwrap", "unzip"}
)


@lru_cache(1 << 14)
def participle(verb: str) -> str:
    """ "riding" of "ride"."""
    if verb in _ING:
        return _ING[verb]
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")) and verb not in _KEEPING_E:
        return verb[:-1] + "ing"
    if _DOUBLING.match(verb) or verb in _ALSO_DOUBLED:
        return verb + verb[-1] + "ing"
    return verb + ("king" if verb.endswith("ic") else "ing")


_AN = re.compile(r"^(?:[aeiou](?!ni[^nm]|ne\b|u|se|we)|hour|hono|honest|heir|x-ray|umbrella|under|un[^i])")


def with_article(name: str) -> str:
    """ "an apple", "a unicycle"."""
    return f"{'an' if _AN.match(name) else 'a'} {name}"


class Nouns:
    """How the captions of a corpus use nouns.

    Attributes:
        plurals: Singular to its plural.
    """

    def __init__(self, graphs: Iterable[TextGraph]) -> None:
        plurals: dict[str, Counter[str]] = {}
        self._articles, self._bare = Counter[str](), Counter[str]()
        self._prepositions = Counter[tuple[str, str]]()
        for graph in graphs:
            for relation in graph.relations:
                last = relation.predicate.split()[-1:]
                if last in (["in"], ["on"], ["at"]):
                    _, noun = noun_of(graph, graph.objects[relation.object])
                    self._prepositions[noun, last[0]] += 1
            for thing in graph.objects:
                word, noun = noun_of(graph, thing)
                if not noun:
                    continue
                if is_plural(word, noun):
                    plurals.setdefault(noun, Counter())[word] += 1
                    continue
                begin = thing.span[0] - 1
                while begin > 0 and any(begin in it.tokens for it in graph.attributes):
                    begin -= 1
                before = graph.tokens[begin].lower() if begin >= 0 else ""
                if before in ("a", "an", "another", "one", "each", "every"):
                    self._articles[noun] += 1
                elif before not in ("the", "his", "her", "its", "their", "this", "that"):
                    self._bare[noun] += 1
        self.plurals = {noun: max(forms, key=forms.__getitem__) for noun, forms in plurals.items()}

    def is_counted(self, noun: str) -> bool:
        """Whether one says "a" before it."""
        return self._articles[noun] > 0 and self._articles[noun] >= self._bare[noun] / 2

    def preposition(self, noun: str) -> str:
        """How captions say that something is there: "on" of "beach", "in" of "water"."""
        return max(("in", "on", "at"), key=lambda word: self._prepositions[noun, word])

    def indefinite(self, name: str, word_is_plural: bool = False) -> str:
        """ "a dog", "an old shoe", "grass", "sunglasses"."""
        noun = name.split()[-1]
        return with_article(name) if not word_is_plural and self.is_counted(noun) else name


_NOUN = re.compile(r"[a-z]{2,}(?:-[a-z]+)?")


@lru_cache(1 << 16)
def _named(word: str) -> str:
    noun = lemmatize_noun(word)
    fits = (
        bool(_NOUN.fullmatch(noun)) and noun not in EMPTY and (not noun.endswith("ed") or noun in NOUNS_IN_ED)
    )
    return noun if fits else ""


def noun_of(graph: TextGraph, thing: TextObject) -> tuple[str, str]:
    """The word that names a thing, and its singular, "" where one word does not name it."""
    word = graph.tokens[thing.head].lower()
    return word, _named(word)


def is_noun(name: str) -> bool:
    """Whether a name, in lower case, is one of a single thing to be seen: not "trees", "left", "no. 5"."""
    words = name.split()
    alone = bool(words) and _named(words[-1]) == words[-1] and not is_plural(words[-1], words[-1])
    return alone and all(word.isascii() and word.isalpha() for word in words)


def is_plural(word: str, noun: str) -> bool:
    """Whether a noun stands for several: its word is another than its singular."""
    return word != noun or word in PLURALS or word in SEVERAL


@lru_cache(1 << 16)
def _profile(name: str) -> Profile:
    return shipped_synonyms()[0].profile(name)


@lru_cache(1 << 16)
def is_person(name: str) -> bool:
    """Whether a name is one of people."""
    if name.split()[-1] in PEOPLE:
        return True
    profile = _profile(name)
    return any("person" in it.senses | it.kinds for it in (profile.whole, *profile.tails))


@lru_cache(1 << 16)
def is_animal(name: str) -> bool:
    """Whether a name is one of animals."""
    return name in ANIMALS or "animal" in _profile(name).whole.broad


@lru_cache(1 << 18)
def same_thing(first: str, second: str) -> bool:
    """Whether one name may be said for what the other names: synonyms, kinds, "ball" and "tennis ball"."""
    if first == second:
        return True
    one, other = _profile(first), _profile(second)
    wholes = [(one.whole, other.whole), (other.whole, one.whole)]
    wholes += [(one.whole, tail) for tail in other.tails] + [(other.whole, tail) for tail in one.tails]
    return any(general.senses & (special.senses | special.kinds) for general, special in wholes)


@lru_cache(1 << 18)
def alike(first: str, second: str) -> bool:
    """Whether two names may be said of one thing, broad words included: "food" and "pizza"."""
    if same_thing(first, second) or first.split()[-1] == second.split()[-1]:
        return True
    one, other = _profile(first).whole, _profile(second).whole
    return bool(one.senses & other.broad or other.senses & one.broad)


def are_apart(noun: str, names: Iterable[str]) -> bool:
    """Whether none of the names may mean the noun's thing: of people only men and women are told apart."""
    if any(alike(noun, name) for name in names):
        return False
    if not is_person(noun):
        return True
    own = MALE if noun in MALE else FEMALE if noun in FEMALE else frozenset[str]()
    other = FEMALE if own is MALE else MALE if own is FEMALE else frozenset[str]()
    return all(name in other for name in names if is_person(name))


def ground_of(noun: str) -> str:
    """The ground that a noun belongs to, "" of none."""
    return next((ground for ground, nouns in GROUNDS.items() if noun in nouns), "")


# ---- good grammar -------------------------------------------------------------------------------

_NAME = r"(?: DT)? (?:NN|NNS|NN NNS?)"
_AFTER = r"(?: (?:RP|RB|IN|TO|JJ|IN NN IN))"
_SUBJECT = r"(?:VBZ DT NN|VBP DT NNS)"
_OWN = r"(?:VBZ DT NNS? POS NN|VBP DT NNS? POS NNS)"
_GRAMMAR = re.compile(
    "|".join(
        (
            rf"WP {_SUBJECT} VBG{_AFTER}{{0,2}}",  # what is the man riding?
            rf"WP VBZ VBG{_AFTER}{{0,2}}{_NAME}",  # who is riding the horse?
            rf"WP VBZ{_AFTER}{{1,2}}{_NAME}",  # what is on the table?
            r"WP VBZ IN DT NNS? POS NN",  # what is in the dog's mouth?
            rf"WP {_SUBJECT} VBN IN",  # what is the bench made of?
            rf"WDT NN (?:{_SUBJECT}|{_OWN})",  # what color is the woman's hat?
            r"WDT NN VB[ZP] IN DT NNS?",  # what pattern is on the shirt?
            rf"WRB {_SUBJECT}",  # where is the dog?
            r"WRB JJ NNS VBP EX",  # how many dogs are there?
            r"VBZ EX DT (?:JJ |NN )?NN IN DT NN|VBP EX NNS IN DT NN",  # is there a dog in the picture?
            rf"(?:{_SUBJECT}|{_OWN}) (?:JJ|NN|JJ CC JJ)",  # is the dog black?
            rf"{_SUBJECT} VBG{_AFTER}{{0,2}}(?:{_NAME})?",  # is the man riding a bike?
            rf"{_SUBJECT} IN{_NAME}",  # is the dog in the water?
        )
    )
)


def is_grammatical(tags: Iterable[str]) -> bool:
    """Whether a tagger that reads a question as it stands finds the words it is meant to be made of.

    It agrees in number, and what stands for a noun is one: not "is there together in the picture?".

    Args:
        tags: Penn tags of its tokens, without the question mark.
    """
    return _GRAMMAR.fullmatch(" ".join(tags)) is not None
