"""From the network's choices to the text scene graph, in the caption's own words or in FACTUAL's.

The network chooses a predicate of its own only where no place in the text gives the right words, see
`tbkin_core.parsing.sentences`. In the caption's own words, what is denied is kept as such.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from tbkin_core.names.lexicon import plain_sides
from tbkin_core.parsing import negation
from tbkin_core.parsing.coordination import Coordination, Island
from tbkin_core.parsing.network import (
    JOINED,
    NO_OBJECT,
    NO_RELATION,
    OBJECT,
    PART,
    SAME,
    Array,
    Choices,
    GraphNetwork,
    ParsedBatch,
)
from tbkin_core.parsing.phrases import FLAT, VESSELS, Phrases
from tbkin_core.parsing.sentences import Reading, Sentences
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation
from tbkin_core.parsing.wording import FactualWording

NUMBERS = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "both": "2",
}  # fmt: skip
PRONOUN_TAGS = frozenset({"PRP", "PRP$", "WP"})
NO_PARTICIPLES = frozenset({"moped", "flatbed", "bobsled", "hundred", "sacred", "naked"})
ABSENCE = frozenset({"without", "no"})
COORDINATORS = frozenset({"and", "or", ",", "nor"})
COLORS = frozenset(
    {
        "white", "black", "blue", "green", "red", "brown", "yellow", "gray", "grey", "orange", "pink",
        "purple",
    }
)  # fmt: skip
WORN = frozenset({"in", "wear", "all in", "dress in"})
# What a caption may mean without saying it: "the man's hat", "a man in a hat".
UNSAID = frozenset({"have", "wear"})

LIKELIEST = 10  # outcomes considered for each pair of objects


def decode_graphs(
    network: GraphNetwork,
    batch: ParsedBatch,
    choices: Choices,
    tokens: Sequence[Sequence[str]],
    tags: Callable[[int], str],
    factual: FactualWording | None = None,
) -> Iterator[TextGraph]:
    """The N text scene graphs of a batch.

    Args:
        tokens: The tokens of each text.
        tags: Penn tag of a token of the batch.
        factual: Words relations, attributes and objects as FACTUAL's annotators do; without it the graphs
            keep to the caption's own words.
    """
    decoder = _Decoder(network, batch, choices, tags, factual)
    heads = np.flatnonzero(network.objects[choices.role])
    object_cuts = np.searchsorted(heads, batch.offsets).tolist()
    attributes = choices.attributes[np.lexsort((choices.attributes[:, 0], choices.attributes[:, 1]))]
    attribute_cuts = np.searchsorted(attributes[:, 1], batch.offsets).tolist()
    related = np.flatnonzero(choices.relations[:, 0] < 0.5)
    pairs = choices.pairs[related]
    pair_cuts = np.searchsorted(pairs[:, 0], batch.offsets).tolist()
    probabilities = choices.relations[related]
    kept = min(LIKELIEST, probabilities.shape[1])
    likeliest = np.argpartition(-probabilities, kept - 1, axis=1)[:, :kept]
    likeliest_probabilities = np.take_along_axis(probabilities, likeliest, axis=1).tolist()
    head_rows, attribute_rows = heads.tolist(), attributes.tolist()
    pair_rows, likeliest_rows = pairs.tolist(), likeliest.tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(batch.offsets.tolist())):
        draft = _Draft(decoder, begin, end)
        objects = head_rows[object_cuts[number] : object_cuts[number + 1]]
        for head in sorted({*objects, *decoder.missed_objects(begin, end)}):
            draft.add_object(head)
        draft.add_adjectives()
        for token, head in attribute_rows[attribute_cuts[number] : attribute_cuts[number + 1]]:
            draft.add_attribute(token, head)
        if factual is None:
            draft.add_counts()
            draft.add_absences()
        rows = slice(pair_cuts[number], pair_cuts[number + 1])
        draft.find_islands(number, pair_rows[rows])
        for (first, second), *outcomes in zip(
            pair_rows[rows], likeliest_rows[rows], likeliest_probabilities[rows], strict=True
        ):
            draft.add_relation(first, second, *outcomes)
        draft.return_relations()
        draft.add_clauses()
        draft.tie_collectives()
        draft.put_contents_into_vessels()
        if factual is None:
            draft.except_some()
            draft.turn_worn_color_into_attribute()
        yield draft.graph(tokens[number])


class _Decoder:
    """The network's choices for a batch, token by token; token numbers are positions in the batch."""

    def __init__(
        self,
        network: GraphNetwork,
        batch: ParsedBatch,
        choices: Choices,
        tags: Callable[[int], str],
        factual: FactualWording | None,
    ) -> None:
        self.network, self.tags, self.factual = network, tags, factual
        self.sentences = Sentences(network.vocabulary, batch)
        self.phrases = phrases = Phrases(self.sentences, network.vocabulary, batch)
        self.coordination = Coordination(network.vocabulary, batch, network.likeness)
        self.found_adjectives = batch.adjectives
        self.role = [network.roles[role] for role in choices.role.tolist()]
        self.form: list[int] = choices.form.tolist()
        # Verbs that tagger or network have for nouns.
        self.verbs = batch.verbs | {
            verb
            for verb in phrases.subject
            if self.sentences.is_verb[verb]
            and self.role[verb] == OBJECT
            and self.sentences.head[verb] == verb
        }
        self.exceptions = negation.exceptions(self.sentences)
        self.denials = [token for token, word in enumerate(self.sentences.text) if word in negation.DENIALS]
        self.late = [pair for pair, (verb, _) in phrases.clause.items() if verb in self.verbs]
        self.prefix: list[bool] = choices.prefix.tolist()
        self.compound: list[bool] = _compounds(network, batch).tolist()
        self.taken = [role != NO_OBJECT for role in self.role]
        for token in choices.attributes[:, 0].tolist():
            self.taken[token] = True

    def predicate(
        self, first: int, second: int, begin: int, end: int, likeliest: Iterable[tuple[str, float]]
    ) -> tuple[bool, str, tuple[int, ...]] | None:
        """Whether the first object is the subject, the predicate and its tokens; None for no relation.

        Args:
            first, second: Heads of the objects, first < second.
            begin, end: Where their text begins and ends.
            likeliest: (outcome, probability) of the likeliest outcomes.
        """
        factual = self.factual
        readings = self.sentences.readings(first, second, begin, end)
        mass: dict[tuple[str, str], float] = {}  # of (direction, predicate)
        tokens: dict[str, tuple[int, ...]] = {}
        for name, probability in likeliest:
            if name == NO_RELATION:
                key = ("", "")
            elif name[1] == "@":
                if (reading := readings.get(name[2:])) is None:
                    continue
                words = plain_sides(reading[0]) if factual is None else factual.predicate(reading[0])
                key = (name[0], words)
                tokens.setdefault(words, reading[1])
            else:
                key = (name[0], name[1:])
            mass[key] = mass.get(key, 0.0) + probability
        if not mass:
            return None
        best = max(mass, key=mass.__getitem__)
        if not best[1]:
            return None
        where = tokens.get(best[1])
        said = self.clause(first, second, readings)
        if where is None:  # "sleeps with his head on a pillow" says that he has one
            leaves_out = not (self.sentences.is_owned[second] and said is not None and len(said.tokens) > 1)
        else:
            leaves_out = said is not None and said.tokens[0] not in where and min(where) < second
        if said is not None and leaves_out:
            return True, *said  # the network leaves out verbs that it does not know
        if factual is None and where is None:
            if self.coordination.are_coordinated(first, second) and not self.sentences.is_owned[second]:
                return None  # "a red bus and a blue bus"
            if best[1] not in UNSAID:
                best, where = _own_words(best, mass, tokens, readings)
            if where is None and best[1] in UNSAID and self._says_without(first, second, readings):
                return best[0] == ">", *readings["preposition"]
        predicate = best[1] if factual is None else factual.sides(best[1])
        return best[0] == ">", predicate, where or self._tokens_of(best[1], first, second, readings)

    def missed_objects(self, begin: int, end: int) -> list[int]:
        """Nouns that the network, which has their verb for a noun, may not have for objects."""
        found = [
            noun
            for pair in self.late
            for noun in pair
            if begin <= noun < end and self.sentences.is_noun[noun]
        ]
        return found + [who for who, _ in self.exceptions if begin <= who < end]

    def clause(self, first: int, second: int, readings: Mapping[str, Reading]) -> Reading | None:
        """What the tree says of a subject and an object of one verb."""
        if (first, second) not in self.phrases.clause:
            return None
        verb, is_direct = self.phrases.clause[first, second]
        name = "verb" if is_direct else "verb preposition"
        if is_direct and verb + 1 < second and self.sentences.is_preposition[verb + 1]:
            name = "verb particle"  # "climbs up a slope"
        reading = readings.get(name)
        if reading is None or reading.tokens[0] != verb:
            return None
        words, where = reading
        return Reading(plain_sides(words) if self.factual is None else self.factual.predicate(words), where)

    def _says_without(self, first: int, second: int, readings: Mapping[str, Reading]) -> bool:
        """Whether what is left unsaid is denied: "a man without a hat" wears none."""
        if "preposition" not in readings:
            return False
        words, where = readings["preposition"]
        text, is_noun = self.sentences.text, self.sentences.is_noun
        # "without a hat or a shirt" denies both, "without hat black shirt" the first alone.
        other = any(
            is_noun[token] and not is_noun[token + 1] and text[token + 1] not in COORDINATORS
            for token in range(where[-1] + 1, second)
        )
        verb = self.sentences.verb_before[second]
        return "without" in words.split() and first < where[0] and verb < first and not other

    def _tokens_of(
        self, predicate: str, first: int, second: int, readings: Mapping[str, Reading]
    ) -> tuple[int, ...]:
        """Tokens that speak of a predicate which no reading gives; none where the objects touch."""
        wanted = set(predicate.split())
        text, verb = self.sentences.text, self.sentences.verb
        between = range(first + 1, second)
        if found := tuple(token for token in between if text[token] in wanted or verb[token] in wanted):
            return found
        for name in ("preposition", "verb"):
            if name in readings and first < readings[name][1][0] < second:
                return readings[name][1]
        return (first + 1,) if second - first > 1 else ()


