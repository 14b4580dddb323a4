"""Train the caption parser that ships in `tbkin_core/resources/parser` (a spaCy pipeline of a few MB).

    cd examples/shipped_models
    python train_parser.py UD_English-EWT/ first/
    python train_parser.py UD_English-EWT/ second/ --captions FACTUAL/train.csv --teacher first/
    python train_parser.py UD_English-EWT/ parser/ --captions FACTUAL/train.csv --teacher second/

The English Web Treebank (Universal Dependencies) is converted to the label scheme of spaCy's own English
pipelines: prepositions head their objects, the copula heads its predicate, conjuncts form a chain. Captions
are lower-case noun phrases without a final period, so the training sentences are also shown lower-cased,
without their punctuation, and cut down to noun phrases ("the man is riding a horse" to "man riding a
horse"). With `--captions`, captions with human-made scene graphs join in: those that a first pipeline
(`--teacher`) parses to exactly the graph their annotator drew.

The output holds the pipeline (tok2vec, tagger, parser, attribute_ruler), `lemmas.json` and `adjectives.txt`
(which `lemma_tables.py` makes of the treebank's and WordNet's words; `--lemmas-only` makes nothing else), and
`lexicon.json`, what the rules in `caption_rules.py` know of compounds and of how annotators word relations;
the rules serve only to find the captions that were parsed correctly.
`train_scene_graphs.py` trains the network that reads the graphs.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import spacy
from caption_rules import Lexicon, graph_from_parse
from factual import (
    Tuples,
    graph_tuples,
    lemmatize_phrase,
    parse_factual_graph,
    read_factual,
)
from lemma_tables import lemma_tables, only_adjectives, wordnet
from spacy.language import Language
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.batchers import minibatch_by_words
from spacy.util import compile_infix_regex, fix_random_seed, load_model_from_config
from thinc.api import Config

from tbkin_core.names.lexicon import lemmatize_noun, lemmatize_verb
from tbkin_core.parsing.text_graph import TextGraph

ROOT = -1
CONTENT_TAGS = {"NN", "NNS", "NNP", "NNPS"}
NOMINAL_TAGS = CONTENT_TAGS | {"PRP", "CD", "DT", "WP", "WDT", "EX", "$", "ADD", "FW"}
ADJECTIVE_TAGS = {"JJ", "JJR", "JJS"}
VERB_TAGS = {"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"}

# Universal Dependencies relation -> ClearNLP-like relation, where no structure changes.
LABELS = {
    "nsubj": "nsubj",
    "nsubj:pass": "nsubjpass",
    "nsubj:outer": "nsubj",
    "csubj": "csubj",
    "csubj:outer": "csubj",
    "csubj:pass": "csubjpass",
    "obj": "dobj",
    "iobj": "dative",
    "obl": "npadvmod",
    "obl:unmarked": "npadvmod",
    "obl:agent": "agent",
    "nmod": "nmod",
    "nmod:unmarked": "npadvmod",
    "nmod:poss": "poss",
    "aux": "aux",
    "aux:pass": "auxpass",
    "compound:prt": "prt",
    "acl:relcl": "relcl",
    "advcl:relcl": "relcl",
    "det:predet": "predet",
    "cc:preconj": "preconj",
    "discourse": "intj",
    "vocative": "npadvmod",
    "flat": "compound",
    "root": "ROOT",
    "fixed": "prep",
    "list": "dep",
    "goeswith": "dep",
    "reparandum": "dep",
    "orphan": "dep",
    "cop": "aux",
    "dislocated": "dep",
}


@dataclass(slots=True)
class Tree:
    """One sentence: parallel lists over its tokens; the root's head is `ROOT`."""

    words: list[str]
    lemmas: list[str]
    tags: list[str]
    heads: list[int]
    labels: list[str]
    spaces: list[bool] = field(default_factory=list)

    def children(self) -> list[list[int]]:
        """Children of every token, left to right."""
        result: list[list[int]] = [[] for _ in self.words]
        for token, head in enumerate(self.heads):
            if head != ROOT:
                result[head].append(token)
        return result

    def subtree(self, root: int) -> list[int]:
        """Tokens under `root`, itself included, in order."""
        children = self.children()
        found, stack = [], [root]
        while stack:
            token = stack.pop()
            found.append(token)
            stack.extend(children[token])
        return sorted(found)

    def keep(self, tokens: Sequence[int], root: int, reattached: dict[int, tuple[int, str]]) -> Tree:
        """The tree over `tokens` only; `reattached` gives tokens a new (head, label)."""
        position = {token: index for index, token in enumerate(tokens)}
        heads, labels = [], []
        for token in tokens:
            head, label = reattached.get(token, (self.heads[token], self.labels[token]))
            if token == root:
                head, label = ROOT, "ROOT"
            heads.append(ROOT if head == ROOT else position.get(head, position[root]))
            labels.append(label)
        return Tree(
            [self.words[token] for token in tokens],
            [self.lemmas[token] for token in tokens],
            [self.tags[token] for token in tokens],
            heads,
            labels,
            [self.spaces[token] for token in tokens],
        )


