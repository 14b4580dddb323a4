"""From what the network chose to the text scene graph, in the caption's own words or in FACTUAL's.

A relation's words mostly stand in the caption, in one of a few places relative to the two objects ("a man
SITTING ON a bench", "the bench the man IS SITTING ON"). `readings` finds those places; the network chooses
among them, and a predicate of its own only where no place gives the right words.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from tbkin_core.names.lexicon import parser_file, plain_sides
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
    Vocabulary,
)
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation

WORDINGS = ("caption", "factual")

NUMBERS = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "both": "2",
}  # fmt: skip
PREPOSITION_TAGS = frozenset({"IN", "TO", "RP"})
PARTICLE_TAGS = frozenset({"RP", "RB", "IN"})
VERB_TAGS = frozenset({"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})
# Left at the end ("the bench the man is sitting on") they are often tagged as adverbs.
STRANDED = frozenset(
    {"on", "in", "at", "by", "with", "under", "over", "behind", "above", "near", "beside", "from", "through"}
)
NO_PREPOSITIONS = frozenset({"that", "while", "if", "because", "whether", "so", "though", "although"})
PRONOUN_TAGS = frozenset({"PRP", "PRP$", "WP"})
BE_FORMS = frozenset({"is", "are", "was", "were", "be", "been", "being", "am", "'s", "'re", "’s", "’re"})
PLACES = frozenset(
    {
        "front", "top", "side", "sides", "left", "right", "middle", "center", "centre", "edge", "edges",
        "corner", "bottom", "end", "rear", "back", "face", "rim", "tip", "base", "next", "close", "inside",
        "outside", "part", "lap",
    }
)  # fmt: skip
JOINS = frozenset({"of", "to", "by", "side"})
ARTICLES = frozenset({"the", "a", "an", "his", "her", "its", "their", "very"})
# "nt" is what is left of "isnt".
NEGATIONS = frozenset({"not", "n't", "n’t", "nt", "never", "neither", "nor", "without", "hardly"})
# "not only a bag but also", "not far from", "not all of them": what follows is not denied.
NO_NEGATION_BEFORE = frozenset({"only", "just", "merely", "necessarily", "far", "all", "every", "everybody"})
DETERMINERS = frozenset({"the", "a", "an", "any", "his", "her", "its", "their", "my", "your", "this", "that"})
NO_PARTICIPLES = frozenset({"moped", "flatbed", "bobsled", "hundred", "sacred", "naked"})
ABSENCE = frozenset({"without", "no"})
JOINERS = frozenset({"and", "or", ",", "nor"})
COLORS = frozenset(
    {
        "white", "black", "blue", "green", "red", "brown", "yellow", "gray", "grey", "orange", "pink",
        "purple",
    }
)  # fmt: skip
# What a caption may mean without saying it: "the man's hat", "a man in a hat".
UNSAID = frozenset({"have", "wear"})

READINGS = (
    "preposition", "verb", "verb preposition", "verb particle", "verb particle preposition",
    "later verb", "later verb preposition", "last preposition",
)  # fmt: skip


class Sentences:
    """The tokens of a batch as the readings see them; token numbers are positions in the batch."""

    def __init__(self, vocabulary: Vocabulary, batch: ParsedBatch) -> None:
        rows = batch.words.tolist()
        self.text = [vocabulary.text[row] for row in rows]
        self.noun = [vocabulary.noun[row] for row in rows]
        self.verb = [vocabulary.verb[row] for row in rows]
        never = np.array([word in NO_PREPOSITIONS for word in self.text], bool)
        stranded = np.array([word in STRANDED for word in self.text], bool)
        adverb = vocabulary.tagged({"RB"})[batch.tags]
        self.adverb = adverb.tolist()
        self.is_noun = vocabulary.tagged({"NN", "NNS"})[batch.tags].tolist()
        self.head = batch.heads.tolist()
        preposition = vocabulary.tagged(PREPOSITION_TAGS)[batch.tags] & ~never | stranded & adverb
        self.adjective = vocabulary.tagged({"JJ", "JJR", "JJS"})[batch.tags].tolist()
        be = np.array([word in BE_FORMS for word in self.text], bool)
        verb = vocabulary.tagged(VERB_TAGS)[batch.tags] & ~be
        self.is_verb = verb.tolist()
        self._preposition_here = preposition.tolist()
        self._particle_here = vocabulary.tagged(PARTICLE_TAGS)[batch.tags].tolist()
        self.preposition_before = _last_before(preposition, batch.offsets)
        self.verb_before = _last_before(verb, batch.offsets)
        self.verb_after = _first_after(verb, batch.offsets)
        self.last_preposition = _last_before(preposition, batch.offsets, inclusive_end=True)

    def _preposition(self, last: int, begin: int) -> list[int]:
        """Tokens of the preposition that ends at `last`, without articles: "on (the) side of"."""
        text, preposition = self.text, self._preposition_here
        tokens = [last]
        for token in range(last - 1, begin - 1, -1):
            # A place belongs to it ("on top of") unless the words end there ("on the right with").
            place = text[token] in PLACES and text[token + 1] in JOINS
            if place or preposition[token]:
                tokens.append(token)
            elif not (
                text[token] in ARTICLES
                and token > begin
                and preposition[token - 1]
                and text[token + 1] in PLACES
                and token + 1 in tokens
            ):
                break
        return tokens[::-1]

    def readings(
        self, first: int, second: int, begin: int, end: int
    ) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Predicates that stand in the text for a pair of objects.

        Args:
            first, second: Heads of the objects, first < second.
            begin, end: Where their text begins and ends.

        Returns:
            Of the `READINGS` there are: lemmatised predicate and its tokens.
        """
        found: dict[str, tuple[str, tuple[int, ...]]] = {}

        def add(name: str, verb: int | None, others: Sequence[int]) -> None:
            words = [self.text[token] for token in others]
            tokens = tuple(others) if verb is None else (verb, *others)
            found[name] = (" ".join(words if verb is None else [self.verb[verb], *words]), tokens)

        place = self.preposition_before[second]
        before: list[int] = []
        if place >= 0 and place > first - 6:
            before = self._preposition(place, begin)
            add("preposition", None, before)
        verb = self.verb_before[second]
        if verb >= 0:
            add("verb", verb, ())
            if before and verb not in before:
                add("verb preposition", verb, before)
            particle = verb + 1
            if particle < end and self._particle_here[particle]:
                add("verb particle", verb, (particle,))
                if before and particle not in before:
                    add("verb particle preposition", verb, (particle, *before))
        verb = self.verb_after[second]
        if verb >= 0:
            add("later verb", verb, ())
            if verb + 1 < end and self._preposition_here[verb + 1]:
                add("later verb preposition", verb, (verb + 1,))
        last = self.last_preposition[second]
        if last > second:
            add("last preposition", None, (last,))
        return found