class _Draft:
    """The graph of one text while it is put together."""

    def __init__(self, decoder: _Decoder, begin: int, end: int) -> None:
        self._decoder, self._begin, self._end = decoder, begin, end
        self.objects: list[TextObject] = []
        self.index: dict[int, int] = {}  # head of an object (a token of the batch) -> its number
        # (object, name) and (subject, predicate, object) -> tokens of the text
        self.attributes: dict[tuple[int, str], tuple[int, ...]] = {}
        self.relations: dict[tuple[int, str, int], tuple[int, ...]] = {}
        at = bisect_left(decoder.denials, begin)
        self._denies = decoder.factual is None and at < len(decoder.denials) and decoder.denials[at] < end
        self._islands: list[Island] = []
        # Relations from outside into what an island says: the island's own, where it lacks them.
        self._displaced: list[tuple[int, int, str, tuple[int, ...]]] = []

    def add_object(self, head: int) -> None:
        """The object at a head, under the name that its role gives it."""
        decoder, begin = self._decoder, self._begin
        if head in decoder.verbs:
            return
        if decoder.factual is None and head in decoder.phrases.adjective:
            return
        if decoder.factual is not None and decoder.sentences.text[head] in negation.NOBODY:
            return
        role, noun = decoder.role, decoder.sentences.noun
        start = last = head
        if role[head] == SAME:
            if (before := self._antecedent()) is None:
                return
            name = self.objects[self.index[before]].name
        else:
            name = self._own_name(head)
            if not any(map(str.isalnum, name)):
                return  # a mark such as "<"
            while start > begin and (part := role[start - 1]) in (PART, JOINED):
                start -= 1
                name = noun[start] + (" " if part == PART else "") + name
        if role[head] == OBJECT and decoder.compound[head] and not decoder.taken[head + 1]:
            # The tree has one name where the network sees no second object: "bed spread".
            last = head + 1
            name = f"{name} {noun[last]}"
        self.index[head] = len(self.objects)
        self.objects.append(TextObject(last - begin, (start - begin, last + 1 - begin), name))

    def add_adjectives(self) -> None:
        """Adjectives that the network would name objects by: "snow" of "a snowy road"."""
        decoder, begin = self._decoder, self._begin
        if decoder.factual is None:
            for token, noun in decoder.phrases.adjective.items():
                if not begin <= token < self._end:
                    continue
                if token in decoder.found_adjectives or decoder.role[token] != NO_OBJECT:
                    spans = {head: self.objects[number].span for head, number in self.index.items()}
                    for head in (one for one, (start, end) in spans.items() if start <= noun - begin < end):
                        self.add_attribute(token, head)

    def _own_name(self, head: int) -> str:
        decoder, sentences = self._decoder, self._decoder.sentences
        role = decoder.role[head]
        if role != OBJECT and (decoder.factual is not None or decoder.tags(head) in PRONOUN_TAGS):
            return role[1:]
        if sentences.text[head] in negation.NOBODY:
            return "person"
        name = sentences.noun[head]
        phrases = decoder.phrases
        if decoder.factual is None and name == "glasses" and head in {**phrases.numeral, **phrases.contents}:
            return "glass"
        if name == sentences.text[head] and name.endswith("ed") and name not in NO_PARTICIPLES:
            stem = sentences.verb[head]  # "a curly haired woman" has hair
            return stem if len(stem) > 2 and decoder.network.knows(stem) else name
        return name

    def _antecedent(self) -> int | None:
        """Head of what "each other" or "another" stands for: the last of several before, else the last."""
        plurals = [head for head in self.index if self._decoder.tags(head) in {"NNS", "NNPS"}]
        return next(reversed(plurals or list(self.index)), None)

    def add_attribute(self, token: int, head: int) -> None:
        """The attribute that a token is of the object at `head`."""
        if head not in self.index:
            return
        decoder, begin = self._decoder, self._begin
        phrases, text, own_words = decoder.phrases, decoder.sentences.text, decoder.factual is None
        if phrases.counts_another(token, head, self.index) or phrases.is_of_another(token, head, self.index):
            return
        written = decoder.network.forms[decoder.form[token]]
        start = token
        if written and not own_words:
            name = written
        elif token == head:
            return  # what is meant but not said
        else:
            name = NUMBERS.get(text[token], text[token])
            while start > begin and (decoder.prefix[start - 1] or text[start - 1] in ABSENCE):
                start -= 1
                name = f"{text[start]} {name}"
        where = tuple(range(start - begin, token + 1 - begin))
        denial = negation.denial_before(decoder.sentences, start, begin) if self._denies else None
        if denial is not None and text[denial] != "without":
            name, where = f"not {name}", (denial - begin, *where)
        self.attributes.setdefault((self.index[head], name), where)

    def add_counts(self) -> None:
        """Numbers of objects that the tree has and the network has not; "one" goes without saying."""
        decoder = self._decoder
        numeral, text = decoder.phrases.numeral, decoder.sentences.text
        for head, number in self.index.items():
            token = numeral.get(head, head)
            name = NUMBERS.get(text[token], text[token])
            if token != head and name.isdigit() and name != "1" and decoder.tags(head) != "NN":
                self.attributes.setdefault((number, name), (token - self._begin,))

    def add_absences(self) -> None:
        """The attribute "no" of objects that the text says are not there; "not every", "not all"."""
        if not self._denies:
            return
        decoder, begin = self._decoder, self._begin
        sentences, partner_of = decoder.sentences, decoder.coordination.first_partner
        for head, number in self.index.items():
            start = begin + self.objects[number].span[0]
            absence = negation.absence_of(sentences, start, begin)
            if sentences.text[head] in negation.NOBODY:
                absence = head
            elif absence is None and (partner := partner_of(head)) != head:
                absence = negation.shared_absence(sentences, start, partner, begin)
            if absence is not None:
                self.attributes.setdefault((number, "no"), (absence - begin,))
            if (denied := negation.denied_quantifier(sentences, start, begin)) is not None:
                self.attributes[number, f"not {sentences.text[denied + 1]}"] = (
                    denied - begin,
                    denied + 1 - begin,
                )

    def add_relation(
        self, first: int, second: int, outcomes: Sequence[int], probabilities: Sequence[float]
    ) -> None:
        """The relation of the objects at two heads, first < second, if any; its likeliest outcomes given."""
        if first not in self.index or second not in self.index:
            return
        decoder, begin = self._decoder, self._begin
        island = next((one for one in self._islands if one.parts(first, second, self.index)), None)
        if island is not None and not (island.head in self.index and first < island.head < second):
            return
        names = (decoder.network.outcomes[outcome] for outcome in outcomes)
        likeliest = zip(names, probabilities, strict=True)
        found = decoder.predicate(first, second, begin, self._end, likeliest)
        if found is None:
            return
        forward, predicate, where = found
        subject, other = (first, second) if forward else (second, first)
        if island is not None:
            if forward and where and min(where) > island.head:
                self._displaced.append((island.head, second, predicate, where))
            return
        if self._denies and where:
            if negation.relates_something_absent(decoder.sentences, where, self.index, begin):
                return
            starts = [begin + self.objects[self.index[head]].span[0] for head in (first, second)]
            denial = negation.denial_of_relation(decoder.sentences, where, starts, begin)
            if denial is not None:
                predicate, where = f"not {predicate}", (denial, *where)
        self._relate(subject, predicate, where, other)
        if predicate.endswith(" than") or predicate.startswith(
            "as "
        ):  # what is compared is said with the comparison
            number, tokens = self.index[subject], {token - begin for token in where}
            for item in [
                item for item, said in self.attributes.items() if item[0] == number and tokens >= {*said}
            ]:
                del self.attributes[item]

    def add_clauses(self) -> None:
        """The relations of verbs that tagger or network have for nouns, where the network lacks them."""
        decoder, begin = self._decoder, self._begin
        for first, second in decoder.late:
            if first in self.index and second in self.index and not self._are_related(first, second):
                found = decoder.clause(
                    first, second, decoder.sentences.readings(first, second, begin, self._end)
                )
                if found is not None:
                    self._relate(first, *found, second)

    def except_some(self) -> None:
        """What "everyone but the goalie" does, the goalie does not."""
        begin = self._begin
        for who, but in self._decoder.exceptions:
            if not begin <= who < self._end:
                continue
            some = next((number for head, number in sorted(self.index.items()) if head > but), None)
            for (subject, predicate, other), where in list(self.relations.items()):
                if subject == some and who in self.index:
                    del self.relations[subject, predicate, other]
                    self.relations[self.index[who], predicate, other] = where
                    self.relations[subject, f"not {predicate}", other] = (but - begin, *where)

    def tie_collectives(self) -> None:
        """The relations that the network misses where a collective stands between them."""
        decoder, begin = self._decoder, self._begin
        for first, second in decoder.phrases.tied_collectives(begin, self._end, self.index):
            readings = decoder.sentences.readings(first, second, begin, self._end) if first < second else {}
            if "preposition" in readings and not self._are_related(first, second):
                words, where = readings["preposition"]
                words = plain_sides(words) if decoder.factual is None else decoder.factual.predicate(words)
                self._relate(first, words, where, second)

    def put_contents_into_vessels(self) -> None:
        """What is said of "a glass of wine" is said of the glass, and the wine is of the glass."""
        decoder, begin = self._decoder, self._begin
        sentences, contents = decoder.sentences, decoder.phrases.contents
        for vessel in [head for head in self.index if head in contents and sentences.noun[head] in VESSELS]:
            of, content = contents[vessel]
            if content not in self.index:
                continue
            outer, inner = self.index[vessel], self.index[content]
            inside = {("in", outer), ("inside", outer), *[("on", outer)] * (sentences.noun[vessel] in FLAT)}
            for key, where in list(self.relations.items()):
                subject, predicate, other = key
                if {subject, other} == {outer, inner}:
                    if decoder.factual is None and (predicate, other) not in inside:
                        del self.relations[key]
                elif (subject, predicate, outer) in self.relations and other == inner:
                    del self.relations[key]
                elif subject == inner and any(
                    begin + token > content and sentences.head[begin + token] == vessel for token in where[:1]
                ):
                    self.relations.setdefault((outer, predicate, other), self.relations.pop(key))
            if decoder.factual is None and not any((inner, *said) in self.relations for said in inside):
                self.relations.setdefault((outer, "of", inner), (of - begin,))

    def find_islands(self, number: int, related: Iterable[Sequence[int]]) -> None:
        """Note what coordination keeps apart; `related` are the pairs of heads that the network relates."""
        self._islands = self._decoder.coordination.islands(number, self._begin, self._end, related)

    def return_relations(self) -> None:
        """Give a noun of an island the relation that the network gave to a noun outside of it."""
        for subject, other, predicate, where in self._displaced:
            if not self._are_related(subject, other):
                self._relate(subject, predicate, where, other)

    def _are_related(self, first: int, second: int) -> bool:
        pair = {self.index[first], self.index[second]}
        return any({one, other} == pair for one, _, other in self.relations)

    def _relate(self, subject: int, predicate: str, where: Iterable[int], other: int) -> None:
        """Add a relation of the objects at two heads, with its tokens in the batch."""
        key = self.index[subject], predicate, self.index[other]
        self.relations.setdefault(key, tuple(token - self._begin for token in sorted(set(where))))

    def turn_worn_color_into_attribute(self) -> None:
        """A colour that somebody is in is an attribute and no object ("a woman in red"); one per caption."""
        for subject, predicate, other in self.relations:
            name = self.objects[other].name
            if name not in COLORS or predicate not in WORN:
                continue
            key = (subject, predicate, other)
            elsewhere = any(
                other in (one, two) for one, said, two in self.relations if (one, said, two) != key
            )
            if elsewhere or any(item == other for item, _ in self.attributes):
                continue
            self.attributes.setdefault((subject, name), (self.objects[other].head,))
            del self.relations[key]
            self._drop_object(other)
            return

    def _drop_object(self, dropped: int) -> None:
        """Remove an object that nothing speaks of; the ones after it move up."""

        def moved(number: int) -> int:
            return number - (number > dropped)

        del self.objects[dropped]
        self.attributes = {(moved(item), name): where for (item, name), where in self.attributes.items()}
        self.relations = {
            (moved(one), name, moved(other)): where for (one, name, other), where in self.relations.items()
        }

    def graph(self, tokens: Sequence[str]) -> TextGraph:
        """The finished graph; attributes and relations in order."""
        attributes = (TextAttribute(*key, where) for key, where in sorted(self.attributes.items()))
        relations = (TextRelation(*key, where) for key, where in sorted(self.relations.items()))
        return TextGraph(tuple(tokens), tuple(self.objects), tuple(attributes), tuple(relations))