def read_conllu(path: Path) -> Iterator[Tree]:
    """Sentences of a CoNLL-U file (plain or .gz), as annotated."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows: list[list[str]] = []
        for line in lines:
            line = line.rstrip("\n")
            if line.startswith("#"):
                continue
            if line:
                columns = line.split("\t")
                if columns[0].isdigit():
                    rows.append(columns)
            elif rows:
                yield Tree(
                    [row[1].replace(" ", "") for row in rows],
                    # The lemma of a misspelt word is that of another word.
                    ["_" if "Typo=Yes" in row[5] else row[2] for row in rows],
                    [row[4] for row in rows],
                    [int(row[6]) - 1 for row in rows],
                    [row[7] for row in rows],
                    ["SpaceAfter=No" not in row[9] for row in rows],
                )
                rows = []


class _Conversion:
    """A tree on its way from one scheme to the other."""

    def __init__(self, tree: Tree) -> None:
        self.words, self.tags, self.lemmas = tree.words, tree.tags, tree.lemmas
        self.heads, self.labels = list(tree.heads), list(tree.labels)
        self.size = len(tree.words)

    def children_of(self, token: int) -> list[int]:
        return [child for child in range(self.size) if self.heads[child] == token]

    def head_last_word_of_names(self) -> None:
        """Names: Universal Dependencies head the first word, ClearNLP the last."""
        heads, labels = self.heads, self.labels
        for token in range(self.size):
            flat = [child for child in self.children_of(token) if labels[child] == "flat"]
            if not flat or flat[0] < token:
                continue
            new_head = flat[-1]
            for child in self.children_of(token):
                if child != new_head:
                    heads[child] = new_head
            heads[new_head], labels[new_head] = heads[token], labels[token]
            heads[token], labels[token] = new_head, "compound"

    def chain_conjuncts(self) -> None:
        """Conjuncts: from a star on the first one to a chain; a conjunction belongs to the one before it."""
        words, heads, labels = self.words, self.heads, self.labels
        for token in range(self.size):
            conjuncts = [
                child for child in self.children_of(token) if labels[child] == "conj" and child > token
            ]
            previous = token
            for conjunct in conjuncts:
                heads[conjunct] = previous
                for child in self.children_of(conjunct):
                    if child < conjunct and (
                        labels[child] == "cc" or (labels[child] == "punct" and words[child] == ",")
                    ):
                        heads[child] = previous
                previous = conjunct

    def head_predicates_by_copula(self) -> None:
        """`be` becomes the head of its predicate and takes what belongs to the clause."""
        words, tags, heads, labels = self.words, self.tags, self.heads, self.labels
        for predicate in range(self.size):
            copulas = [child for child in self.children_of(predicate) if labels[child] == "cop"]
            if not copulas:
                continue
            copula = copulas[-1]
            is_adjective = tags[predicate] in ADJECTIVE_TAGS or tags[predicate] in {"VBN", "VBG"}
            for child in self.children_of(predicate):
                label = labels[child]
                if child == copula:
                    continue
                clausal = label.split(":")[0] in {
                    "nsubj", "csubj", "aux", "mark", "expl", "advcl", "parataxis", "discourse", "vocative",
                    "ccomp",
                } or label == "cop"  # fmt: skip
                if label == "advmod":
                    modifies = is_adjective and copula < child < predicate
                    clausal = words[child].lower() in {"not", "n't", "also", "still", "just"} or not modifies
                    if (
                        not is_adjective
                        and copula < child
                        and child == predicate - 1
                        and tags[predicate] == "RB"
                    ):
                        clausal = False
                elif label.startswith("obl"):
                    clausal = not is_adjective or child < copula
                elif label in {"punct", "cc"}:
                    clausal = child < copula or child > predicate
                elif label == "conj":
                    clausal = any(
                        labels[other] == "cop" or labels[other].startswith("nsubj")
                        for other in self.children_of(child)
                    ) or (tags[child] in VERB_TAGS and not is_adjective)
                if clausal:
                    heads[child] = copula
            if any(heads[child] == copula and labels[child] == "conj" for child in range(self.size)):
                for child in self.children_of(predicate):
                    if labels[child] == "cc":
                        heads[child] = copula
            heads[copula], labels[copula] = heads[predicate], labels[predicate]
            heads[predicate] = copula
            if tags[predicate] in ADJECTIVE_TAGS or tags[predicate] == "VBN":
                labels[predicate] = "acomp"
            elif tags[predicate] in {"RB", "WRB", "RBR", "RP"}:
                labels[predicate] = "advmod"
            elif tags[predicate] in VERB_TAGS:
                labels[predicate] = "ccomp"
            else:
                labels[predicate] = "attr"

    def head_objects_by_preposition(self) -> None:
        """Prepositions head their objects."""
        words, tags, heads, labels = self.words, self.tags, self.heads, self.labels
        for noun in range(self.size):
            cases = [
                child
                for child in self.children_of(noun)
                if labels[child] == "case" and tags[child] != "POS" and child < noun
            ]
            if not cases:
                continue
            chain: list[int] = []
            for case in cases:
                chain.append(case)
                chain.extend(
                    child for child in self.children_of(case) if labels[child] == "fixed" and child < noun
                )
            label = labels[noun]
            if label == "obl:agent" and words[chain[0]].lower() == "by":
                new_label = "agent"
            elif label in {"root", "conj", "appos", "parataxis"}:
                new_label = label
            else:
                new_label = "prep"
            before = heads[noun]
            if (
                label == "conj"
                and before != ROOT
                and labels[before] in {"pobj", "pcomp"}
                and heads[before] < before
            ):
                before = heads[before]
                for child in range(self.size):
                    if heads[child] == heads[noun] and labels[child] == "cc" and child > heads[noun]:
                        heads[child] = before
            heads[chain[0]], labels[chain[0]] = before, new_label
            for earlier, later in itertools.pairwise(chain):
                heads[later], labels[later] = earlier, "prep"
            # What stands before the preposition cannot hang below the noun in a projective tree.
            for child in self.children_of(noun):
                if child < chain[0]:
                    heads[child] = chain[0]
            heads[noun] = chain[-1]
            labels[noun] = "pcomp" if tags[noun] in {"RB", "WRB", "IN"} or tags[noun] in VERB_TAGS else "pobj"
            if new_label == "root":
                for child in self.children_of(noun):
                    if labels[child] in {"punct", "parataxis", "discourse"} and child > noun:
                        heads[child] = chain[0]

    def head_gerunds_by_preposition(self) -> None:
        """Gerunds after a preposition ("without looking") become its complements."""
        tags, heads, labels = self.tags, self.heads, self.labels
        for verb in range(self.size):
            if tags[verb] != "VBG" or labels[verb] not in {"advcl", "acl"}:
                continue
            below = self.children_of(verb)
            marks = [child for child in below if labels[child] == "mark" and tags[child] == "IN"]
            if len(marks) == 1 and not any(labels[child].startswith("nsubj") for child in below):
                mark = marks[0]
                heads[mark], labels[mark] = heads[verb], "prep"
                heads[verb], labels[verb] = mark, "pcomp"

    def relabel(self) -> None:
        """The labels that depend on tags and neighbours, then those that `LABELS` renames."""
        words, tags, heads, labels = self.words, self.tags, self.heads, self.labels
        for token in range(self.size):
            label = labels[token]
            head = heads[token]
            if label == "mark" and tags[token] == "TO":
                label = "aux"
            elif label == "advmod" and words[token].lower() in {"not", "n't", "n’t"}:
                label = "neg"
            elif label == "advmod" and head != ROOT and tags[head] == "CD":
                label = "quantmod"
            elif label == "xcomp":
                if tags[token] in ADJECTIVE_TAGS:
                    label = "acomp"
                elif tags[token] in NOMINAL_TAGS:
                    label = "oprd"
            elif label == "nmod:desc":
                label = "compound" if token < head else "appos"
            elif label.startswith("nsubj") and head != ROOT and self.lemmas[head] == "be":
                if any(heads[child] == head and labels[child] == "expl" for child in range(self.size)):
                    label = "attr" if token > head else label
            elif label == "acl" and token < head:
                label = "amod"
            elif label == "amod" and head != ROOT and tags[head] in VERB_TAGS:
                label = "advmod"
            labels[token] = LABELS.get(label, label)


def convert(tree: Tree) -> Tree:
    """Universal Dependencies to the ClearNLP-like scheme of spaCy's English pipelines."""
    conversion = _Conversion(tree)
    conversion.head_last_word_of_names()
    conversion.chain_conjuncts()
    conversion.head_predicates_by_copula()
    conversion.head_objects_by_preposition()
    conversion.head_gerunds_by_preposition()
    conversion.relabel()
    heads, labels = conversion.heads, conversion.labels
    roots = [token for token, head in enumerate(heads) if head == ROOT]
    if len(roots) != 1 or _has_cycle(heads):
        raise ValueError(f"conversion broke the tree of {' '.join(tree.words)!r}")
    labels[roots[0]] = "ROOT"
    return replace(tree, heads=heads, labels=labels)