def _last_before(marked: Array, offsets: Array, inclusive_end: bool = False) -> list[int]:
    """Of every token, the last marked token before it in its text (or of its text), -1 without one."""
    places = np.where(marked, np.arange(len(marked)), -1)
    latest = np.maximum.accumulate(places) if len(places) else places
    lengths = np.diff(offsets)
    begin = np.repeat(offsets[:-1], lengths)
    if inclusive_end:
        found = latest[np.repeat(offsets[1:], lengths) - 1]
    else:
        found = np.concatenate([[-1], latest[:-1]])[: len(marked)]
    result: list[int] = np.where(found >= begin, found, -1).tolist()
    return result


def _first_after(marked: Array, offsets: Array) -> list[int]:
    """Of every token, the first marked token after it in its text, -1 without one."""
    count = len(marked)
    places = np.where(marked, np.arange(count), count)
    earliest = np.minimum.accumulate(places[::-1])[::-1] if count else places
    found = np.concatenate([earliest[1:], [count]])[:count]
    end = np.repeat(offsets[1:], np.diff(offsets))
    result: list[int] = np.where(found < end, found, -1).tolist()
    return result


# ---- wording ------------------------------------------------------------------------------------


_factual_words: dict[str, str] | None = None


def use_factual_words(table: dict[str, str]) -> None:
    """Take this table of words that FACTUAL's annotators replace, instead of the shipped one."""
    global _factual_words
    _factual_words = table
    factual.cache_clear()


