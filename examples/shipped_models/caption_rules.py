"""Rules from a dependency parse to the objects, attributes and relations of a caption.

`train_parser.py` uses them to find the parses that are right: those from which they read exactly the graph
that an annotator drew. tbkin itself reads graphs with a network, see `train_scene_graphs.py`.

The rules read Penn tags and the ClearNLP-like dependency labels of spaCy's own English pipelines.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tbkin_core.names.lexicon import lemmatize_noun, lemmatize_verb
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation

SHORT_TEXT = 8  # referring expressions are this terse

NOUN_TAGS = frozenset({"NN", "NNS", "NNP", "NNPS"})
ADJECTIVE_TAGS = frozenset({"JJ", "JJR", "JJS"})
VERB_TAGS = frozenset({"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})
# Mistagged words still stand where only a noun can stand.
NOMINAL_LABELS = frozenset({"nsubj", "nsubjpass", "dobj", "pobj", "attr", "dative", "oprd", "ROOT"})
UNLIKELY_NOUN_TAGS = ADJECTIVE_TAGS | {
    "VBG",
    "VB",
    "VBP",
    "VBZ",
    "VBD",
    "VBN",
    "FW",
    "UH",
    "ADD",
    "RB",
    "$",
    "SYM",
}
_MATERIAL_LABELS = frozenset({"compound", "npadvmod", "nmod", "amod", "advmod", "nsubj"})
MODIFIER_LABELS = frozenset({"compound", "amod", "nmod"})
PERSON_PRONOUNS = {
    "he": "man", "him": "man", "she": "woman", "someone": "person", "somebody": "person",
    "anyone": "person", "they": "people", "everyone": "people", "something": "something",
}  # fmt: skip
REFERRING_PRONOUNS = frozenset({"it", "them", "itself", "themselves"})
NUMBERS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "both": "2",
}  # fmt: skip
DEPICTIONS = frozenset({"photo", "photograph", "picture", "image", "painting", "drawing", "view", "shot"})
SHADES = frozenset({"light", "dark", "bright", "pale", "navy", "sky", "lime", "deep"})
COLORS = frozenset(
    {
        "white", "black", "blue", "green", "red", "brown", "yellow", "gray", "grey", "orange", "silver",
        "pink", "purple", "tan", "beige", "gold", "cyan", "magenta", "turquoise", "teal", "violet", "maroon",
    }
)  # fmt: skip
STRANDED = frozenset({"on", "in", "under", "at", "with", "behind", "by", "near", "over"})
MATERIAL_PARTICIPLES = frozenset({"covered", "filled", "lined", "topped", "surrounded"})
PARTICLES = frozenset(
    {"down", "up", "open", "closed", "raised", "extended", "out", "outstretched", "off", "on"}
)
BE_FORMS = frozenset({"is", "are", "was", "were", "be", "been", "being", "am", "'s", "'re", "’s", "’re"})

_RELATIONAL_NOUN = (
    "top|front|back|side|sides|left|right|middle|center|centre|edge|edges|corner|bottom|end|rear|face|rim|tip"
    "|base"
)
_MULTIWORD_PREPOSITION = re.compile(
    r"(?<!\S)(?:"
    r"(?:on|in|at|to|by|near|from|along|off|around|towards?)"
    r"(?: (?:the|a|an|both|either|each|one|his|her|its|their))?"
    r"(?: (?:very|left|right|front|back|other|far|opposite|top|bottom|upper|lower))?(?: hand)?"
    rf" (?:{_RELATIONAL_NOUN}) of"
    r"|on top|in front of|in between|next to|close to|far from|adjacent to|(?:to )?(?:the )?(?:left|right) of"
    r"|(?:inside|outside|ahead|instead|because|outside|opposite) of|side by side with"
    r"|(?:along|together) with|across from|away from"
    r")(?!\S)"
)
_SIDE_PHRASE = re.compile(
    r"(?<!\S)(?:on|in|at|to|from) (?:the |your )?(?:far |very )?(?:left|right)(?: (?:hand )?side)?(?!\S)"
)
SIDES = frozenset({"left", "right", "middle", "center", "centre", "top", "bottom", "far", "near"})
_ARTICLES = frozenset({"the", "a", "an", "his", "her", "its", "their"})
# A prepositional phrase after coordinated nouns usually holds of all of them, unless it is one of these.
_CLOSE_PREPOSITIONS = frozenset({"with", "of", "without"})


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


def graph_from_parse(
    tokens: Sequence[str],
    tags: Sequence[str],
    labels: Sequence[str],
    heads: Sequence[int],
    lexicon: Lexicon,
    *,
    rewrite: bool = True,
) -> TextGraph:
    """Scene graph of one parsed text.

    Args:
        tokens: Words.
        tags: Penn Treebank tags.
        labels: ClearNLP-like dependency labels (those of spaCy's English pipelines).
        heads: Index of each token's head; a root is its own head.
        lexicon: Decisions on compounds and predicates.
        rewrite: Whether predicates and attributes are mapped through the lexicon.
    """
    if not tokens:
        return TextGraph(())
    reader = GraphReader(Sentence(tokens, tags, labels, heads), lexicon, rewrite)
    reader.prepare()
    reader.read()
    return reader.graph(tokens)


# ------------------------------------------------------------------------------------------- rules


class Sentence:
    """Parallel arrays over the tokens of one text, with multi-word prepositions folded into one node."""

    def __init__(
        self, words: Sequence[str], tags: Sequence[str], labels: Sequence[str], heads: Sequence[int]
    ):
        self.words = [word.lower() for word in words]
        self.tags = list(tags)
        self.labels = list(labels)
        self.heads = list(heads)
        self.folded: dict[int, range] = {}
        self.sides: dict[int, tuple[int, str]] = {}
        self._repair_modifiers()
        text = " ".join(self.words)
        self._fold_prepositions(text)
        self._fold_sides(text)
        self.kids: list[list[int]] = [[] for _ in self.words]
        for token, head in enumerate(self.heads):
            if head != token:
                self.kids[head].append(token)

    def _repair_modifiers(self) -> None:
        """As in "behind the striped orange circle", where the parse took "striped" for the object."""
        for token, label in enumerate(self.labels):
            word = self.words[token]
            participle = len(word) > 5 and word.endswith("ed")
            if label not in {"pobj", "dobj", "nsubj", "nsubjpass"}:
                continue
            if self.tags[token] not in {"JJ", "VBN"} and not participle:
                continue
            noun = None
            for following in range(token + 1, len(self.words)):
                if self.tags[following] in NOUN_TAGS:
                    noun = following
                elif self.tags[following] != "JJ":
                    break
            above = self.heads[token]
            if noun is None or above == token:
                continue
            current = above
            while current not in (noun, self.heads[current]):
                current = self.heads[current]
            if current == noun:
                continue
            for other, head in enumerate(self.heads):
                if head == token:
                    self.heads[other] = noun
            self.heads[noun], self.labels[noun] = above, label
            self.heads[token], self.labels[token] = noun, "amod"

    def _spans(self, pattern: re.Pattern[str], text: str) -> Iterator[range]:
        """Token ranges a pattern matches; matches start and end at token boundaries."""
        match = pattern.search(text)
        if match is None:
            return
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        offset = 0
        for index, word in enumerate(self.words):
            starts[offset] = index
            offset += len(word)
            ends[offset] = index
            offset += 1
        for match in pattern.finditer(text):
            first, last = starts.get(match.start()), ends.get(match.end())
            if first is not None and last is not None:
                yield range(first, last + 1)

    def _top(self, span: range) -> int:
        """The token of a span whose head lies outside it (or that is a root)."""
        return next(token for token in span if self.heads[token] not in span or self.heads[token] == token)

    def _fold_prepositions(self, text: str) -> None:
        for span in self._spans(_MULTIWORD_PREPOSITION, text):
            first, last = span[0], span[-1]
            if last + 1 >= len(self.words) and self.words[last] != "top":
                continue
            top = self._top(span)
            if self.words[last] == "of" and self.words[last - 1] in {"left", "right"}:
                self._place_side(span, top)
            outside, label = self.heads[top], "prep"
            if outside == top:
                outside, label = first, "ROOT"
            elif outside > last and self.labels[top] not in {"prep", "advmod", "advcl"}:
                continue
            self.folded[first] = span
            for token, head in enumerate(self.heads):
                if token in span or head not in span:
                    continue
                if token < first and outside != first and self.labels[token] in {"nsubj", "nsubjpass"}:
                    # "is the circle left of the square", parsed as if somebody left
                    self.heads[token], self.labels[token] = outside, "nsubj"
                    continue
                self.heads[token] = first
                if token > last and (
                    self.labels[token] in {"pobj", "dobj", "ROOT"} or self.tags[token] in NOUN_TAGS
                ):
                    self.labels[token] = "pobj"
            for token in span:
                self.heads[token], self.labels[token] = first, "fixed"
            self.heads[first], self.labels[first] = outside, label
            self.tags[first] = "IN"

    def _place_side(self, span: range, top: int) -> None:
        """As in "triangle right of the heart": hang a misparsed side from the noun before it."""
        first, last = span[0], span[-1]
        outside = self.heads[top]
        noun = next((token for token in range(first - 1, -1, -1) if self.tags[token] in NOUN_TAGS), None)
        if noun is not None and self.heads[noun] in span and outside < first:
            # "is there a cross right of the star", parsed as a "cross right"
            self.heads[noun], self.labels[noun] = outside, self.labels[top]
            self.heads[top], self.labels[top] = noun, "prep"
            return
        if noun is None or not (outside > last or outside == top):
            return
        if self.heads[noun] in span or self.heads[noun] > last:
            self.heads[noun], self.labels[noun] = noun, "ROOT"
        current = noun
        while self.heads[current] != current:
            current = self.heads[current]
            if current in span or current > last:
                return
        self.heads[top] = noun
        self.labels[top] = "prep"
        if outside > last and self.tags[outside] in NOUN_TAGS:
            self.heads[outside], self.labels[outside] = last, "pobj"

    def _fold_sides(self, text: str) -> None:
        """As in "the man on the left": what hangs below the place moves up to the man."""
        for span in self._spans(_SIDE_PHRASE, text):
            first, last = span[0], span[-1]
            follows_noun = last + 1 < len(self.words) and (
                self.words[last + 1] == "of" or self.tags[last + 1] in NOUN_TAGS | ADJECTIVE_TAGS
            )
            top = self._top(span)
            outside = self.heads[top]
            if follows_noun or outside == top or first in self.folded or self.labels[first] == "fixed":
                continue
            side = next(
                word for word in (self.words[token] for token in span) if word in SIDES - {"far", "near"}
            )
            for token, head in enumerate(self.heads):
                if token not in span and head in span:
                    self.heads[token] = outside
                    verb = next(
                        (
                            kid
                            for kid in range(last + 1, token)
                            if self.heads[kid] == token and self.tags[kid] == "VBG"
                        ),
                        None,
                    )
                    if self.labels[token] == "pobj" and verb is not None:
                        self.heads[verb], self.labels[verb] = outside, "acl"
                        self.heads[token], self.labels[token] = verb, "dobj"
                    if self.tags[token] in {"VBG", "VBN"}:
                        self.labels[token] = "acl" if self.tags[outside] in NOUN_TAGS else "conj"
            for token in span:
                self.heads[token], self.labels[token] = first, "fixed"
            self.heads[first], self.labels[first] = outside, "side"
            self.sides[first] = (next(token for token in span if self.words[token] == side), side)

    def preposition(self, token: int) -> tuple[list[str], tuple[int, ...]]:
        """Words (without articles) and tokens of a preposition."""
        span = self.folded.get(token)
        if span is None:
            return [self.words[token]], (token,)
        tokens = tuple(index for index in span if self.words[index] not in _ARTICLES)
        words = [self.words[index] for index in tokens]
        if words[-1] == "of" and words[-2] in {"left", "right"} and len(words) == 2:
            words.insert(0, "to")  # "left of" is "to the left of"
        return words, tokens


@dataclass
class Clause:
    """A verb with what was found of it.

    Attributes:
        verb, lemma: Its token, and its base form ("be" for every form of that).
        subjects: Objects that it is said of.
        words, tokens: What it gives to a predicate; nothing for "be".
        direct: Its direct objects.
        is_be: Whether it is a form of "be".
        is_relative: Whether it speaks of the noun before it and has a subject of its own.
        stranded: Prepositions without an object, as (words, tokens).
        found: Whether some relation came of it.
    """

    verb: int
    lemma: str
    subjects: list[int]
    words: list[str]
    tokens: tuple[int, ...]
    direct: list[int]
    is_be: bool
    is_relative: bool
    stranded: list[tuple[list[str], tuple[int, ...]]] = field(default_factory=list)
    found: bool = False


class GraphReader:
    """Applies the rules to one sentence."""

    def __init__(self, sentence: Sentence, lexicon: Lexicon, rewrite: bool = True) -> None:
        self.s = sentence
        self.lexicon = lexicon
        self.rewrite = rewrite
        size = len(sentence.words)
        self.object_at: dict[int, TextObject] = {}
        self.attributes: dict[tuple[int, str], tuple[int, ...]] = {}
        self.relations: dict[tuple[int, str, int], tuple[int, ...]] = {}
        self.dropped: set[int] = set()
        self.merged: set[int] = set()
        self.nominal = [self._is_nominal(token) for token in range(size)]
        self._subjects: dict[int, list[int]] = {}
        self.partitive_of: dict[int, int] = {}
        self.materials: set[int] = set()
        self.antecedent: dict[int, int] = {}

    # -- what is an object

    def _is_nominal(self, token: int) -> bool:
        s = self.s
        tag, label, word = s.tags[token], s.labels[token], s.words[token]
        if label == "fixed":
            return False
        if tag in NOUN_TAGS:
            head = s.heads[token]
            if (
                label in {"compound", "nmod", "amod"}
                and head > token
                and s.tags[head] in NOUN_TAGS | UNLIKELY_NOUN_TAGS
            ):
                return False
            return any(letter.isalnum() for letter in word)
        if word in PERSON_PRONOUNS:
            return label != "det"
        if word == "one" and tag in {"NN", "CD", "PRP"}:
            return label in {"nsubj", "nsubjpass", "dobj", "pobj"}
        if tag in UNLIKELY_NOUN_TAGS and word not in BE_FORMS and any(letter.isalpha() for letter in word):
            if label in {"dobj", "pobj", "nsubj", "nsubjpass"}:
                return True
            has_determiner = any(s.labels[kid] in {"det", "poss"} for kid in s.kids[token])
            return has_determiner and label in NOMINAL_LABELS and tag not in {"RB"}
        return False

    # -- building blocks

    def noun_name(self, token: int) -> str:
        word = self.s.words[token]
        return PERSON_PRONOUNS.get(word) or lemmatize_noun(word, self.lexicon.noun_lemmas)

    def _compound(self, modifier: int, noun: int) -> str:
        table = self.lexicon.compounds
        first, second = self.s.words[modifier], self.noun_name(noun)
        found = table.get(f"{first} {second}")
        if found is not None:
            return found
        if first in COLORS or self.s.labels[modifier] == "amod" or self.s.tags[modifier] not in NOUN_TAGS:
            return "attribute"
        return table.get(first) or table.get("* " + second) or "merge"

    def _add_attribute(self, noun: int, name: str, tokens: tuple[int, ...]) -> None:
        if self.rewrite and name not in SIDES:
            name = self.lexicon.attributes.get(name, name)
        if name and noun in self.object_at:
            self.attributes.setdefault((noun, name), tokens)

    def _add_relation(self, subject: int, predicate: str, other: int, tokens: tuple[int, ...]) -> None:
        if subject == other or subject not in self.object_at or other not in self.object_at:
            return
        if self.rewrite:
            table = self.lexicon.relations
            found = table.get(f"{predicate}|{self.object_at[other].name}")
            if found is None:
                found = table.get(predicate)
            if found is not None:
                if found == "-":
                    return
                if found.startswith("~"):
                    subject, other, found = other, subject, found[1:]
                predicate = found
        self.relations.setdefault((subject, predicate, other), tokens)

    def _conjuncts(self, token: int) -> list[int]:
        """A noun and the nouns coordinated after it."""
        result, queue = [], [token]
        while queue:
            current = queue.pop(0)
            if current in result:
                continue
            if self.nominal[current]:
                result.append(current)
            elif current != token:
                continue
            queue.extend(kid for kid in self.s.kids[current] if self.s.labels[kid] == "conj")
        return result

    def _earlier_conjuncts(self, token: int) -> list[int]:
        """Nouns coordinated before a noun."""
        result: list[int] = []
        while self.s.labels[token] == "conj" and self.nominal[self.s.heads[token]] and len(result) < 20:
            token = self.s.heads[token]
            result.append(token)
        return result

    def _coordinated(self, token: int, before: int) -> list[int]:
        """A noun and the nouns coordinated with it that come before a token which speaks of all of them."""
        nouns = self._earlier_conjuncts(token) + [noun for noun in self._conjuncts(token) if noun < before]
        return list(dict.fromkeys(self.partitive_of.get(noun, noun) for noun in nouns))

    def _agents_of(self, noun: int, verb: int) -> list[int]:
        """Subjects of a participle; in "a woman in a dress holding an umbrella" the woman holds."""
        s = self.s
        lemma = lemmatize_verb(s.words[verb], self.lexicon.verb_lemmas)
        stay = self._coordinated(noun, verb)
        if s.tags[verb] != "VBG" or lemma not in self.lexicon.agentive_verbs:
            return stay
        current = noun
        for _ in range(8):
            name = self.noun_name(current)
            if name in self.lexicon.agents or f"{name} {lemma}" in self.lexicon.inanimate_subjects:
                return self._coordinated(current, verb)
            above = s.heads[current]
            holder = s.heads[above]
            if s.labels[current] == "conj" and self.nominal[above]:
                current = above
            elif s.labels[current] not in {"pobj", "dobj"} or above > current:
                break
            elif s.tags[holder] in VERB_TAGS and s.labels[current] == "pobj":
                subjects = self._subjects_of(holder)
                acting = [subject for subject in subjects if self.noun_name(subject) in self.lexicon.agents]
                return acting or stay
            elif self.nominal[holder] and holder < current:
                current = holder
            else:
                break
        return stay

    def _resolve(self, token: int, of: int) -> list[int]:
        """The nouns a phrase head stands for; "it" stands for the noun the phrase `of` hangs from."""
        s = self.s
        if self.nominal[token]:
            return [self.partitive_of.get(noun, noun) for noun in self._conjuncts(token)]
        if s.tags[token] == "WDT" or s.words[token] in {"that", "which", "who", "whom"}:
            current = of
            for _ in range(len(s.words)):
                if s.labels[current] == "relcl" and self.nominal[s.heads[current]]:
                    noun = s.heads[current]
                    return [self.partitive_of.get(noun, noun)]
                current = s.heads[current]
            return []
        if s.words[token] in REFERRING_PRONOUNS:
            current, seen = of, 0
            while s.heads[current] != current and seen < 50:
                above = s.heads[current]
                if s.tags[above] in VERB_TAGS:
                    for kid in s.kids[above]:
                        if s.labels[kid] in {"nsubj", "nsubjpass"} and self.nominal[kid] and kid != current:
                            return [kid]
                elif self.nominal[above] and above != of and above < token:
                    return [self.partitive_of.get(above, above)]
                current, seen = above, seen + 1
        return []

    def _prepositional(
        self, token: int, depth: int = 0
    ) -> list[tuple[list[str], tuple[int, ...], list[int]]]:
        """(words, tokens, objects) of a preposition, with chained ("out of") and coordinated ones."""
        s = self.s
        words, tokens = s.preposition(token)
        found: list[tuple[list[str], tuple[int, ...], list[int]]] = []
        if depth > 6:
            return found
        objects: list[int] = []
        for kid in s.kids[token]:
            label = s.labels[kid]
            if label in {"pobj", "dobj", "npadvmod"} and kid > token:
                objects.extend(self._resolve(kid, s.heads[token]))
            elif label == "pcomp" and self.nominal[kid]:
                objects.extend(self._conjuncts(kid))
            elif label == "prep" and kid > token:
                for more, more_tokens, more_objects in self._prepositional(kid, depth + 1):
                    if token in s.folded and kid in s.folded:  # "right of the star and right of the moon"
                        found.append((more, more_tokens, more_objects))
                        continue
                    found.append((words + more, tokens + more_tokens, more_objects))
            elif label == "conj" and s.tags[kid] in {"IN", "TO", "RP", "RB"}:
                found.extend(self._prepositional(kid, depth + 1))
        if words == ["between"] and len(objects) == 1:
            # "between the box and the cone", where the parse hangs the cone elsewhere
            last = max(objects)
            for other in range(last + 2, min(last + 6, len(s.words))):
                if self.nominal[other] and s.words[last + 1] == "and":
                    objects.append(other)
                    break
        if objects:
            found.append((words, tokens, objects))
        if words == ["on", "top"] and not objects and self.nominal[s.heads[token]]:
            # "a horse with a man on top"
            above = s.heads[s.heads[token]]
            if s.words[above] == "with" and self.nominal[s.heads[above]]:
                found.append((["on", "top", "of"], tokens, [s.heads[above]]))
        return found

    # -- passes

    def prepare(self) -> None:
        """Settle which tokens are nominal, and what partitives and pronouns stand for."""
        if not any(self.nominal) and len(self.s.words) <= SHORT_TEXT:
            self._guess_object()
        self._find_partitives()
        self._find_materials()
        self._find_antecedents()

    def read(self) -> None:
        """Objects, attributes and relations as the rules see them."""
        s = self.s
        size = len(s.words)
        for token in range(size):
            if self.nominal[token] and not self._is_question_word(token):
                self._add_object(token)
        for token in range(size):
            if token in self.object_at:
                self._noun_phrase(token, token)
            elif token in self.partitive_of:
                whole = self.partitive_of[token]
                name = self.lexicon.partitives[lemmatize_noun(s.words[token], self.lexicon.noun_lemmas)]
                self._add_attribute(whole, name, (token,))
                self._noun_phrase(token, whole)
        for token in range(size):
            if (
                s.tags[token] in VERB_TAGS
                and s.labels[token] not in {"aux", "auxpass", "amod", "compound"}
                and not self.nominal[token]
            ):
                self._verb(token)
            elif (
                s.labels[token] in {"acl", "relcl", "advcl", "ROOT", "conj"}
                and s.tags[token] in ADJECTIVE_TAGS
                and not self.nominal[token]
            ):
                self._adjective_predicate(token)
            elif s.labels[token] == "ROOT" and s.tags[token] in {"IN", "RB"} and not self.nominal[token]:
                self._root_preposition(token)
        self._drop_repeated_possession()
        self._trailing_side()

    def _is_question_word(self, token: int) -> bool:
        """As in "what color" and "how many people": the asked-for word is no object of the image."""
        s = self.s
        if s.words[token] not in {
            "color",
            "colour",
            "colors",
            "kind",
            "type",
            "sort",
            "time",
            "number",
            "shape",
            "many",
            "much",
        }:
            return False
        return any(s.tags[kid] in {"WDT", "WP", "WRB"} for kid in s.kids[token]) or (
            token > 0 and s.words[token - 1] in {"what", "which", "how"}
        )

    def _guess_object(self) -> None:
        """As in "right urinal" and "girl purple", where a terse expression was tagged without a noun."""
        s = self.s
        candidates = [
            token
            for token, word in enumerate(s.words)
            if s.tags[token] in NOUN_TAGS | {"JJ", "FW", "UH", "ADD"}
            and any(letter.isalpha() for letter in word)
            and word not in COLORS | SIDES | SHADES
        ]
        candidates = [token for token in candidates if s.tags[token] in NOUN_TAGS] or candidates
        if not candidates:
            return
        noun = candidates[-1]
        self.nominal[noun] = True
        above = s.heads[noun]
        if above != noun:
            s.kids[above].remove(noun)
            s.heads[noun], s.labels[noun] = noun, "ROOT"
        for token, word in enumerate(s.words):
            if token != noun and (word in COLORS | SIDES or s.tags[token] in ADJECTIVE_TAGS):
                s.kids[s.heads[token]] = [kid for kid in s.kids[s.heads[token]] if kid != token]
                s.heads[token], s.labels[token], s.tags[token] = noun, "amod", "JJ"
                s.kids[noun] = sorted({*s.kids[noun], token} - {noun})

    def _trailing_side(self) -> None:
        """As in "second bike right": a side that closes the text belongs to its first object."""
        last = len(self.s.words) - 1
        if last < 1 or self.s.words[last] not in {"left", "right"} or last in self.object_at:
            return
        used = {token for tokens in (*self.attributes.values(), *self.relations.values()) for token in tokens}
        first = min(self.object_at, default=None)
        if last not in used and first is not None:
            self.attributes.setdefault((first, self.s.words[last]), (last,))

    def _find_partitives(self) -> None:
        """As in "a bunch of bananas": the bananas take the place of the bunch."""
        s = self.s
        for token, is_nominal in enumerate(self.nominal):
            if not is_nominal:
                continue
            decision = self.lexicon.partitives.get(
                lemmatize_noun(s.words[token], self.lexicon.noun_lemmas), "have"
            )
            if decision == "have" or not self.rewrite:
                continue
            for kid in s.kids[token]:
                if s.words[kid] == "of" and s.labels[kid] == "prep" and kid == token + 1:
                    wholes = [
                        other for other in s.kids[kid] if s.labels[other] == "pobj" and self.nominal[other]
                    ]
                    if wholes:
                        self.partitive_of[token] = wholes[0]

    def _find_materials(self) -> None:
        """As in "snow covered mountain": the snow is an object, not a modifier."""
        s = self.s
        for token in range(1, len(s.words) - 1):
            if s.words[token] in MATERIAL_PARTICIPLES and s.labels[token] in {"amod", "compound"}:
                noun, material = s.heads[token], token - 1
                if noun > token and s.tags[material] in NOUN_TAGS and s.labels[material] in _MATERIAL_LABELS:
                    self.materials.add(material)
                    self.nominal[material] = True
                    self.nominal[token] = False

    def _find_antecedents(self) -> None:
        """As in "two zebras next to each other" and "another one": the noun such a word stands for."""
        s = self.s
        for token, word in enumerate(s.words):
            reciprocal = word == "other" and token > 0 and s.words[token - 1] == "each"
            if not reciprocal and not (word in {"one", "ones"} and self.nominal[token]):
                continue
            nouns = [
                noun for noun in range(token) if self.nominal[noun] and s.words[noun] not in {"one", "ones"}
            ]
            if not nouns:
                continue
            plurals = [noun for noun in nouns if s.tags[noun] == "NNS" or s.words[noun] == "people"]
            noun = plurals[-1] if reciprocal and plurals else nouns[0]
            if reciprocal:
                others = [other for other in self._conjuncts(noun) if other < token]
                noun = others[-1]
            self.antecedent[token] = noun
            self.nominal[token] = True

    def _add_object(self, token: int) -> None:
        s = self.s
        if token in self.partitive_of:
            return
        if token in self.antecedent:
            name = self.noun_name(self.antecedent[token])
            self.object_at[token] = TextObject(token, (token, token + 1), name)
            return
        modifiers = [kid for kid in s.kids[token] if kid < token and s.labels[kid] in MODIFIER_LABELS]
        start = token
        name = self.noun_name(token)
        for modifier in sorted(modifiers, reverse=True):
            decision = self._compound(modifier, token)
            if modifier != start - 1 or decision not in {"merge", "join"}:
                break
            start = modifier
            self.merged.add(modifier)
            space = " " if decision == "merge" else ""
            name = f"{lemmatize_noun(s.words[modifier], self.lexicon.noun_lemmas)}{space}{name}"
        self.object_at[token] = TextObject(token, (start, token + 1), name)

    def _noun_phrase(self, token: int, noun: int) -> None:
        """What hangs from a noun; `noun` is the object it speaks of (the bananas of a bunch of bananas)."""
        s = self.s
        for kid in s.kids[token]:
            label, tag, word = s.labels[kid], s.tags[kid], s.words[kid]
            if kid in self.merged:
                continue
            if label in MODIFIER_LABELS and kid < token and not self.nominal[kid]:
                self._modifier(noun, kid)
            elif kid in self.materials and label in MODIFIER_LABELS:
                continue
            elif label == "nummod" or (
                word in NUMBERS and label in {"det", "predet", "preconj"} and word != "both"
            ):
                self._add_attribute(noun, NUMBERS.get(word, word), (kid,))
            elif label == "poss" and self.nominal[kid]:
                for owner in self._conjuncts(kid):
                    self._add_relation(owner, "have", noun, (kid,))
            elif label in {"amod", "acl", "relcl"} and tag in ADJECTIVE_TAGS and kid > token:
                self._modifier(noun, kid)
            elif label in {"advmod", "acomp", "prt"} and kid > token and word in PARTICLES:
                self._add_attribute(noun, word, (kid,))
            elif label == "side":
                place, name = s.sides[kid]
                self.attributes.setdefault((noun, name), (place,))
            elif label in {"prep", "agent"} and self.partitive_of.get(token) not in s.kids[kid]:
                self._noun_preposition(token, noun, kid)

    def _modifier(self, noun: int, modifier: int, depth: int = 0) -> None:
        """Attribute words before (or right after) a noun, with what is coordinated with them."""
        s = self.s
        word = s.words[modifier]
        if not any(letter.isalnum() for letter in word):
            return
        kind = "attribute" if s.tags[modifier] not in NOUN_TAGS else self._compound(modifier, noun)
        if kind in {"merge", "join"} and s.tags[modifier] not in NOUN_TAGS:
            kind = "attribute"
        if s.labels[modifier] == "conj":
            kind = "attribute"
        if kind == "drop" or modifier in self.materials:
            return
        if word in MATERIAL_PARTICIPLES and modifier - 1 in self.materials:
            name = lemmatize_verb(word, self.lexicon.verb_lemmas)
            self._add_relation(noun, f"{name} with", modifier - 1, (modifier,))
            return
        if kind in {"have", "in"}:
            name = lemmatize_noun(word, self.lexicon.noun_lemmas)
            self.object_at.setdefault(modifier, TextObject(modifier, (modifier, modifier + 1), name))
            if kind == "have":
                self._add_relation(modifier, "have", noun, (modifier,))
            else:
                self._add_relation(noun, "in", modifier, (modifier,))
        elif modifier + 1 < len(s.words) and (
            s.words[modifier + 1] in {"colored", "coloured"}
            or (word in SHADES and s.words[modifier + 1] in COLORS)
        ):
            pass  # "dark blue" is taken at "blue", "tan colored" at "colored"
        else:
            tokens: tuple[int, ...] = (modifier,)
            name = NUMBERS.get(word, word)
            if (word in COLORS and modifier > 0 and s.words[modifier - 1] in SHADES) or (
                word in {"colored", "coloured"}
                and modifier > 0
                and s.labels[modifier - 1] not in {"det", "cc", "punct"}
            ):
                tokens, name = (modifier - 1, modifier), f"{s.words[modifier - 1]} {word}"
            else:
                below = [
                    kid
                    for kid in s.kids[modifier]
                    if kid == modifier - 1 and s.labels[kid] in {"compound", "npadvmod", "nmod"}
                ]
                if below and self.s.tags[below[0]] in NOUN_TAGS and not self.nominal[below[0]]:
                    tokens, name = (below[0], modifier), f"{s.words[below[0]]} {word}"
            self._add_attribute(noun, name, tokens)
        if depth < 8:
            for kid in s.kids[modifier]:
                if (
                    s.labels[kid] in {"conj", "amod", "nummod"}
                    and not self.nominal[kid]
                    and s.tags[kid] not in {"IN", "RB"}
                ):
                    self._modifier(noun, kid, depth + 1)

    def _noun_preposition(self, token: int, noun: int, preposition: int) -> None:
        s = self.s
        holders = [noun]
        if s.words[preposition] not in _CLOSE_PREPOSITIONS:
            holders += [noun for noun in self._coordinated(token, preposition) if noun not in holders]
        for words, tokens, objects in self._prepositional(preposition):
            for holder in holders:
                for other in objects:
                    self._attach(holder, words, other, tokens)

    def _attach(self, holder: int, words: list[str], other: int, tokens: tuple[int, ...]) -> None:
        """A preposition between two nouns; "of" reads as possession unless the lexicon knows better."""
        if words == ["of"]:
            name = self.object_at[holder].name if holder in self.object_at else ""
            if not self.rewrite:
                self._raw_relation(holder, "of", other, tokens)
                return
            found = self.lexicon.relations.get(f"of<{name}")
            if found is None and name in DEPICTIONS:
                self._raw_relation(holder, "of", other, tokens)
            elif found is None:
                self._add_relation(other, "have", holder, tokens)
            elif found.startswith("~"):
                self._raw_relation(other, found[1:], holder, tokens)
            else:
                self._raw_relation(holder, found, other, tokens)
            return
        if not self._wears_color(holder, words, other):
            self._add_relation(holder, " ".join(words), other, tokens)

    def _wears_color(self, holder: int, words: Sequence[str], other: int) -> bool:
        """As in "a woman in red": the color is hers."""
        if words[-1] != "in" or self.s.words[other] not in COLORS or holder not in self.object_at:
            return False
        if any(kid < other for kid in self.s.kids[other]):
            return False
        self._add_attribute(holder, self.s.words[other], (other,))
        self.dropped.add(other)
        return True

    def _raw_relation(self, subject: int, predicate: str, other: int, tokens: tuple[int, ...]) -> None:
        if subject != other and subject in self.object_at and other in self.object_at:
            self.relations.setdefault((subject, predicate, other), tokens)

    # -- clauses

    def _subjects_of(self, verb: int, depth: int = 0) -> list[int]:
        known = self._subjects.get(verb)
        if known is not None:
            return known
        self._subjects[verb] = []
        found = self._find_subjects(verb, depth)
        self._subjects[verb] = found
        return found

    def _find_subjects(self, verb: int, depth: int) -> list[int]:
        s = self.s
        if depth > 12:
            return []
        label, head = s.labels[verb], s.heads[verb]
        existential = False
        nouns: list[int] = []
        for kid in s.kids[verb]:
            if s.labels[kid] in {"nsubj", "nsubjpass", "csubj"}:
                if self.nominal[kid]:
                    nouns.extend(noun for noun in self._resolve(kid, verb) if noun not in nouns)
                elif s.words[kid] in {"this", "that", "these", "those", "here", "it"} and label != "relcl":
                    existential = True
                elif label != "relcl" and not nouns:
                    return []
            elif s.labels[kid] == "expl" or (s.words[kid] == "there" and kid < verb):
                existential = True
        if nouns:
            return nouns
        if existential and s.words[verb] in BE_FORMS:
            result = []
            for kid in s.kids[verb]:
                if s.labels[kid] in {"attr", "nsubj", "dobj", "acomp"} and self.nominal[kid]:
                    result.extend(self._resolve(kid, verb))
            return result
        if label in {"acl", "relcl"} and self.nominal[head]:
            if label == "acl":
                return self._agents_of(head, verb)
            return [self.partitive_of.get(head, head)]
        if (
            label in {"conj", "xcomp", "advcl", "ccomp", "dep", "parataxis", "pcomp", "acl", "relcl"}
            and head != verb
        ):
            if label == "pcomp":
                holder = s.heads[head]
                if self.nominal[holder]:
                    return [holder]
                head = holder
            if label in {"xcomp", "ccomp"}:
                for kid in s.kids[head]:
                    if s.labels[kid] == "dobj" and self.nominal[kid] and kid < verb:
                        return self._resolve(kid, head)
            if self.nominal[head] and label in {"conj", "dep", "parataxis", "advcl"}:
                return [self.partitive_of.get(head, head)]
            if s.tags[head] in VERB_TAGS or s.tags[head] in ADJECTIVE_TAGS:
                return self._subjects_of(head, depth + 1)
            if self.nominal[head]:
                return [head]
        if label in {"amod", "compound"} and self.nominal[head]:
            return [head]
        if label == "ROOT":
            # A parse without a subject: the nearest noun phrase on the left that hangs from the verb.
            left = [kid for kid in s.kids[verb] if kid < verb and self.nominal[kid]]
            if left:
                return self._resolve(left[-1], verb)
        return []

    def _verb(self, verb: int) -> None:
        """The relations and attributes that a verb gives its subjects."""
        s = self.s
        is_be = s.words[verb] in BE_FORMS
        lemma = "be" if is_be else lemmatize_verb(s.words[verb], self.lexicon.verb_lemmas)
        particles = [kid for kid in s.kids[verb] if s.labels[kid] == "prt"]
        own_subject = any(
            s.labels[kid] in {"nsubj", "nsubjpass"} and self.nominal[kid] for kid in s.kids[verb]
        )
        clause = Clause(
            verb,
            lemma,
            self._subjects_of(verb),
            words=[] if is_be else [lemma, *[s.words[kid] for kid in particles]],
            tokens=() if is_be else (verb, *particles),
            direct=[
                other
                for kid in s.kids[verb]
                if s.labels[kid] == "dobj" and kid > verb and not is_be
                for other in self._resolve(kid, verb)
                if other in self.object_at
            ],
            is_be=is_be,
            is_relative=s.labels[verb] in {"relcl", "acl"} and own_subject,
        )
        for kid in s.kids[verb]:
            self._verb_dependent(clause, kid)
        if clause.is_relative and self.nominal[s.heads[verb]]:
            self._antecedent_as_object(clause)
        if not clause.found and not is_be:
            self._verb_alone(clause)

    def _verb_dependent(self, clause: Clause, kid: int) -> None:
        """What hangs from a verb."""
        s, subjects = self.s, clause.subjects
        label = s.labels[kid]
        if label in {"dobj", "dative", "oprd"} or (
            label in {"attr", "npadvmod"} and not clause.is_be and kid > clause.verb
        ):
            for other in self._resolve(kid, clause.verb):
                if label == "dobj" and clause.is_be:
                    continue
                for subject in subjects:
                    clause.found = True
                    self._add_relation(subject, " ".join(clause.words), other, clause.tokens)
            if label == "dative" and s.tags[kid] == "IN":
                clause.found |= self._verb_preposition(subjects, clause.words, clause.tokens, kid)
        elif label == "side":
            place, name = s.sides[kid]
            for subject in subjects:
                if subject in self.object_at:
                    self.attributes.setdefault((subject, name), (place,))
        elif label == "agent":
            for _, tokens, objects in self._prepositional(kid):
                for subject, other in itertools.product(subjects, objects):
                    clause.found = True
                    self._add_relation(other, clause.lemma, subject, (clause.verb, *tokens))
        elif label == "prep":
            self._verb_prepositional(clause, kid)
        elif label in {"advmod", "prt"}:
            self._verb_particle(clause, kid)
        elif label in {"acomp", "attr"} or (
            clause.is_be and label in {"ccomp", "xcomp"} and s.tags[kid] in {"VBN", "JJ"}
        ):
            if self.nominal[kid] and clause.is_be:
                self._nominal_predicate(subjects, kid)
            elif not self.nominal[kid]:
                self._adjective(subjects, kid)

    def _verb_prepositional(self, clause: Clause, kid: int) -> None:
        s, verb = self.s, clause.verb
        passive = s.tags[verb] == "VBN" and not any(
            s.labels[other] == "aux" and s.words[other] in {"has", "have", "had"} for other in s.kids[verb]
        )
        if s.words[kid] == "by" and passive:
            for _, tokens, objects in self._prepositional(kid):
                for subject, other in itertools.product(clause.subjects, objects):
                    clause.found = True
                    self._add_relation(subject, f"{clause.lemma} by", other, (verb, *tokens))
        elif self._verb_preposition(clause.subjects, clause.words, clause.tokens, kid, clause.direct):
            clause.found = True
        elif not s.kids[kid] or kid in s.folded:
            clause.stranded.append(s.preposition(kid))

    def _verb_particle(self, clause: Clause, kid: int) -> None:
        s, label, word = self.s, self.s.labels[kid], self.s.words[kid]
        after_verb = kid > clause.verb
        if label == "advmod" and after_verb and not s.kids[kid] and word in STRANDED:
            clause.stranded.append(([word], (kid,)))
        for below in s.kids[kid]:
            if s.labels[below] == "prep":
                clause.found |= self._verb_preposition(
                    clause.subjects, [*clause.words, word], (*clause.tokens, kid), below
                )
        if clause.is_be and label == "advmod" and word in PARTICLES and after_verb and not clause.is_relative:
            for subject in clause.subjects:
                self._add_attribute(subject, word, (kid,))

    def _antecedent_as_object(self, clause: Clause) -> None:
        """As in "the bench that a man sits on": the noun that a relative clause speaks of is its object."""
        above = self.s.heads[clause.verb]
        antecedent = self.partitive_of.get(above, above)
        if clause.stranded:
            words, tokens = clause.stranded[-1]
            predicate, where = " ".join([*clause.words, *words]), (*clause.tokens, *tokens)
        elif not clause.found and not clause.is_be:
            predicate, where = " ".join(clause.words), clause.tokens
        else:
            return
        for subject in clause.subjects:
            self._add_relation(subject, predicate, antecedent, where)
        clause.found = True

    def _verb_alone(self, clause: Clause) -> None:
        """As in "a man standing": a verb without objects is an attribute."""
        s, verb = self.s, clause.verb
        has_clause = any(s.labels[kid] == "xcomp" and s.tags[kid] in VERB_TAGS for kid in s.kids[verb])
        if has_clause or clause.lemma in {"have", "do", "seem", "appear", "look", "get"}:
            return
        name = s.words[verb] if s.tags[verb] in {"VBG", "VBN"} else clause.lemma
        if clause.stranded and s.labels[verb] != "relcl" and clause.stranded[-1][0][0] == "by":
            name = " ".join([name, *clause.stranded[-1][0]])
        for subject in clause.subjects:
            self._add_attribute(subject, name, (verb,))

    def _verb_preposition(
        self,
        subjects: list[int],
        words: list[str],
        tokens: tuple[int, ...],
        preposition: int,
        direct: Sequence[int] = (),
    ) -> bool:
        """Relations through a preposition below a verb; `direct` are the verb's own objects.

        "Holding a bat in his hand" places the bat in the hand, "flying a kite at the beach" the flyer at the
        beach; the lexicon tells which.
        """
        found = False
        for more, more_tokens, objects in self._prepositional(preposition):
            if direct and self.rewrite:
                phrase = " ".join(more)
                table = self.lexicon.relations
                decision = table.get(f"{' '.join([*words, phrase])}^") or table.get(f"{phrase}^") or "="
                if decision != "=":
                    found = True
                    if decision.startswith("^"):
                        for holder, other in itertools.product(direct, objects):
                            self._raw_relation(holder, decision[1:], other, more_tokens)
                    continue
            for subject, other in itertools.product(subjects, objects):
                if not words and more == ["of"]:
                    self._attach(subject, more, other, more_tokens)
                elif not self._wears_color(subject, more, other):
                    self._add_relation(subject, " ".join([*words, *more]), other, (*tokens, *more_tokens))
                found = True
        return found

    def _nominal_predicate(self, subjects: list[int], noun: int) -> None:
        """As in "the animal is a dog"; after "there is" and "this is" the noun is its own subject."""
        targets = self._resolve(noun, noun)
        for subject in subjects:
            if subject in targets or subject not in self.object_at:
                continue
            for target in targets:
                if target in self.object_at:
                    self._add_attribute(subject, self.object_at[target].name, (target,))
                    if not any(target in (key[0], key[2]) for key in self.relations):
                        self.dropped.add(target)

    def _adjective(self, subjects: list[int], adjective: int, depth: int = 0) -> None:
        """Predicate adjectives: an attribute, or a relation where a preposition follows ("full of")."""
        s = self.s
        word = s.words[adjective]
        lemma = lemmatize_verb(word, self.lexicon.verb_lemmas) if s.tags[adjective] in VERB_TAGS else word
        found = False
        for kid in s.kids[adjective]:
            if s.labels[kid] in {"prep", "agent"}:
                found |= self._verb_preposition(subjects, [lemma], (adjective,), kid)
            elif (
                s.labels[kid] == "conj"
                and not self.nominal[kid]
                and depth < 8
                and s.tags[kid] not in VERB_TAGS - {"VBN"}
            ):
                self._adjective(subjects, kid, depth + 1)
        if (
            not found
            and any(letter.isalnum() for letter in word)
            and s.tags[adjective] not in {"WP", "WRB", "WDT", "DT", "EX"}
        ):
            tokens: tuple[int, ...] = (adjective,)
            if word in COLORS and adjective > 0 and s.words[adjective - 1] in SHADES:
                tokens, word = (adjective - 1, adjective), f"{s.words[adjective - 1]} {word}"
            for subject in subjects:
                self._add_attribute(subject, NUMBERS.get(word, word), tokens)

    def _adjective_predicate(self, adjective: int) -> None:
        """Adjectives in a verb's place: "man ready to swing", "bowl full of fruit"."""
        subjects = self._subjects_of(adjective)
        if subjects:
            self._adjective(subjects, adjective)

    def _root_preposition(self, token: int) -> None:
        """A parse headed by its preposition ("is the circle left of the square")."""
        s = self.s
        left = [kid for kid in s.kids[token] if kid < token and self.nominal[kid]]
        if left:
            for words, tokens, objects in self._prepositional(token):
                for subject, other in itertools.product(self._resolve(left[-1], token), objects):
                    self._attach(subject, words, other, tokens)

    # -- the end

    def _drop_repeated_possession(self) -> None:
        """As in "the ground has snow on it", which says "snow on ground", once."""
        places = {(key[2], key[0]) for key in self.relations if key[1] not in {"have", "with"}}
        for key in list(self.relations):
            if key[1] in {"have", "with"} and (key[0], key[2]) in places:
                del self.relations[key]

    def graph(self, tokens: Sequence[str]) -> TextGraph:
        used = {noun for noun, _ in self.attributes}
        for subject, _, other in self.relations:
            used.update((subject, other))
        kept = [token for token in sorted(self.object_at) if token not in self.dropped or token in used]
        index = {token: position for position, token in enumerate(kept)}
        return TextGraph(
            tokens=tuple(tokens),
            objects=tuple(self.object_at[token] for token in kept),
            attributes=tuple(
                TextAttribute(index[noun], name, words)
                for (noun, name), words in sorted(self.attributes.items())
            ),
            relations=tuple(
                TextRelation(index[subject], predicate, index[other], words)
                for (subject, predicate, other), words in sorted(self.relations.items())
                if predicate
            ),
        )