def _has_cycle(heads: Sequence[int]) -> bool:
    for token in range(len(heads)):
        steps, current = 0, token
        while current != ROOT:
            current = heads[current]
            steps += 1
            if steps > len(heads):
                return True
    return False


def join_hyphens(tree: Tree) -> Tree:
    """Words joined by a hyphen between letters ("multi-colored") become one token, as for the tokeniser."""
    size = len(tree.words)
    group = list(range(size))
    for token in range(1, size - 1):
        joined = (
            tree.words[token] in {"-", "–"}
            and not tree.spaces[token - 1]
            and not tree.spaces[token]
            and tree.words[token - 1][-1].isalpha()
            and tree.words[token + 1][0].isalpha()
        )
        if joined:
            group[token] = group[token + 1] = group[token - 1]
    if len(set(group)) == size:
        return tree
    tops: dict[int, int] = {}
    for token in range(size):
        above = tree.heads[token]
        while above != ROOT and group[above] != group[token]:
            above = tree.heads[above]
        known = tops.get(group[token])
        if above == ROOT and (known is None or tree.labels[known] == "punct"):  # no ancestor in the same word
            tops[group[token]] = token
    order = sorted(tops)
    position = {first: index for index, first in enumerate(order)}
    members = {first: [token for token in range(size) if group[token] == first] for first in order}
    heads, labels, tags = [], [], []
    for first in order:
        top = tops[first]
        heads.append(ROOT if tree.heads[top] == ROOT else position[group[tree.heads[top]]])
        labels.append(tree.labels[top])
        is_modifier = len(members[first]) > 1 and tree.labels[top] == "amod"
        tags.append("JJ" if is_modifier else tree.tags[top])
    return Tree(
        ["".join(tree.words[token] for token in members[first]) for first in order],
        ["".join(tree.lemmas[token] for token in members[first]) for first in order],
        tags,
        heads,
        labels,
        [tree.spaces[members[first][-1]] for first in order],
    )


def caption_like(tree: Tree, chance: random.Random) -> Tree | None:
    """A caption-like cut of a tree: a noun phrase, or a clause without its `be`; None where there is none."""
    children = tree.children()
    candidates: list[tuple[list[int], int, dict[int, tuple[int, str]]]] = []
    for token, tag in enumerate(tree.tags):
        below = children[token]
        if tag in CONTENT_TAGS and tree.labels[token] not in {"compound", "ROOT", "conj", "npadvmod"}:
            tokens = tree.subtree(token)
            if 3 <= len(tokens) <= 18 and tokens[-1] - tokens[0] == len(tokens) - 1:
                candidates.append((tokens, token, {}))
        elif tag in VERB_TAGS:
            subjects = [child for child in below if tree.labels[child] in {"nsubj", "nsubjpass"}]
            if len(subjects) != 1 or subjects[0] > token:
                continue
            subject = subjects[0]
            if tree.tags[subject] not in CONTENT_TAGS:
                continue
            auxiliaries = [child for child in below if tree.labels[child] in {"aux", "auxpass", "neg"}]
            right = [
                child
                for child in below
                if child > token
                and tree.labels[child] in {"dobj", "prep", "prt", "agent", "advmod", "acomp", "attr"}
            ]
            tokens = [*tree.subtree(subject), token]
            for child in right:
                tokens += tree.subtree(child)
            tokens.sort()
            if not 3 <= len(tokens) <= 18:
                continue
            if auxiliaries and tag in {"VBG", "VBN"}:
                if tree.subtree(subject)[-1] < token:
                    candidates.append((tokens, subject, {token: (subject, "acl")}))
            elif not auxiliaries and (right or tag == "VBZ"):
                candidates.append((tokens, token, {}))
    if not candidates:
        return None
    tokens, root, reattached = chance.choice(candidates)
    if chance.random() < 0.4:  # headline style: no articles
        articles = {
            token
            for token in tokens
            if tree.labels[token] == "det"
            and tree.words[token].lower() in {"a", "an", "the"}
            and not children[token]
        }
        if len(articles) < len(tokens):
            tokens = [token for token in tokens if token not in articles]
    while len(tokens) > 2 and tree.labels[tokens[-1]] == "punct":
        tokens = tokens[:-1]
    return tree.keep(tokens, root, reattached)