def factual_words() -> dict[str, str]:
    """Predicates and prepositions that FACTUAL's annotators replace, with what they write for them."""
    global _factual_words
    if _factual_words is None:
        _factual_words = json.loads(parser_file("wording.json").read_text(encoding="utf-8"))
    return _factual_words


@lru_cache(65_536)
def factual(predicate: str) -> str:
    """A predicate as FACTUAL's annotators word it, sides plain: "sit below" is "sit under"."""
    predicate = plain_sides(predicate)
    table = factual_words()
    if predicate in table:
        return table[predicate]
    verb, _, rest = predicate.partition(" ")
    return f"{verb} {table[rest]}" if rest in table else predicate


def factual_sides(predicate: str) -> str:
    """Plain sides as FACTUAL spells them."""
    if predicate.endswith("left of"):
        return predicate.removesuffix("left of") + "at the left of"
    if predicate.endswith("right of"):
        return predicate.removesuffix("right of") + "on the right side of"
    return predicate


# ---- the graphs ---------------------------------------------------------------------------------

_LIKELY = 10  # outcomes looked at for a pair


def read_graphs(
    network: GraphNetwork,
    batch: ParsedBatch,
    choices: Choices,
    tokens: Sequence[Sequence[str]],
    tags: Callable[[int], str],
    wording: str = "caption",
) -> Iterator[TextGraph]:
    """The N text scene graphs of a batch.

    Args:
        network: What made the choices.
        batch: N parsed texts.
        choices: The network's.
        tokens: The tokens of each text.
        tags: Penn tag of a token of the batch.
        wording: "caption" keeps to the caption's own words; "factual" words relations, attributes and objects
            as FACTUAL's annotators do.
    """
    own_words = wording == "caption"
    sentences = Sentences(network.vocabulary, batch)
    offsets = batch.offsets.tolist()
    roles = network.roles
    role = choices.role.tolist()
    heads = np.flatnonzero(network.objects[choices.role])
    object_cuts = np.searchsorted(heads, batch.offsets).tolist()
    attribute_order = np.lexsort((choices.attributes[:, 0], choices.attributes[:, 1]))
    attributes = choices.attributes[attribute_order]
    attribute_cuts = np.searchsorted(attributes[:, 1], batch.offsets).tolist()
    related = np.flatnonzero(choices.relations[:, 0] < 0.5)
    pairs = choices.pairs[related]
    pair_cuts = np.searchsorted(pairs[:, 0], batch.offsets).tolist()
    probabilities = choices.relations[related]
    kept = min(_LIKELY, probabilities.shape[1])
    likely = np.argpartition(-probabilities, kept - 1, axis=1)[:, :kept]
    mass = np.take_along_axis(probabilities, likely, axis=1).tolist()
    likely_rows, pair_rows, attribute_rows = likely.tolist(), pairs.tolist(), attributes.tolist()
    head_rows, form, prefix = heads.tolist(), choices.form.tolist(), choices.prefix.tolist()
    text, noun = sentences.text, sentences.noun
    compound = _compounds(network, batch).tolist()
    taken = (choices.role != network.roles.index(NO_OBJECT)).tolist()
    for token in attributes[:, 0].tolist():
        taken[token] = True
    for number, (begin, end) in enumerate(itertools.pairwise(offsets)):
        objects: list[TextObject] = []
        place: dict[int, int] = {}
        for head in head_rows[object_cuts[number] : object_cuts[number + 1]]:
            kind = roles[role[head]]
            start = head
            if kind == SAME:
                before = _antecedent(place, tags)
                if before is None:
                    continue
                name = objects[place[before]].name
            else:
                name = noun[head]
                if name == text[head] and name.endswith("ed") and name not in NO_PARTICIPLES:
                    stem = sentences.verb[head]  # "a curly haired woman" has hair
                    name = stem if len(stem) > 2 and network.knows(stem) else name
                if kind != OBJECT and (not own_words or tags(head) in PRONOUN_TAGS):
                    name = kind[1:]
                if not any(map(str.isalnum, name)):
                    continue  # a mark such as "<"
                while start > begin and (part := roles[role[start - 1]]) in (PART, JOINED):
                    start -= 1
                    name = noun[start] + (" " if part == PART else "") + name
            last = head
            if kind == OBJECT and compound[head] and not taken[head + 1]:
                # The tree has one name where the network sees no second object: "bed spread".
                last = head + 1
                name = f"{name} {noun[last]}"
            place[head] = len(objects)
            objects.append(TextObject(last - begin, (start - begin, last + 1 - begin), name))
        said: dict[tuple[int, str], tuple[int, ...]] = {}
        for token, head in attribute_rows[attribute_cuts[number] : attribute_cuts[number + 1]]:
            if head not in place:
                continue
            written = network.forms[form[token]]
            start = token
            if written and not own_words:
                name = written
            elif token == head:
                continue  # what is meant but not said
            else:
                name = NUMBERS.get(text[token], text[token])
                while start > begin and (prefix[start - 1] or text[start - 1] in ABSENCE):
                    start -= 1
                    name = f"{text[start]} {name}"
            where = tuple(range(start - begin, token + 1 - begin))
            denial = _denial_before(sentences, start, begin) if own_words else None
            if denial is not None and text[denial] != "without":
                name, where = f"not {name}", (denial - begin, *where)
            said.setdefault((place[head], name), where)
        if own_words:
            for item in place.values():
                absent = _negated(sentences, begin + objects[item].span[0], begin)
                if absent is not None and (item, "no") not in said:
                    said[item, "no"] = (absent - begin,)
        relations: dict[tuple[int, str, int], tuple[int, ...]] = {}
        for row in range(pair_cuts[number], pair_cuts[number + 1]):
            first, second = pair_rows[row]
            if first not in place or second not in place:
                continue
            found = _predicate(
                network, sentences, first, second, begin, end, likely_rows[row], mass[row], own_words
            )
            if found is None:
                continue
            forward, predicate, where = found
            subject, other = (first, second) if forward else (second, first)
            if own_words and where:
                if _of_something_absent(sentences, where, place, begin):
                    continue
                starts = [begin + objects[place[head]].span[0] for head in (first, second)]
                denial = _denial(sentences, where, starts, begin)
                if denial is not None:
                    predicate, where = f"not {predicate}", (denial, *where)
            relations.setdefault(
                (place[subject], predicate, place[other]),
                tuple(token - begin for token in sorted(set(where))),
            )
        if own_words:
            _color_dressed(objects, said, relations)
        yield TextGraph(
            tuple(tokens[number]),
            tuple(objects),
            tuple(TextAttribute(item, name, where) for (item, name), where in sorted(said.items())),
            tuple(
                TextRelation(subject, predicate, other, where)
                for (subject, predicate, other), where in sorted(relations.items())
            ),
        )


