"""Questions that are answered by yes and no: of what captions say, and of what they would say were it so.

Captions leave things out: that none of five names a hat does not mean that nobody wears one. How likely a
thing is there when no caption names it follows from how often it is named and from how regularly the captions
of an image name it (`Silence`); "no" is the answer only where that is improbable, or where the captions say
otherwise: a black dog is not white, a sitting man does not run.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tbkin_core.names.lexicon import lemmatize_noun, lemmatize_verb
from tbkin_core.questions import english, wordlists
from tbkin_core.questions.answers import Asked
from tbkin_core.questions.asking import Claim, Fact, be, the, whose
from tbkin_core.questions.english import Nouns
from tbkin_core.questions.kinds import YES_NO
from tbkin_core.questions.things import Thing, Things

MOST_DOUBT = 0.03  # that what no caption names is there
UNKNOWN_REGULARITY = 0.3  # of captions that name a thing, where images have one caption each
LEAST_COMMON = 0.004  # of the images with a thing: of so many something is said that is asked of others
MOST_CLAIMS = 80  # about things of one name
LEAST_CLAIMED = 2  # images of which something is said, to be asked of others
MOST_COMMON = 400  # nouns, to be asked of images without
DRAWN = 40  # of them for an image
MOST_ABSENT = 3  # that an image is asked about
MOST_DENIED = 6  # claims that a thing of an image is asked about


@dataclass(frozen=True)
class Described:
    """An image as its captions describe it."""

    things: Things
    facts: Sequence[Fact]
    captions: int


class Silence:
    """How far a thing is absent that no caption names.

    Where it is, a share c of the captions name it: as often as another caption of an image names what one has
    named. If a share q of images have it, at least one of n captions names it in r = q (1 - (1 - c)^n) of
    them, and of those where no caption does, q (1 - c)^n / (1 - r) have it.
    """

    def __init__(self) -> None:
        self._pairs, self._named = Counter[str](), Counter[str]()

    def note(self, name: str, named: int, captions: int) -> None:
        """An image of which so many captions name the thing."""
        self._pairs[name] += named * (named - 1)
        self._named[name] += named * (captions - 1)

    def doubt(self, name: str, share: float, captions: int) -> float:
        """Probability that a thing is there of which an image's captions do not speak.

        Args:
            share: Of the images, those that speak of it.
            captions: That the image has.
        """
        known = self._named[name] >= 8
        regular = self._pairs[name] / self._named[name] if known else UNKNOWN_REGULARITY
        missed = (1 - min(max(regular, 0.05), 0.95)) ** captions
        present = min(share / (1 - missed), 1.0)
        return min(present * missed / max(1 - share, 1e-9), 1.0)


class YesNo:
    """What images can be asked.

    Args:
        images: Those whose captions say what is usual.
        nouns: How they use nouns.
    """

    def __init__(self, images: Iterable[Described], nouns: Nouns) -> None:
        self._nouns = nouns
        self._silence = Silence()
        self._images = 0
        self._seen = Counter[str]()  # images in which a noun is named
        self._with = Counter[str]()  # images with a sure thing of a word
        self._claims: dict[str, Counter[Claim]] = defaultdict(Counter)  # by the word of the thing
        for image in images:
            self._images += 1
            self._learn(image)
        self._usual = {
            word: [
                (claim, count)
                for claim, count in claims.most_common(MOST_CLAIMS)
                if count >= max(LEAST_CLAIMED, LEAST_COMMON * self._with[word])
            ]
            for word, claims in self._claims.items()
        }
        self._common = [
            (noun, count)
            for noun, count in self._seen.most_common(MOST_COMMON)
            if count >= LEAST_CLAIMED and noun not in wordlists.SCENES | wordlists.PARTS
        ]

    def _learn(self, image: Described) -> None:
        named: dict[str, set[int]] = defaultdict(set)
        for thing in image.things.all:
            for noun in thing.nouns:
                named[noun] |= thing.captions
            if thing.sure:
                self._with[thing.word] += 1
        for noun, captions in named.items():
            self._silence.note(noun, len(captions), image.captions)
            self._seen[noun] += 1
        for thing, claim in _claims(image.facts):
            self._claims[thing.word][claim] += 1

    def _is_so(self, thing: Thing, claim: Claim) -> str:
        """The question whether a claim is so."""
        kind, words, value = claim
        if kind == "color" and words:
            are = "are" if english.is_plural(words, lemmatize_noun(words)) else "is"
            return f"{are} {whose(thing)} {words} {value}?"
        if kind == "color":
            return f"{be(thing)} {the(thing)} {value}?"
        if kind == "place":
            return f"{be(thing)} {the(thing)} {words} the {value}?"
        rest = ""
        if value:
            last = value.split()[-1]
            rest = " " + self._nouns.indefinite(value, english.is_plural(last, lemmatize_noun(last)))
        return f"{be(thing)} {the(thing)} {words}{rest}?"

    def _is_there(self, noun: str, word: str, plural: bool) -> str:
        """The question whether there is such a thing."""
        if plural:
            return f"are there {word} in the picture?"
        return f"is there {self._nouns.indefinite(noun)} in the picture?"

    def asked(self, image: Described, random: np.random.Generator) -> list[Asked]:
        """An image's questions with yes and with no."""
        claims: dict[int, list[Claim]] = defaultdict(list)
        for fact in image.facts:
            if fact.claim is not None:
                claims[id(fact.thing)].append(fact.claim)
        return [*self._yes(image, claims), *self._no(image, claims, random)]

    def _yes(self, image: Described, claims: Mapping[int, Sequence[Claim]]) -> Iterator[Asked]:
        """What at least two captions say, or the only one."""
        least = min(2, image.captions)
        for thing in image.things.all:
            if len(thing.captions) >= least and thing.noun not in wordlists.SCENES:
                yield Asked(
                    self._is_there(thing.noun, thing.word, thing.plural),
                    YES_NO,
                    (("yes", len(thing.captions)),),
                )
        for (thing, claim), captions in _claims(image.facts).items():
            others = {it.value for it in claims[id(thing)] if it[:2] == claim[:2]}
            if len(captions) >= least and not (claim.kind == "color" and len(others) > 1):
                yield Asked(self._is_so(thing, claim), YES_NO, (("yes", len(captions)),))

    def _no(
        self, image: Described, claims: Mapping[int, Sequence[Claim]], random: np.random.Generator
    ) -> Iterator[Asked]:
        """What is said of other images and cannot be said of this one, drawn by how usual it is."""
        no = (("no", image.captions),)
        names = {noun for thing in image.things.all for noun in thing.nouns}
        for noun in itertools.islice(self._absent(image, names, random), MOST_ABSENT):
            word = self._nouns.plurals.get(noun, noun) if noun in wordlists.PLURALS else noun
            yield Asked(self._is_there(noun, word, word in wordlists.PLURALS), YES_NO, no)
        for thing in image.things.all:
            usual = self._usual.get(thing.word)
            if usual and thing.sure and len(thing.captions) >= min(2, image.captions):
                own = claims[id(thing)]
                drawn = (usual[place][0] for place in _drawn([count for _, count in usual], random))
                denied = (it for it in drawn if self._is_denied(thing, it, own, names, image.captions))
                for claim in itertools.islice(denied, MOST_DENIED):
                    yield Asked(self._is_so(thing, claim), YES_NO, no)

    def _absent(self, image: Described, names: set[str], random: np.random.Generator) -> Iterator[str]:
        if not self._common:
            return
        for place in _drawn([count for _, count in self._common], random)[:DRAWN]:
            noun, count = self._common[place]
            doubt = self._silence.doubt(noun, count / self._images, image.captions)
            if doubt <= MOST_DOUBT and english.are_apart(noun, names):
                yield noun

    def _is_denied(
        self, thing: Thing, claim: Claim, own: Sequence[Claim], names: set[str], captions: int
    ) -> bool:
        """Whether a claim is not so of a thing of which captions claim `own`."""
        same = [it for it in own if it[:2] == claim[:2]]
        if claim.kind == "color":
            return bool(same) and not any(
                {claim.value, it.value} <= near
                for it in same
                for near in ({it.value}, *wordlists.NEAR_COLORS)
            )
        if claim.kind == "do":
            verb = lemmatize_verb(claim.words)
            verbs = {lemmatize_verb(it.words.split()[0]) for it in own if it.kind in ("do", "object")}
            return verb not in verbs and any(_exclude(verb, other) for other in verbs)
        noun = lemmatize_noun(claim.value.split()[-1])
        if claim.kind == "place":
            ground, grounds = english.ground_of(noun), {english.ground_of(name) for name in names} - {""}
            return bool(ground and grounds) and ground not in grounds
        if not english.are_apart(noun, names):
            return False
        if same and claim.words.split()[0] in wordlists.ONE_AT_A_TIME:
            return True
        share = self._claims[thing.word][claim] / max(self._with[thing.word], 1)
        return self._silence.doubt(noun, share, captions) <= MOST_DOUBT


def _claims(facts: Iterable[Fact]) -> dict[tuple[Thing, Claim], set[int]]:
    """What is claimed of which thing, with the captions that do."""
    found: dict[tuple[Thing, Claim], set[int]] = {}
    for fact in facts:
        if fact.claim is not None and fact.thing is not None:
            found.setdefault((fact.thing, fact.claim), set()).add(fact.caption)
    return found


def _exclude(first: str, second: str) -> bool:
    """Whether one does not do the one while doing the other."""
    postures, motions = wordlists.POSTURES, wordlists.MOTIONS
    return (first in postures and second in motions) or (first in motions and second in postures)


def _drawn(weights: Sequence[float], random: np.random.Generator) -> list[int]:
    """All places in an order that is drawn by weight (Efraimidis and Spirakis 2006)."""
    return np.argsort(-(random.random(len(weights)) ** (1 / np.array(weights, float)))).tolist()