class _Question:
    """A question that is put together from a caption; its tokens as parallel lists.

    Attributes:
        tree: The caption, headed by a noun.
        clause: What is said of the noun after it, a participle or preposition; None where nothing is.
        subject: Tokens of the noun phrase.
    """

    def __init__(self, tree: Tree, root: int, clause: int | None, chance: random.Random) -> None:
        self.tree, self.root, self.clause, self.chance = tree, root, clause, chance
        self.subject = [token for token in tree.subtree(root) if token <= root]
        self.rest = tree.subtree(clause) if clause is not None else []
        self.clause_tag = tree.tags[clause] if clause is not None else ""
        self.is_plural = tree.tags[root] == "NNS"
        self.be, self.be_tag = ("are", "VBP") if self.is_plural else ("is", "VBZ")
        self.words: list[str] = []
        self.tags: list[str] = []
        self.heads: list[int] = []
        self.labels: list[str] = []

    def add(self, word: str, tag: str, label: str, head: int) -> int:
        """One more word; returns its place."""
        self.words.append(word)
        self.tags.append(tag)
        self.labels.append(label)
        self.heads.append(head)
        return len(self.words) - 1

    def copy(self, tokens: Sequence[int], top: int, label: str, head: int) -> int:
        """Tokens of the caption, of which `top` gets the label and head; returns its place."""
        tree = self.tree
        position = {token: len(self.words) + index for index, token in enumerate(tokens)}
        for token in tokens:
            if token == top:
                self.add(tree.words[token], tree.tags[token], label, head)
            else:
                above = position.get(tree.heads[token], position[top])
                self.add(tree.words[token], tree.tags[token], tree.labels[token], above)
        return position[top]

    def noun_phrase(self, label: str, head: int, determiner: str = "the") -> int:
        """The caption's noun with a determiner; returns its place."""
        tree, tokens = self.tree, self.subject
        own = [
            token
            for token in tokens
            if tree.heads[token] == self.root and tree.labels[token] in {"det", "poss", "nummod"}
        ]
        indefinite = own and own[0] == tokens[0] and tree.words[own[0]] in {"a", "an"}
        if indefinite and determiner == "the":
            tokens, own = tokens[1:], []
        if own:
            return self.copy(tokens, self.root, label, head)
        place = self.add(determiner, "DT", "det", -2)
        top = self.copy(tokens, self.root, label, head)
        self.heads[place] = top
        return top

    def ask_with_verb(self, kind: str) -> int:
        """With the verb of the clause; returns the place of the root."""
        tree, clause, heads = self.tree, self.clause, self.heads
        assert clause is not None
        objects = [child for child in tree.children()[clause] if tree.labels[child] == "dobj"]
        active = self.clause_tag == "VBG"
        if kind == "what" and objects and active:  # what is the man holding
            gone = set(tree.subtree(objects[0]))
            rest = [token for token in self.rest if token not in gone]
            before = [
                self.add("what", "WP", "dobj", -2),
                self.add(self.be, self.be_tag, "aux", -2),
                self.noun_phrase("nsubj", -2),
            ]
        elif kind == "what":  # what is sitting on the table
            rest = self.rest
            before = [
                self.add(self.chance.choice(["what", "who"]), "WP", "nsubj", -2),
                self.add("is", "VBZ", "aux" if active else "auxpass", -2),
            ]
        else:  # is the man holding an umbrella
            rest = self.rest
            before = [
                self.add(self.be, self.be_tag, "aux" if active else "auxpass", -2),
                self.noun_phrase("nsubj" if active else "nsubjpass", -2),
            ]
        verb = self.copy(rest, clause, "ROOT", ROOT)
        for place in before:
            heads[place] = verb
        return verb

    def ask_with_preposition(self, kind: str) -> int:
        """With a clause that is a prepositional phrase; returns the place of the root."""
        assert self.clause is not None
        if kind == "what":  # what is on the table
            self.add("what", "WP", "nsubj", 1)
            main = self.add("is", "VBZ", "ROOT", ROOT)
        elif kind == "which":  # the cup is on the table
            top = self.noun_phrase("nsubj", -2)
            main = self.add(self.be, self.be_tag, "ROOT", ROOT)
            self.heads[top] = main
        else:  # is the cup on the table
            main = self.add(self.be, self.be_tag, "ROOT", ROOT)
            self.noun_phrase("nsubj", main)
        self.copy(self.rest, self.clause, "prep", main)
        return main

    def ask_of_noun(self, kind: str) -> int:
        """About the noun alone; returns the place of the root."""
        if kind == "color":
            self.add("what", "WDT", "det", 1)
            self.add(self.chance.choice(["color", "color", "kind", "shape"]), "NN", "attr", 2)
            main = self.add(self.be, self.be_tag, "ROOT", ROOT)
            self.noun_phrase("nsubj", main)
        elif kind == "where":
            self.add("where", "WRB", "advmod", 1)
            main = self.add(self.be, self.be_tag, "ROOT", ROOT)
            self.noun_phrase("nsubj", main)
        elif kind == "many":
            main = self.ask_how_many()
        else:
            main = self.add(self.be, self.be_tag, "ROOT", ROOT)
            self.add("there", "EX", "expl", main)
            self.noun_phrase("attr", main, "any" if self.is_plural else "a")
        return main

    def ask_how_many(self) -> int:
        """For the number of things; returns the place of the root."""
        tree = self.tree
        bare = [
            token
            for token in self.subject
            if tree.heads[token] != self.root or tree.labels[token] not in {"det", "poss", "nummod"}
        ]
        self.add("how", "WRB", "advmod", 1)
        many = self.add("many", "JJ", "amod", -2)
        main = len(self.words) + len(bare)
        self.heads[many] = self.copy(bare, self.root, "attr", main)
        main = self.add("are", "VBP", "ROOT", ROOT)
        if self.clause is not None and self.clause_tag == "IN":
            self.copy(self.rest, self.clause, "prep", main)
        else:
            self.add("there", "EX", "expl", main)
        return main

    def finished(self) -> Tree | None:
        """The question's tree; None where it came out as none."""
        if min(self.heads) < ROOT or self.heads.count(ROOT) != 1 or _has_cycle(self.heads):
            return None
        spaces = [True] * len(self.words)
        return Tree(self.words, self.words, self.tags, self.heads, self.labels, spaces)


def question(tree: Tree, chance: random.Random) -> Tree | None:
    """A question about a caption ("what is the man holding ?", "is the cup on the table ?"), or None."""
    root = tree.heads.index(ROOT)
    if tree.tags[root] not in {"NN", "NNS"}:
        return None
    children = tree.children()[root]
    clauses = [
        child
        for child in children
        if child > root
        and tree.labels[child] in {"acl", "prep"}
        and tree.tags[child] in {"VBG", "VBN", "IN"}
        and tree.words[child] != "of"
    ]
    if any(child > root and child not in clauses for child in children) or any(
        tree.labels[child] == "det" and tree.words[child] in {"some", "no", "another"} for child in children
    ):
        return None
    if any(child < root and tree.subtree(child)[-1] > root for child in children):
        return None
    asked = _Question(tree, root, clauses[-1] if clauses else None, chance)
    kind = chance.choice(
        ["color", "where", "many", "there", "clause", "clause", "clause", "what", "what", "which"]
    )
    if asked.clause is None and kind in {"clause", "what", "which"}:
        kind = chance.choice(["color", "where", "there"])
    if kind == "many" and not asked.is_plural:
        kind = "there"
    if kind not in {"clause", "what", "which"}:
        main = asked.ask_of_noun(kind)
    elif asked.clause_tag in {"VBG", "VBN"}:
        main = asked.ask_with_verb(kind)
    else:
        main = asked.ask_with_preposition(kind)
    if chance.random() < 0.8 and kind != "which":
        asked.add("?", ".", "punct", main)
    return asked.finished()