def _compounds(network: GraphNetwork, batch: ParsedBatch) -> Array:
    """(T,) bool, tokens that the tree makes the first part of a compound with the noun right after them.

    Not where that noun is part of a longer compound, nor where it stands over the text without a participle
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
    found: Array = compound & (batch.heads == following) & second[following]
    return found


def _color_dressed(
    objects: list[TextObject],
    said: dict[tuple[int, str], tuple[int, ...]],
    relations: dict[tuple[int, str, int], tuple[int, ...]],
) -> None:
    """A colour that somebody is in is an attribute and no object ("a woman in red"); one a caption."""
    for (subject, predicate, other), _ in list(relations.items()):
        if objects[other].name not in COLORS or predicate not in {"in", "wear", "all in", "dress in"}:
            continue
        if any(other in (key[0], key[2]) for key in relations if key != (subject, predicate, other)):
            continue
        if any(item == other for item, _ in said):
            continue
        said.setdefault((subject, objects[other].name), (objects[other].head,))
        del relations[subject, predicate, other]
        _drop_object(objects, said, relations, other)
        return


def _drop_object(
    objects: list[TextObject],
    said: dict[tuple[int, str], tuple[int, ...]],
    relations: dict[tuple[int, str, int], tuple[int, ...]],
    gone: int,
) -> None:
    """Remove an object that nothing speaks of; the ones after it move up."""

    def moved(item: int) -> int:
        return item - (item > gone)

    del objects[gone]
    attributes = {(moved(item), name): where for (item, name), where in said.items()}
    said.clear()
    said.update(attributes)
    related = {(moved(one), name, moved(other)): where for (one, name, other), where in relations.items()}
    relations.clear()
    relations.update(related)


def _negated(sentences: Sentences, start: int, begin: int) -> int | None:
    """The "no" or "instead of" before the noun phrase at `start`, which says that it is not there."""
    text = sentences.text
    for token in range(start - 1, max(begin, start - 3) - 1, -1):
        if text[token] == "no":
            return token
        if text[token] == "of" and token > begin and text[token - 1] == "instead":
            return token - 1
        if not (sentences.adjective[token] or text[token] in DETERMINERS):
            return None
    return None


def _antecedent(place: dict[int, int], tags: Callable[[int], str]) -> int | None:
    """The object that "each other" or "another" stands for: the last of several before, else the last."""
    plurals = [head for head in place if tags(head) in {"NNS", "NNPS"}]
    return next(reversed(plurals or list(place)), None)


def _predicate(
    network: GraphNetwork,
    sentences: Sentences,
    first: int,
    second: int,
    begin: int,
    end: int,
    likely: Sequence[int],
    probabilities: Sequence[float],
    own_words: bool,
) -> tuple[bool, str, tuple[int, ...]] | None:
    """Whether the first object is the subject, the predicate and its tokens; None for no relation."""
    readings = sentences.readings(first, second, begin, end)
    mass: dict[tuple[str, str], float] = {}
    tokens: dict[str, tuple[int, ...]] = {}
    for outcome, probability in zip(likely, probabilities, strict=True):
        name = network.outcomes[outcome]
        if name == NO_RELATION:
            key = ("", "")
        elif name[1] == "@":
            reading = readings.get(name[2:])
            if reading is None:
                continue
            key = (name[0], plain_sides(reading[0]) if own_words else factual(reading[0]))
            tokens.setdefault(key[1], reading[1])
        else:
            key = (name[0], name[1:])
        mass[key] = mass.get(key, 0.0) + probability
    if not mass:
        return None
    best = max(mass, key=mass.__getitem__)
    if not best[1]:
        return None
    if own_words and best[1] not in tokens and best[1] not in UNSAID:
        best = _own_words(best, mass, tokens, readings)
    forward, predicate = best[0] == ">", best[1]
    if own_words and predicate in UNSAID and predicate not in tokens and "preposition" in readings:
        # What "a man without a hat" leaves unsaid is that he wears none.
        said, where = readings["preposition"]
        verb = sentences.verb_before[second]
        between = range(where[-1] + 1, second)
        # "without a hat or a shirt" denies both, "without hat black shirt" the first alone.
        other = any(
            sentences.is_noun[token]
            and not sentences.is_noun[token + 1]
            and sentences.text[token + 1] not in JOINERS
            for token in between
        )
        if "without" in said.split() and first < where[0] and verb < first and not other:
            return forward, said, where
    where = tokens.get(predicate) or _tokens_of(predicate, sentences, first, second, readings)
    if not own_words:
        return forward, factual_sides(predicate), where
    return forward, predicate, where


def _denial(
    sentences: Sentences, where: tuple[int, ...], noun_phrases: Sequence[int], begin: int
) -> int | None:
    """The word that denies a relation: its own ("is not really holding") or of what it ties ("not the bat").

    Args:
        sentences: The batch.
        where: Tokens of the predicate.
        noun_phrases: Where the names of the two objects start.
        begin: Where the text begins.
    """
    text = sentences.text
    first, last = min(where), max(where)
    if any(start > last and _follows_but(sentences, start, begin) for start in noun_phrases):
        return None  # "isn't holding a phone but a book"
    for token in range(first + 1, last):  # "sitting not on the chair"
        if token not in where and _denies(sentences, token, begin):
            return token
    starts = [first]
    if first > max(noun_phrases) and sentences.is_verb[sentences.head[first]]:  # "doesn't have a shirt on"
        starts.append(sentences.head[first])
    if "without" in (text[token] for token in where):
        starts = []
    for start in starts:
        found = _denial_before(sentences, start, begin)
        if found is not None:
            return found
    for start in noun_phrases:
        token = _before_noun_phrase(sentences, start, begin)
        if token > begin and text[token] == "of" and text[token - 1] in {"none", "neither"}:
            return token - 1
        if token in where or text[max(token, begin)] == "without":
            continue
        if token >= begin and _denies(sentences, token, begin):
            return token
    return None


def _follows_but(sentences: Sentences, start: int, begin: int) -> bool:
    """Whether a noun phrase is what is there in the place of something denied: "not a phone but a book"."""
    token = _before_noun_phrase(sentences, start, begin)
    return token >= begin and sentences.text[token] == "but"


def _before_noun_phrase(sentences: Sentences, start: int, begin: int) -> int:
    """The token before the determiners and adjectives of a name at `start`; at least `begin` - 1."""
    token = start - 1
    while token > begin and (sentences.text[token] in DETERMINERS or sentences.adjective[token]):
        token -= 1
    return token


def _denies(sentences: Sentences, token: int, begin: int) -> bool:
    """Whether a token is a "not" that denies what follows it; not so in "not only" and "whether or not"."""
    text = sentences.text
    if text[token] == "longer":
        return token > begin and text[token - 1] == "no"
    if text[token] not in NEGATIONS or token + 1 >= len(text):
        return False
    before = text[max(token - 2, begin) : token]
    return text[token + 1] not in NO_NEGATION_BEFORE and "or" not in before


def _denial_before(sentences: Sentences, start: int, begin: int) -> int | None:
    """The "not" before a word, with nothing but adverbs and forms of "be" between: "not really being"."""
    token = start - 1
    while token > begin and (sentences.adverb[token] or sentences.text[token] in BE_FORMS):
        if sentences.text[token] in NEGATIONS or sentences.text[token] == "longer":
            break
        token -= 1
    return token if token >= begin and _denies(sentences, token, begin) else None


def _of_something_absent(
    sentences: Sentences, where: tuple[int, ...], place: dict[int, int], begin: int
) -> bool:
    """Whether a predicate is of what is not there: "a bus, no sticker on it", "a dog instead of a cat"."""
    token = min(where)
    if token > begin and sentences.text[token - 1 : token + 1] == ["instead", "of"]:
        return True
    noun = sentences.head[token]
    return sentences.is_noun[noun] and noun not in place and _negated(sentences, noun, begin) is not None


def _own_words(
    best: tuple[str, str],
    mass: dict[tuple[str, str], float],
    tokens: dict[str, tuple[int, ...]],
    readings: dict[str, tuple[str, tuple[int, ...]]],
) -> tuple[str, str]:
    """The likeliest predicate that the caption itself has, where the network's choice is not in it."""
    said = {word for predicate, _ in readings.values() for word in predicate.split()}
    if set(best[1].split()) <= said:
        return best
    for same_direction in (True, False):
        kept = {
            key: share
            for key, share in mass.items()
            if (key[1] in tokens or key[1] in UNSAID) and (key[0] == best[0]) is same_direction
        }
        if kept:
            return max(kept, key=kept.__getitem__)
    for name in ("preposition", "verb preposition", "verb"):
        if name in readings:
            predicate, where = readings[name]
            tokens.setdefault(plain_sides(predicate), where)
            return best[0], plain_sides(predicate)
    return best[0], "have"


def _tokens_of(
    predicate: str,
    sentences: Sentences,
    first: int,
    second: int,
    readings: dict[str, tuple[str, tuple[int, ...]]],
) -> tuple[int, ...]:
    """Tokens that speak of a predicate which no reading gives; none where the objects touch."""
    wanted = set(predicate.split())
    found = tuple(
        token
        for token in range(first + 1, second)
        if sentences.text[token] in wanted or sentences.verb[token] in wanted
    )
    if found:
        return found
    for name in ("preposition", "verb"):
        if name in readings and first < readings[name][1][0] < second:
            return readings[name][1]
    return (first + 1,) if second - first > 1 else ()
