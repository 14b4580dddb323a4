"""What can be asked about an image, and what each of its captions answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tbkin_core.names.lexicon import lemmatize_verb
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextRelation
from tbkin_core.questions import english, wordlists
from tbkin_core.questions.english import Nouns, participle
from tbkin_core.questions.things import Thing, Things


class Claim(NamedTuple):
    """What is said of a thing, to be asked by yes and no: ("object", "riding", "bike")."""

    kind: str
    words: str
    value: str


@dataclass(frozen=True, slots=True)
class Fact:
    """What one caption says of an image in answer to a question.

    Attributes:
        caption: Its number.
        kind: One of `KINDS`.
        key: Makes the question the same one in another caption of the image.
        text: The question.
        answer: "" for one that is none.
        thing: What it is about.
        claim: What the answer says of it, where that is a yes-no question.
    """

    caption: int
    kind: str
    key: tuple[object, ...]
    text: str
    answer: str
    thing: Thing | None = None
    claim: Claim | None = None


class Action(NamedTuple):
    """A verb, its form in -ing and the preposition after it: ("ride", "riding", "down")."""

    verb: str
    form: str
    rest: str

    @property
    def words(self) -> str:
        """ "riding down"."""
        return f"{self.form} {self.rest}".strip()


def be(thing: Thing) -> str:
    """ "is" or "are"."""
    return "are" if thing.plural else "is"


def the(thing: Thing) -> str:
    """ "the dog", "the dogs"."""
    return f"the {thing.word}"


def whose(thing: Thing) -> str:
    """ "the dog's", "the dogs'"."""
    return f"the {thing.word}'" if thing.word.endswith("s") else f"the {thing.word}'s"


def facts_of(graphs: Sequence[TextGraph], things: Things, nouns: Nouns) -> list[Fact]:
    """What the captions of one image say, as questions and answers.

    Args:
        graphs: Of its captions.
        things: What these speak of.
        nouns: How the corpus uses nouns.
    """
    return [
        fact
        for number in range(len(graphs))
        for fact in _Caption(number, graphs[number], things, nouns).facts()
    ]


class _Caption:
    """One caption of an image."""

    def __init__(self, number: int, graph: TextGraph, things: Things, nouns: Nouns) -> None:
        self._number, self._graph, self._nouns = number, graph, nouns
        self._things = things.of[number]
        self._alone = len(things.of) == 1
        self._owners = {it.object: it.subject for it in graph.relations if it.predicate in ("wear", "have")}
        self._heads = {item.head for item in graph.objects}
        self._described = {token for attribute in graph.attributes for token in attribute.tokens}

    def facts(self) -> Iterator[Fact]:
        """All of them."""
        for attribute in self._graph.attributes:
            yield from self._look(attribute)
        for relation in self._graph.relations:
            first, second = self._things[relation.subject], self._things[relation.object]
            if first is None or first is second:
                continue
            action = self._action_of(relation)
            if action is not None and first.sure and first.is_animate:
                yield from self._doing_something(first, action, second, self._name(relation.object))
            if second is not None:
                yield from self._related(relation, first, second, action)
        yield from self._counts()

    def _fact(
        self,
        kind: str,
        key: tuple[object, ...],
        text: str,
        answer: str,
        thing: Thing,
        claim: Claim | None = None,
    ) -> Fact:
        return Fact(self._number, kind, (id(thing), *key), text, answer, thing, claim)

    def _name(self, place: int) -> str:
        """What an answer calls an object: its name, the last word as in the caption."""
        item = self._graph.objects[place]
        *first, _ = item.name.split() or [""]
        return " ".join([*first, self._graph.tokens[item.head].lower()])

    # ---- how things look ----

    def _look(self, attribute: TextAttribute) -> Iterator[Fact]:
        name, thing = attribute.name.lower(), self._things[attribute.object]
        if thing is None:
            return
        color = wordlists.SAME_COLOR.get(name, name)
        if color in wordlists.COLORS and not thing.is_person:
            yield from self._colored(attribute.object, thing, color)
        elif thing.sure:
            if name in wordlists.MATERIALS and not thing.is_person:
                text = f"what {be(thing)} {the(thing)} made of?"
                yield self._fact("attribute", ("material",), text, wordlists.MATERIALS[name], thing)
            elif name in wordlists.PATTERNS and not thing.is_person:
                text = f"what pattern {be(thing)} on {the(thing)}?"
                yield self._fact("attribute", ("pattern",), text, wordlists.PATTERNS[name], thing)
            elif name in wordlists.OLD | wordlists.YOUNG and thing.noun in wordlists.AGED:
                text = f"{be(thing)} {the(thing)} old or young?"
                answer = "old" if name in wordlists.OLD else "young"
                yield self._fact("attribute", ("age",), text, answer, thing)
            if thing.is_animate and (action := self._happening(attribute)) is not None:
                yield self._doing(thing, action, "")

    def _colored(self, place: int, thing: Thing, color: str) -> Iterator[Fact]:
        noun = thing.noun
        is_part = noun in wordlists.WORN or noun in wordlists.PARTS
        if color == "blond" and noun not in wordlists.HAIR:
            return
        if not is_part:
            if thing.sure:
                claim = Claim("color", "", color)
                yield self._fact("color", ("",), f"what color {be(thing)} {the(thing)}?", color, thing, claim)
            return
        owner = self._things[self._owners[place]] if place in self._owners else None
        if owner is None or not owner.sure:
            return
        word = self._graph.tokens[self._graph.objects[place].head].lower()
        several = english.is_plural(word, noun)
        if owner.plural and not several and noun not in wordlists.HAIR:
            return
        text = f"what color {'are' if several else 'is'} {whose(owner)} {word}?"
        yield self._fact("color", (noun,), text, color, owner, Claim("color", word, color))

    # ---- what happens ----

    def _happening(self, attribute: TextAttribute) -> Action | None:
        """What an attribute says is done: "a dog running"."""
        token = attribute.tokens[0] if len(attribute.tokens) == 1 else -1
        if token <= self._graph.objects[attribute.object].head:
            return None
        form = self._graph.tokens[token].lower()
        verb = lemmatize_verb(form)
        if not form.endswith("ing") or verb == form or verb in wordlists.NO_ACTIONS | wordlists.STATES:
            return None
        return Action(verb, form, "") if participle(verb) == form else None

    def _action_of(self, relation: TextRelation) -> Action | None:
        """What a relation says is done; None of one that says where things are, or what was done to them."""
        verb, _, rest = relation.predicate.partition(" ")
        if verb in wordlists.PREPOSITIONS or verb in wordlists.NO_ACTIONS or not relation.tokens:
            return None
        token = relation.tokens[0]
        if token in self._heads or token in self._described:
            return None
        if not _is_active(self._graph.tokens[token].lower(), verb):
            return None
        after = rest.replace("in front of", "before").replace("on top of", "on").split()
        if (
            rest == "of"
            or not wordlists.PREPOSITIONS.issuperset(after)
            or wordlists.NO_ENDS & set(after[-1:])
        ):
            return None
        if verb in wordlists.STATES and rest not in ("", "up"):  # "people with signs hold down the street"
            return None
        if verb == "lay" and rest:  # "the dog lays on the grass"
            verb = "lie"
        return Action(verb, participle(verb), rest)

    def _doing_something(
        self, thing: Thing, action: Action, taken: Thing | None, name: str
    ) -> Iterator[Fact]:
        """ "riding bike", "running": with the object that the verb needs; "looking" at what is no answer."""
        if action.verb in wordlists.STATES:
            return
        is_whole = bool(action.rest) or taken is None or action.verb in wordlists.NO_OBJECT
        if not is_whole:
            yield self._doing(thing, action, name)
        elif action.verb not in wordlists.NEED_OBJECT or action.verb == "play":
            yield self._doing(thing, action, "")

    def _doing(self, thing: Thing, action: Action, taken: str) -> Fact:
        answer = f"{action.form} {taken}".strip()
        claim = None if taken or action.verb in wordlists.NEED_OBJECT else Claim("do", action.form, "")
        return self._fact("action", (), f"what {be(thing)} {the(thing)} doing?", answer, thing, claim)

    def _related(
        self, relation: TextRelation, first: Thing, second: Thing, action: Action | None
    ) -> Iterator[Fact]:
        predicate, name = relation.predicate, self._name(relation.object)
        if second.noun == "mouth" and predicate == "in":
            yield from self._in_mouth(relation.subject, first)
        if second.noun in wordlists.PARTS or first.noun in wordlists.PARTS | wordlists.WORN:
            return
        if action is not None and not action.rest and not self._is_taken(action.verb, second):
            return
        if first.sure:
            if predicate == "wear":
                yield from self._wearing(first, second, name)
            elif action is not None and second.noun not in wordlists.WORN:
                yield self._object(first, second, action, name)
            yield from self._placed(predicate, action, first, second, name)
        if second.noun in wordlists.WORN and action is None:
            return
        words = action.words if action is not None else predicate
        fits = second.sure and (
            action is not None or (predicate in wordlists.WHEREABOUTS and not second.is_person)
        )
        known = len(first.captions) > 1 or self._alone
        if fits and known and predicate != "wear" and first.noun not in wordlists.SCENES:
            who = "who" if first.is_person else "what"
            key = ("subject", words, who)
            text = f"{who} is {words} {the(second)}?"
            yield self._fact("subject", key, text, self._name(relation.subject), second)

    def _is_taken(self, verb: str, second: Thing) -> bool:
        """Whether a verb takes such an object without a preposition: not so of "a man jumping a bike"."""
        if verb == "play":
            return second.noun in wordlists.PLAYED or not self._nouns.is_counted(second.noun)
        return verb == "climb" or verb not in wordlists.NO_OBJECT

    def _wearing(self, first: Thing, second: Thing, name: str) -> Iterator[Fact]:
        if first.is_person and second.noun in wordlists.WORN and second.noun not in wordlists.ANY_CLOTHES:
            text = f"what {be(first)} {the(first)} wearing?"
            claim = Claim("wear", "wearing", name)
            yield self._fact("wearing", (), text, name, first, claim)

    def _object(self, first: Thing, second: Thing, action: Action, name: str) -> Fact:
        what = "who" if second.is_person else "what"
        text = f"{what} {be(first)} {the(first)} {action.words}?"
        claim = Claim("object", action.words, name)
        return self._fact("object", (action.words, what), text, name, first, claim)

    def _placed(
        self, predicate: str, action: Action | None, first: Thing, second: Thing, name: str
    ) -> Iterator[Fact]:
        where = action.rest if action is not None else predicate
        if where not in wordlists.WITHIN or second.noun not in wordlists.SCENES or second.is_person:
            return
        if first.noun not in wordlists.SCENES and first.noun not in wordlists.WORN:
            claim = Claim("place", self._nouns.preposition(second.noun), second.word)
            yield self._fact("place", (), f"where {be(first)} {the(first)}?", name, first, claim)

    def _in_mouth(self, place: int, held: Thing) -> Iterator[Fact]:
        """ "a dog with a ball in its mouth": of the one animal that there is."""
        animals = {id(it): it for it in self._things if it is not None and english.is_animal(it.noun)}
        if len(animals) == 1 and not held.is_person and held.noun not in wordlists.PARTS:
            (animal,) = animals.values()
            if animal.sure and not animal.plural and animal is not held:
                text = f"what is in {whose(animal)} mouth?"
                yield self._fact("object", ("in mouth",), text, self._name(place), animal)

    # ---- how many there are ----

    def _counts(self) -> Iterator[Fact]:
        graph, nouns = self._graph, self._nouns
        numbers = {it.object: english.number(it.name) for it in graph.attributes if english.number(it.name)}
        totals: dict[str, list[int]] = {}
        for place, thing in enumerate(self._things):
            if thing is not None:
                _, noun = english.noun_of(graph, graph.objects[place])
                count = wordlists.GROUPS.get(noun, numbers.get(place, 0 if thing.plural else 1))
                totals.setdefault("person" if thing.is_person else noun, []).append(count)
        for noun, counts in totals.items():
            plural = "people" if noun == "person" else nouns.plurals.get(noun, "")
            if plural and noun not in wordlists.PLURALS and (noun == "person" or nouns.is_counted(noun)):
                answer = str(sum(counts)) if all(counts) else ""
                yield Fact(self._number, "count", (noun,), f"how many {plural} are there?", answer)


def _is_active(word: str, verb: str) -> bool:
    """Whether a verb's form says what its subject does: "riding", "rides", "ride"."""
    if not verb.isascii() or not verb.isalpha():
        return False
    return word == verb or (word.endswith(("ing", "s")) and lemmatize_verb(word) == verb)