def lowered(tree: Tree) -> Tree:
    """The tree in lower case."""
    return replace(tree, words=[word.lower() for word in tree.words])


def without_final_punctuation(tree: Tree) -> Tree:
    """The tree without its last token where that is a childless period or the like."""
    last = len(tree.words) - 1
    if last < 1 or tree.labels[last] != "punct" or last in tree.heads:
        return tree
    return tree.keep(range(last), tree.heads.index(ROOT), {})


def augmented(trees: Sequence[Tree], chance: random.Random) -> list[Tree]:
    """One epoch: every sentence, lower-cased or unpunctuated at random, and as many caption-like cuts."""
    epoch = []
    for tree in trees:
        whole = without_final_punctuation(tree) if chance.random() < 0.3 else tree
        epoch.append(lowered(whole) if chance.random() < 0.4 else whole)
        cut = caption_like(tree, chance)
        if cut is not None:
            epoch.append(lowered(cut) if chance.random() < 0.8 else cut)
    return epoch


def to_example(nlp: Language, tree: Tree) -> Example:
    """spaCy training example with the gold tokens."""
    heads = [index if head == ROOT else head for index, head in enumerate(tree.heads)]
    gold = Doc(nlp.vocab, words=tree.words, spaces=tree.spaces, tags=tree.tags, heads=heads, deps=tree.labels)
    return Example(Doc(nlp.vocab, words=tree.words, spaces=tree.spaces), gold)


CONFIG = """
[nlp]
lang = "en"
pipeline = ["tok2vec", "tagger", "parser"]

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tok2vec.model]
@architectures = "spacy.HashEmbedCNN.v2"
pretrained_vectors = null
width = 96
depth = 4
embed_size = 2500
window_size = 1
maxout_pieces = 3
subword_features = true

[components.tagger]
factory = "tagger"

[components.tagger.model]
@architectures = "spacy.Tagger.v2"
nO = null

[components.tagger.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 96

[components.parser]
factory = "parser"
learn_tokens = false
min_action_freq = 20

[components.parser.model]
@architectures = "spacy.TransitionBasedParser.v2"
state_type = "parser"
extra_state_tokens = false
hidden_width = 64
maxout_pieces = 2
use_upper = true
nO = null

[components.parser.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 96
"""

# Penn tag -> universal part of speech; `IN`, verbs and the like are refined by the dependency label.
UNIVERSAL = {
    "ADD": "X", "AFX": "ADJ", "CC": "CCONJ", "CD": "NUM", "DT": "DET", "EX": "PRON", "FW": "X", "GW": "X",
    "HYPH": "PUNCT", "IN": "ADP", "JJ": "ADJ", "JJR": "ADJ", "JJS": "ADJ", "LS": "X", "MD": "AUX",
    "NFP": "PUNCT", "NN": "NOUN", "NNP": "PROPN", "NNPS": "PROPN", "NNS": "NOUN", "PDT": "DET", "POS": "PART",
    "PRP": "PRON", "PRP$": "PRON", "RB": "ADV", "RBR": "ADV", "RBS": "ADV", "RP": "ADP", "SYM": "SYM",
    "TO": "PART", "UH": "INTJ",
    "VB": "VERB", "VBD": "VERB", "VBG": "VERB", "VBN": "VERB", "VBP": "VERB", "VBZ": "VERB", "WDT": "PRON",
    "WP": "PRON", "WP$": "PRON", "WRB": "ADV", "$": "SYM", ".": "PUNCT", ",": "PUNCT", ":": "PUNCT",
    "``": "PUNCT", "''": "PUNCT", "-LRB-": "PUNCT", "-RRB-": "PUNCT",
}  # fmt: skip


def add_attribute_ruler(nlp: Language) -> None:
    """`token.pos_` from tag and dependency label (`doc.noun_chunks` needs it)."""
    ruler = nlp.add_pipe("attribute_ruler")
    patterns: list[list[dict[str, object]]]
    for tag, pos in UNIVERSAL.items():
        ruler.add([[{"TAG": tag}]], {"POS": pos})  # type: ignore[attr-defined]
    patterns = [[{"TAG": {"IN": sorted(VERB_TAGS)}, "DEP": {"IN": ["aux", "auxpass"]}}]]
    patterns.append(
        [
            {
                "LOWER": {"IN": ["be", "is", "are", "was", "were", "been", "being", "am", "'s", "'re"]},
                "TAG": {"IN": sorted(VERB_TAGS)},
            }
        ]
    )
    ruler.add(patterns, {"POS": "AUX"})  # type: ignore[attr-defined]
    ruler.add([[{"TAG": "IN", "DEP": "mark"}]], {"POS": "SCONJ"})  # type: ignore[attr-defined]
    ruler.add([[{"TAG": "DT", "DEP": {"NOT_IN": ["det", "predet"]}}]], {"POS": "PRON"})  # type: ignore[attr-defined]
    ruler.add([[{"TAG": "RB", "DEP": "neg"}]], {"POS": "PART"})  # type: ignore[attr-defined]