def _own_words(
    best: tuple[str, str],
    mass: Mapping[tuple[str, str], float],
    tokens: Mapping[str, tuple[int, ...]],
    readings: Mapping[str, Reading],
) -> tuple[tuple[str, str], tuple[int, ...] | None]:
    """The likeliest (direction, predicate) that the caption itself has, and its tokens if a reading gives it.

    Args:
        best: The network's choice, which no reading gives.
        mass: (direction, predicate) -> probability.
        tokens: Predicates that readings give -> their tokens.
        readings: The pair's.
    """
    said = {word for predicate, _ in readings.values() for word in predicate.split()}
    if set(best[1].split()) <= said:
        return best, None
    own = [key for key in mass if key[1] in tokens or key[1] in UNSAID]
    if own:  # the same direction first
        likeliest = max(own, key=lambda key: (key[0] == best[0], mass[key]))
        return likeliest, tokens.get(likeliest[1])
    for name in ("preposition", "verb preposition", "verb"):
        if name in readings:
            return (best[0], plain_sides(readings[name].predicate)), readings[name].tokens
    return (best[0], "have"), None


def _compounds(network: GraphNetwork, batch: ParsedBatch) -> Array:
    """(T,) bool, tokens that the tree makes the first part of a compound with the noun right after them.

    Not where that noun is part of a longer compound, nor where it heads the text without a participle
    after it: there it is a verb more often than not ("a girl smile", "a bear rubs against a tree").
    """
    vocabulary = network.vocabulary
    count = len(batch.words)
    following = np.arange(count) + 1
    compound = (batch.labels == vocabulary.label("compound")) & (batch.labels > 0)
    noun = vocabulary.tagged({"NN", "NNS"})[batch.tags]
    participle = np.append(vocabulary.tagged({"VBG", "VBN"})[batch.tags], False)[following[:count]]
    root = batch.heads == np.arange(count)
    second = np.append(noun & ~compound & (~root | participle), False)
    return compound & (batch.heads == following) & second[following]