def train(
    trees: Sequence[Tree],
    captions: Sequence[Tree],
    dev: Sequence[Tree],
    *,
    epochs: int,
    seed: int,
    snapshot: Path | None = None,
) -> Language:
    """Train tok2vec, tagger and parser; the weights are averaged over the updates.

    Args:
        trees: Converted treebank sentences.
        captions: Trees of captions, shown as they are in every epoch.
        dev: Converted sentences to report on.
        epochs: Passes over the data.
        seed: Of the initial weights, the order and the augmentation.
        snapshot: Directory that receives the pipeline every third epoch.
    """
    fix_random_seed(seed)
    chance = random.Random(seed)
    nlp = load_model_from_config(Config().from_str(CONFIG), auto_fill=True)
    sample = [to_example(nlp, tree) for tree in [*trees, *captions]]
    optimizer = nlp.initialize(lambda: sample)
    dev_examples = [to_example(nlp, tree) for tree in dev]
    for epoch in range(epochs):
        started = time.monotonic()
        data = augmented(trees, chance) + list(captions)
        for tree in chance.sample(captions, len(captions) // 5):
            asked = question(tree, chance)
            if asked is not None:
                data.append(asked)
        chance.shuffle(data)
        losses: dict[str, float] = {}
        # Small batches first, larger ones and a lower rate later; averaging does the rest.
        words_per_batch = int(400 + 1200 * min(1.0, 2 * epoch / epochs))
        optimizer.learn_rate = 0.001 * (1.0 - 0.9 * epoch / epochs)
        examples = [to_example(nlp, tree) for tree in data]
        for batch in minibatch_by_words(examples, size=words_per_batch):
            nlp.update(batch, sgd=optimizer, drop=0.1, losses=losses)
        line = f"epoch {epoch + 1}/{epochs}  {time.monotonic() - started:.0f} s"
        line += "".join(f"  {name} {loss:.0f}" for name, loss in losses.items())
        if (epoch + 1) % 3 == 0 or epoch + 1 == epochs:
            with nlp.use_params(optimizer.averages):
                scores = nlp.evaluate(dev_examples)
                if snapshot is not None:
                    snapshot.mkdir(parents=True, exist_ok=True)
                    nlp.to_disk(snapshot)
            for key in ("tag_acc", "dep_uas", "dep_las"):
                line += f"  {key} {100 * scores[key]:.2f}"
        print(line, flush=True)
    with nlp.use_params(optimizer.averages):
        averaged = nlp.to_bytes()
    return nlp.from_bytes(averaged)


def whole_hyphenated_words(nlp: Language) -> None:
    """Let the tokeniser keep "multi-colored" and "t-shirt" whole."""
    tokenizer = nlp.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    infixes = [
        infix
        for infix in nlp.Defaults.infixes or ()
        if isinstance(infix, str) and "(?:-|–|—|--|---|——|~)" not in infix
    ]
    tokenizer.infix_finditer = compile_infix_regex(infixes).finditer


def describe(nlp: Language) -> None:
    """Name, version and sources in the pipeline's meta.json."""
    nlp.meta.update(
        name="tbkin_captions",
        version="1.0",
        spacy_version=">=3.8,<4",
        description="English tagger and parser for captions, questions and referring expressions",
        license="CC BY-SA 4.0",
        sources=[
            {"name": "UD English EWT 2.15", "license": "CC BY-SA 4.0"},
            {"name": "FACTUAL", "license": "MIT"},
        ],
    )


# ------------------------------------------------------------------------------- lexicon and captions


def _decide(counts: Counter[str], least: int, share: float) -> str | None:
    if not counts:
        return None
    best, count = counts.most_common(1)[0]
    return best if count >= least and count >= share * sum(counts.values()) else None


Parse = tuple[list[str], list[str], list[str], list[int]]


def parse_captions(nlp: Language, captions: Sequence[str]) -> list[Parse]:
    """(words, tags, labels, heads) of every caption."""
    parses = []
    for doc in nlp.pipe((" ".join(caption.split()) for caption in captions), batch_size=256):
        parses.append(
            ([t.text for t in doc], [t.tag_ for t in doc], [t.dep_ for t in doc], [t.head.i for t in doc])
        )
    return parses


def learn_agents(golds: Sequence[Tuples]) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Nouns that act, verbs whose subjects mostly do, and "noun verb" pairs of the other subjects.

    What looks, wears, eats, rides or watches acts. A verb is agentive when 6 of 10 of its subjects act.
    """
    subjects: dict[str, Counter[str]] = defaultdict(Counter)
    for gold in golds:
        for entry in gold:
            if len(entry) == 3:
                subjects[entry[1].split()[0]][entry[0]] += 1
    acts = Counter[str]()
    for verb in ("look", "wear", "eat", "ride", "watch", "play", "walk"):
        acts.update(subjects[verb])
    agents = frozenset(noun for noun, count in acts.items() if count >= 3)
    agentive: set[str] = set()
    inanimate: set[str] = set()
    for verb, counts in subjects.items():
        total = sum(counts.values())
        if total >= 8 and sum(count for noun, count in counts.items() if noun in agents) >= 0.6 * total:
            agentive.add(verb)
            inanimate.update(
                f"{noun} {verb}" for noun, count in counts.items() if noun not in agents and count > 1
            )
    return agents, frozenset(agentive), frozenset(inanimate)


def learn_compounds(
    parses: Sequence[Parse], golds: Sequence[Tuples], nouns: dict[str, str]
) -> dict[str, str]:
    """Decisions on nouns and adjectives before a noun, as `Lexicon.compounds` holds them."""
    compounds: dict[str, Counter[str]] = defaultdict(Counter)
    adjectives: dict[str, Counter[str]] = defaultdict(Counter)
    for (words, tags, labels, heads), gold in zip(parses, golds, strict=True):
        lowered_words = [word.lower() for word in words]
        for token in range(len(words) - 1):
            head = heads[token]
            if labels[token] not in {"compound", "amod", "nmod"} or head <= token:
                continue
            first, noun = lowered_words[token], lemmatize_noun(lowered_words[head], nouns)
            single = lemmatize_noun(first, nouns)
            if head == token + 1 and (f"{single} {noun}",) in gold:
                decision = "merge"
            elif head == token + 1 and (f"{single}{noun}",) in gold:
                decision = "join"
            elif any(len(entry) == 2 and entry[0] == noun and entry[1][:4] == first[:4] for entry in gold):
                decision = "attribute"  # also "wooden" for "wood"
            elif (single, "have", noun) in gold:
                decision = "have"
            elif (noun, "in", single) in gold:
                decision = "in"
            elif (noun,) in gold and (single,) not in gold:
                decision = "drop"
            else:
                continue
            if tags[token] in CONTENT_TAGS:
                compounds[f"{first} {noun}"][decision] += 1
                if decision == "join":
                    continue
                compounds[first][decision] += 1
                compounds[f"* {noun}"][decision] += 1
            else:
                adjectives[f"{first} {noun}"][decision] += 1
                adjectives[first][decision] += 1
    table: dict[str, str] = {}
    for key, counts in compounds.items():
        general = " " not in key or key.startswith("* ")
        best = _decide(counts, 3 if general else 1, 0.5 if not key.startswith("* ") else 0.6)
        if best and (general or counts[best] > 1 or best == "merge"):
            table[key] = best
    for key, counts in adjectives.items():
        if " " not in key:
            if key not in table and _decide(counts, 2, 0.6) == "attribute":
                table[key] = "attribute"  # for where it is mistagged as a noun
        elif key not in table and _decide(counts, 2, 0.6) in {"merge", "join"}:
            table[key] = counts.most_common(1)[0][0]
    return table


class _GoldCounts:
    """How annotators word what the rules read off their captions' parses, outcome by outcome.

    Attributes:
        relations, attributes, partitives: Keys of the `Lexicon`'s tables -> outcomes.
    """

    def __init__(self) -> None:
        self.relations: dict[str, Counter[str]] = defaultdict(Counter)
        self.attributes: dict[str, Counter[str]] = defaultdict(Counter)
        self.partitives: dict[str, Counter[str]] = defaultdict(Counter)

    def count_relations(self, graph: TextGraph, gold: Tuples) -> None:
        """What became of the relations that the rules read."""
        relations, partitives = self.relations, self.partitives
        names = [item.name for item in graph.objects]
        between: dict[tuple[str, str], list[str]] = defaultdict(list)
        for entry in gold:
            if len(entry) == 3:
                between[entry[0], entry[2]].append(entry[1])
        direct: dict[tuple[int, int], list[str]] = defaultdict(list)
        for relation in graph.relations:
            if " " not in relation.predicate:
                direct[relation.subject, relation.tokens[0]].append(names[relation.object])
        for relation in graph.relations:
            subject, other = names[relation.subject], names[relation.object]
            own = direct.get((relation.subject, relation.tokens[0]))
            if own and " " in relation.predicate and (subject,) in gold and (other,) in gold:
                held = [found for item in own for found in between.get((item, other), []) if item != other]
                choice = "=" if between.get((subject, other)) else f"^{held[0]}" if held else "-"
                relations[f"{relation.predicate}^"][choice] += 1
                relations[f"{relation.predicate.split(maxsplit=1)[1]}^"][choice] += 1
                continue
            if subject == other or (other,) not in gold:
                continue
            forward, backward = between.get((subject, other), []), between.get((other, subject), [])
            if relation.predicate == "of":
                if (subject,) in gold:
                    outcome = forward[0] if forward else f"~{backward[0]}" if backward else None
                    partitives[subject]["have"] += 1
                    if outcome:
                        relations[f"of<{subject}"][outcome] += 1
                elif (other, f"{subject} of") in gold:
                    partitives[subject][f"{subject} of"] += 1
                elif (other, subject) in gold:
                    partitives[subject][subject] += 1
                else:
                    partitives[subject][""] += 1
                continue
            if (subject,) not in gold:
                continue
            if relation.predicate in forward:
                outcome = relation.predicate
            elif len(forward) == 1:
                outcome = forward[0]
            elif not forward and len(backward) == 1:
                outcome = f"~{backward[0]}"
            elif forward or backward:
                continue
            else:
                outcome = "-"
            relations[relation.predicate][outcome] += 1
            relations[f"{relation.predicate}|{other}"][outcome] += 1

    def count_attributes(self, graph: TextGraph, gold: Tuples, verbs: dict[str, str]) -> None:
        """What became of the attributes that the rules read."""
        attributes = self.attributes
        names = [item.name for item in graph.objects]
        produced = {(names[item.object], item.name) for item in graph.attributes}
        for item in graph.attributes:
            name = names[item.object]
            if (name,) not in gold:
                continue
            if (name, lemmatize_phrase(item.name)) in gold:
                attributes[item.name][item.name] += 1
                continue
            verb = lemmatize_verb(item.name, verbs)
            if any(len(entry) == 3 and entry[1].split()[0] == verb for entry in gold):
                continue  # the parse missed what the verb goes with
            unclaimed = [
                entry[1] for entry in gold if len(entry) == 2 and entry[0] == name and entry not in produced
            ]
            alike = [found for found in unclaimed if found[:4] == item.name[:4]]
            unclaimed = alike or unclaimed
            attributes[item.name][unclaimed[0] if len(unclaimed) == 1 else ""] += 1

    def relation_table(self) -> dict[str, str]:
        """The decisions of `Lexicon.relations`."""
        table: dict[str, str] = {}
        for key, counts in self.relations.items():
            if "|" in key:
                continue
            outcome = _decide(counts, 2, 0.5)
            if key.endswith("^"):
                outcome = _decide(counts, 2 if " " in key else 4, 0.45)
                if outcome is not None:
                    table[key] = outcome
                continue
            default = "~have" if key.startswith("of<") else key
            if outcome is not None and outcome != default:
                table[key] = outcome
        for key, counts in self.relations.items():
            if "|" in key:
                predicate = key.split("|")[0]
                outcome = _decide(counts, 2, 0.55)
                if outcome is not None and outcome != table.get(predicate, predicate):
                    table[key] = outcome
        return table

    def attribute_table(self) -> dict[str, str]:
        """The decisions of `Lexicon.attributes`."""
        table = {}
        for name, counts in self.attributes.items():
            found = _decide(counts, 3, 0.55)
            if found is not None and found != name and lemmatize_phrase(name) != found:
                table[name] = found
        return table

    def partitive_table(self) -> dict[str, str]:
        """The decisions of `Lexicon.partitives`."""
        table = {}
        for name, counts in self.partitives.items():
            found = _decide(counts, 2, 0.4)
            if found is not None and found != "have":
                table[name] = found
        return table


def learn_lexicon(
    parses: Sequence[Parse], golds: Sequence[Tuples], nouns: dict[str, str], verbs: dict[str, str]
) -> Lexicon:
    """Decisions on compounds, partitives, predicates and attributes, by majority over human-made graphs."""
    agents, agentive_verbs, inanimate_subjects = learn_agents(golds)
    lexicon = Lexicon(
        compounds=learn_compounds(parses, golds, nouns),
        agents=agents,
        agentive_verbs=agentive_verbs,
        inanimate_subjects=inanimate_subjects,
        noun_lemmas=nouns,
        verb_lemmas=verbs,
    )
    counts = _GoldCounts()
    for parse, gold in zip(parses, golds, strict=True):
        graph = graph_from_parse(*parse, lexicon, rewrite=False)
        counts.count_relations(graph, gold)
        counts.count_attributes(graph, gold, verbs)
    return replace(
        lexicon,
        relations=counts.relation_table(),
        attributes=counts.attribute_table(),
        partitives=counts.partitive_table(),
    )


def verified_captions(
    parses: Sequence[Parse], golds: Sequence[Tuples], lexicon: Lexicon
) -> list[Tree | None]:
    """The trees whose graph is exactly the one its annotator drew; None elsewhere."""
    trees: list[Tree | None] = []
    for (words, tags, labels, heads), gold in zip(parses, golds, strict=True):
        graph = graph_from_parse(words, tags, labels, heads, lexicon)
        if graph_tuples(graph) == gold:
            roots = [ROOT if head == token else head for token, head in enumerate(heads)]
            # A lower-case word is no name.
            tags = [
                tag.replace("NNP", "NN") if tag in {"NNP", "NNPS"} and word.islower() else tag
                for word, tag in zip(words, tags, strict=True)
            ]
            trees.append(
                Tree(words, words, tags, roots, labels, [True] * len(words))
                if roots.count(ROOT) == 1
                else None
            )
        else:
            trees.append(None)
    return trees


STAND_INS = {"NN": "dog", "NNS": "dogs", "JJ": "red", "VBG": "holding"}


def substituted(words: Sequence[str], gold: Tuples, nouns: dict[str, str]) -> list[str]:
    """The caption with common words in place of those whose part of speech its graph gives away."""
    objects = {entry[0] for entry in gold if len(entry) == 1 and " " not in entry[0]}
    attributes = {entry[1] for entry in gold if len(entry) == 2 and " " not in entry[1]}
    verbs = {entry[1].split()[0] for entry in gold if len(entry) == 3}
    result = []
    for word in words:
        lower = word.lower()
        if lemmatize_noun(lower, nouns) in objects:
            plural = lemmatize_noun(lower, nouns) != lower
            result.append(STAND_INS["NNS" if plural else "NN"])
        elif lower in attributes and not lower.endswith(("ing", "ed")) and lower.isalpha():
            result.append(STAND_INS["JJ"])
        elif lower.endswith("ing") and lemmatize_verb(lower) in verbs:
            result.append(STAND_INS["VBG"])
        else:
            result.append(word)
    return result


def select_captions(
    teacher: Language, parses: Sequence[Parse], golds: Sequence[Tuples], lexicon: Lexicon
) -> list[Tree]:
    """Captions parsed to the right graph, as they stand or with common words in place of rare ones."""
    found = verified_captions(parses, golds, lexicon)
    missing = [index for index, tree in enumerate(found) if tree is None]
    docs = (
        Doc(teacher.vocab, words=substituted(parses[index][0], golds[index], lexicon.noun_lemmas))
        for index in missing
    )
    again: list[Parse] = []
    for index, doc in zip(missing, teacher.pipe(docs, batch_size=256), strict=True):
        again.append(
            (parses[index][0], [t.tag_ for t in doc], [t.dep_ for t in doc], [t.head.i for t in doc])
        )
    rescued = verified_captions(again, [golds[index] for index in missing], lexicon)
    print(
        f"captions: {len(found) - len(missing)} verified, {sum(t is not None for t in rescued)} rescued",
        flush=True,
    )
    return [tree for tree in [*found, *rescued] if tree is not None and len(tree.words) > 1]


def write_lexicon(lexicon: Lexicon, path: Path) -> None:
    """One entry per line, sorted, so that two versions can be compared."""
    content = {
        name: table if isinstance(table, dict) else sorted(table) for name, table in asdict(lexicon).items()
    }
    path.write_text(
        json.dumps(content, indent=0, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )


def main() -> None:
    """Read the options, convert, train, write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "treebank", type=Path, help="directory of UD_English-EWT (en_ewt-ud-{train,dev}*.conllu[.gz])"
    )
    options.add_argument("output", type=Path, help="directory to write the pipeline and lexicon.json to")
    options.add_argument("--captions", type=Path, help="FACTUAL's train.csv: captions with scene graphs")
    options.add_argument("--teacher", type=Path, help="a pipeline trained before, to parse the captions with")
    options.add_argument(
        "--hold-out", type=int, default=1500, help="last captions of the file to leave unseen"
    )
    options.add_argument(
        "--lexicon-only", action="store_true", help="learn the lexicon from --captions, do not train"
    )
    options.add_argument(
        "--lemmas-only", action="store_true", help="make lemmas.json and adjectives.txt alone"
    )
    options.add_argument("--epochs", type=int, default=13)
    options.add_argument("--seed", type=int, default=1)
    arguments = options.parse_args()
    parts: dict[str, list[Tree]] = {}
    for part in ("train", "dev"):
        files = sorted(arguments.treebank.glob(f"en_ewt-ud-{part}*.conllu*"))
        if not files:
            options.error(f"{arguments.treebank} holds no en_ewt-ud-{part}*.conllu or .conllu.gz")
        parts[part] = [join_hyphens(convert(tree)) for tree in read_conllu(files[0])]
    trees, dev = parts["train"], parts["dev"]
    if bool(arguments.captions) != bool(arguments.teacher):
        options.error("--captions and --teacher go together")
    try:
        words = wordnet()
    except ImportError as error:
        options.error(str(error))
    tokens = (token for tree in trees for token in zip(tree.words, tree.lemmas, tree.tags, strict=True))
    nouns, verbs = lemma_tables(tokens, *words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    lemmas = json.dumps({"nouns": nouns, "verbs": verbs}, indent=0, ensure_ascii=False, sort_keys=True)
    (arguments.output / "lemmas.json").write_text(lemmas + "\n", encoding="utf-8")
    (arguments.output / "adjectives.txt").write_text("\n".join(only_adjectives()) + "\n", encoding="utf-8")
    if arguments.lemmas_only:
        return
    pairs: list[tuple[str, str]] = []
    lexicon = Lexicon(noun_lemmas=nouns, verb_lemmas=verbs)
    captions: list[Tree] = []
    golds: list[Tuples] = []
    if arguments.captions:
        teacher = spacy.load(arguments.teacher, exclude=["attribute_ruler"])
        whole_hyphenated_words(teacher)
        pairs = read_factual(arguments.captions)
        pairs = pairs[: len(pairs) - arguments.hold_out]
        golds = [parse_factual_graph(graph) for _, graph in pairs]
        parses = parse_captions(teacher, [caption for caption, _ in pairs])
        lexicon = learn_lexicon(parses, golds, nouns, verbs)
        if not arguments.lexicon_only:
            captions = select_captions(teacher, parses, golds, lexicon)
            print(f"{len(captions)} of {len(pairs)} captions join the training", flush=True)
    write_lexicon(lexicon, arguments.output / "lexicon.json")
    if arguments.lexicon_only:
        return
    print(f"{len(trees)} sentences to train on, {len(dev)} to report on", flush=True)
    nlp = train(
        trees,
        captions,
        dev,
        epochs=arguments.epochs,
        seed=arguments.seed,
        snapshot=arguments.output / "snapshot",
    )
    whole_hyphenated_words(nlp)
    add_attribute_ruler(nlp)
    describe(nlp)
    nlp.to_disk(arguments.output)
    shutil.rmtree(arguments.output / "snapshot", ignore_errors=True)
    if pairs:  # once more, from better parses
        parses = parse_captions(nlp, [caption for caption, _ in pairs])
        write_lexicon(learn_lexicon(parses, golds, nouns, verbs), arguments.output / "lexicon.json")


if __name__ == "__main__":
    main()
