"""The caption parser and the FACTUAL scorer."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from caption_kinds import facts as named_facts
from caption_kinds import read_references
from factual import graph_tuples, parse_factual_graph, read_factual, score, tuple_f1
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import parsed_batch

from tbkin_core.errors import ConfigError, DataError, MissingDependencyError
from tbkin_core.names.lexicon import lemmatize_noun, lemmatize_verb, plain_sides, shipped_lemmas
from tbkin_core.parsing.decoding import decode_graphs
from tbkin_core.parsing.mending import mend
from tbkin_core.parsing.network import (
    REMEMBERED_WORDS,
    GraphNetwork,
    Vocabulary,
    new_shipped_network,
    read_network,
)
from tbkin_core.parsing.parser import MAX_TOKENS, CaptionParser
from tbkin_core.parsing.sentences import Sentences
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation


@pytest.fixture(scope="module")
def parser() -> CaptionParser:
    return CaptionParser()


def facts(graph: TextGraph) -> set[tuple[str, ...]]:
    """Attributes and relations by name."""
    names = [item.name for item in graph.objects]
    found: set[tuple[str, ...]] = {(names[item.object], item.name) for item in graph.attributes}
    return found | {(names[item.subject], item.predicate, names[item.object]) for item in graph.relations}


def assert_valid(graph: TextGraph) -> None:
    size = len(graph.tokens)
    for item in graph.objects:
        assert 0 <= item.span[0] <= item.head < item.span[1] <= size
        assert item.name
    for attribute in graph.attributes:
        assert 0 <= attribute.object < len(graph.objects)
        assert attribute.name
        assert attribute.tokens
        assert all(0 <= token < size for token in attribute.tokens)
    for relation in graph.relations:
        assert 0 <= relation.subject < len(graph.objects)
        assert 0 <= relation.object < len(graph.objects)
        assert relation.subject != relation.object
        assert relation.predicate
        assert list(relation.tokens) == sorted(set(relation.tokens))
        assert all(0 <= token < size for token in relation.tokens)


RECIPES = Path(__file__).resolve().parents[1] / "examples" / "shipped_models"

EXAMPLES: dict[str, set[tuple[str, ...]]] = {
    "a black and white cat": {("cat", "black"), ("cat", "white")},
    "The bed spread is red and white.": {("bed spread", "red"), ("bed spread", "white")},
    "trees and bushes growing on green lawn": {
        ("tree", "grow on", "lawn"),
        ("bush", "grow on", "lawn"),
        ("lawn", "green"),
    },
    "a child on a red sled": {("child", "on", "sled"), ("sled", "red")},
    "woman with curly hair": {("woman", "with", "hair"), ("hair", "curly")},
    "a man sitting on a wooden bench": {("man", "sit on", "bench"), ("bench", "wooden")},
    "A man is sitting in a chair.": {("man", "sit in", "chair")},
    "a dog in front of a house": {("dog", "in front of", "house")},
    "white cup next to a laptop": {("cup", "next to", "laptop"), ("cup", "white")},
    "there is a cup on top of the table": {("cup", "on top of", "table")},
    "girl's hair": {("girl", "have", "hair")},
    "five boats in the harbor": {("boat", "5"), ("boat", "in", "harbor")},
    "a bunch of bananas on a plate": {("banana", "on", "plate")},
    "a slice of pizza on a plate": {("pizza", "slice"), ("pizza", "on", "plate")},
    "a man who is wearing a hat": {("man", "wear", "hat")},
    "A clock that is on the wall": {("clock", "on", "wall")},
    "the dog being held by a woman": {("woman", "hold", "dog")},
    "bear surrounded by bushes": {("bush", "surround", "bear")},
    "a woman in a black dress holding an umbrella": {("dress", "black"), ("woman", "hold", "umbrella")},
    "what color is the small dog?": {("dog", "small")},
    "is the red circle left of the blue square?": {
        ("circle", "red"),
        ("square", "blue"),
        ("circle", "left of", "square"),
    },
    "the red circle is left of the blue square": {("circle", "left of", "square")},
    "is the cat right of the dog?": {("cat", "right of", "dog")},
    "the man on the left wearing glasses": {("man", "left"), ("man", "wear", "glasses")},
    "a large red circle is to the left of a small striped blue star": {
        ("circle", "large"),
        ("circle", "red"),
        ("circle", "left of", "star"),
        ("star", "small"),
        ("star", "striped"),
        ("star", "blue"),
    },
    "a dotted heart next to a plain yellow cross": {
        ("heart", "dotted"),
        ("heart", "next to", "cross"),
        ("cross", "plain"),
        ("cross", "yellow"),
    },
    "An elderly woman seated at a table holding an umbrella": {("woman", "sit at", "table")},
    "A group of men sipping drinks and talking at a table.": {
        ("man", "sip", "drink"),
        ("man", "talk at", "table"),
    },
    "snow covered mountain": {("snow", "cover", "mountain")},
    "woman in red on the right": {("woman", "red"), ("woman", "right")},
    "second boat from the right": {("boat", "second"), ("boat", "right")},
    "the couch that the man is sitting on": {("man", "sit on", "couch")},
    "how many dogs are sitting on the couch?": {("dog", "sit on", "couch")},
    "what is the large object to the left of the green triangle?": {
        ("object", "large"),
        ("object", "left of", "triangle"),
        ("triangle", "green"),
    },
    "The woman isn't holding a bag.": {("woman", "not hold", "bag")},
    "girl without shoes wearing a dress": {("girl", "wear", "dress"), ("girl", "without shoes")},
    "a dog chasing its own tail": {("dog", "chase", "tail")},
    "how many people are wearing hats?": {("people", "wear", "hat")},
    "the ball is between the box and the cone": {("ball", "between", "box"), ("ball", "between", "cone")},
}


@pytest.mark.parametrize("caption", EXAMPLES)
def test_linguistic_cases(parser: CaptionParser, caption: str) -> None:
    graph = next(parser.parse([caption]))
    assert_valid(graph)
    assert EXAMPLES[caption] <= facts(graph)


@pytest.mark.parametrize(
    "caption",
    [
        "a man without a shirt",
        "a man with no shirt on the beach",
        "there are no people in the street",
        "a boy without shirt and a man wearing a hat",
        "the man isn't wearing a shirt",
        "a wall, no shirt on a hanger",
    ],
)
def test_what_is_not_there_is_not_said_to_be(parser: CaptionParser, caption: str) -> None:
    graph = next(parser.parse([caption]))
    absent = {"shirt", "people"}
    names = [item.name for item in graph.objects]
    denied = {names[item.object] for item in graph.attributes if item.name == "no"}
    for relation in graph.relations:
        if names[relation.object] in absent - denied:
            assert relation.predicate.startswith(("not ", "without")), relation
        if names[relation.subject] in absent - denied:
            raise AssertionError(relation)


@pytest.mark.parametrize(
    ("caption", "denied", "said"),
    [
        ("a girl not looking at the camera", [("girl", "not look at", "camera")], []),
        ("a man not even eating a pizza", [("man", "not eat", "pizza")], []),
        ("a man standing without eating a pizza", [("man", "not eat", "pizza")], []),
        ("a man who never rides a bike", [("man", "not ride", "bike")], []),
        ("the man doesn't have a shirt on", [("shirt", "not on", "man")], []),
        ("a dog not on a leash", [("dog", "not on", "leash")], []),
        ("a man not with his dog", [("man", "not with", "dog")], []),
        ("a bench not being used by a man", [("man", "not use", "bench")], []),
        ("boy holds the bat not the pole", [("boy", "not hold", "pole")], [("boy", "hold", "bat")]),
        (
            "the boy, not the girl, holds a bat",
            [("girl", "not hold", "bat")],
            [("boy", "hold", "bat")],
        ),
        (
            "neither the man nor the woman wears a hat",
            [("man", "not wear", "hat"), ("woman", "not wear", "hat")],
            [],
        ),
        (
            "The woman isn't holding a phone but a book.",
            [("woman", "not hold", "phone")],
            [("woman", "hold", "book")],
        ),
        ("a boy who isnt wearing a hat", [("boy", "not wear", "hat")], []),
        ("None of the players are wearing hats", [("player", "not wear", "hat")], []),
        ("The man is no longer holding the kite", [("man", "not hold", "kite")], []),
        (
            "The woman not only holds a bag but also an umbrella",
            [],
            [
                ("woman", "hold", "bag"),
                ("woman", "hold", "umbrella"),
            ],
        ),
        ("The dog is not just holding a ball", [], [("dog", "hold", "ball")]),
        ("Whether or not the dog is on the sofa", [], [("dog", "on", "sofa")]),
        ("A vase contains flowers instead of water", [], [("vase", "contain", "flower")]),
        ("The man is not smiling.", [], [("man", "not smiling")]),
        ("The plate is not empty", [], [("plate", "not empty")]),
        ("A not very big dog", [], [("dog", "not big")]),
        ("a man w/o a hat", [], []),
        ("man without hat black shirt", [], [("shirt", "black"), ("man", "wear", "shirt")]),
    ],
)
def test_denied_relations(
    parser: CaptionParser,
    caption: str,
    denied: list[tuple[str, ...]],
    said: list[tuple[str, ...]],
) -> None:
    """What is denied is kept as a denial, nothing that is said besides becomes one."""
    graph = next(parser.parse([caption]))
    assert_valid(graph)
    assert {fact for fact in facts(graph) if len(fact) == 3} == {
        *denied,
        *(fact for fact in said if len(fact) == 3),
    }
    assert set(said) <= facts(graph)
    for relation in graph.relations:
        if relation.predicate.startswith("not "):
            said_so = {graph.tokens[token].lower() for token in relation.tokens}
            assert said_so & {"not", "n't", "nt", "never", "without", "neither", "nor", "none", "longer"}


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("a mirror hanging above no sink", {("mirror", "hang above", "sink"), ("sink", "no")}),
        ("flags hanging on no post", {("flag", "hang on", "post"), ("post", "no")}),
        ("a girl without a hat or a shirt", {("girl", "without", "shirt")}),
        ("woman without her arms crossed", {("woman", "without", "arm"), ("arm", "crossed")}),
        ("reflection of man taking picture", {("man", "have", "reflection"), ("man", "take", "picture")}),
        ("the skier is dressed in red", {("skier", "red")}),
        ("woman in blue holding her hand up", {("woman", "blue"), ("woman", "hold", "hand")}),
    ],
)
def test_rules_on_top_of_the_network(parser: CaptionParser, caption: str, said: set[tuple[str, ...]]) -> None:
    """Absences, denials left unsaid, the caption's own predicates, colours that are worn."""
    graph = next(parser.parse([caption]))
    assert_valid(graph)
    assert facts(graph) == said


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("a girl smile", ["girl"]),
        ("a bear rubs against a tree", ["bear", "tree"]),
        ("the child play game", ["child", "game"]),
        ("the boy stand on the beach", ["boy", "beach"]),
        ("A cute panda bear walks inside a zoo.", ["panda bear", "zoo"]),
        ("a man with a < on his shirt", ["man", "shirt"]),
    ],
)
def test_verbs_and_marks_stay_out_of_names(parser: CaptionParser, caption: str, names: list[str]) -> None:
    assert [item.name for item in next(parser.parse([caption])).objects] == names


# Exact graphs of fifty captions of a kind, as reached; before the rules that these kinds led to it was 51 %.
EXACT = {
    "clauses": 0.98, "phrases": 0.88, "counts": 0.98, "adjectives": 0.98, "measures": 0.94, "verbs": 0.90,
    "collectives": 0.90, "comparatives": 0.94, "negations": 0.94,
}  # fmt: skip


def test_graphs_written_by_hand(parser: CaptionParser) -> None:
    references = read_references()
    graphs = list(parser.parse(reference.caption for reference in references))
    right: dict[str, list[bool]] = {}
    for reference, graph in zip(references, graphs, strict=True):
        assert_valid(graph)
        right.setdefault(reference.kind, []).append(reference.is_exact(named_facts(graph)))
    assert {kind: len(exact) for kind, exact in right.items()} == dict.fromkeys(EXACT, 50)
    shares = {kind: sum(exact) / len(exact) for kind, exact in right.items()}
    assert {kind: share for kind, share in shares.items() if share < EXACT[kind] - 1e-9} == {}
    # A text's graph depends on no other text.
    assert graphs == [next(parser.parse([reference.caption])) for reference in references]


def test_graphs_of_captions_that_no_rule_was_made_for(parser: CaptionParser) -> None:
    references = read_references("captions_unseen.txt")
    graphs = parser.parse(reference.caption for reference in references)
    right = [item.is_exact(named_facts(graph)) for item, graph in zip(references, graphs, strict=True)]
    assert len(right) == 10 * len(EXACT)
    assert sum(right) >= 0.9 * len(right)  # 46 % before


def test_the_scorer_of_graphs_written_by_hand() -> None:
    (reference,) = [item for item in read_references() if item.caption == "a dog without a collar"]
    said = frozenset({("dog",), ("collar",), ("dog", "not wear", "collar")})
    assert reference.is_exact(said)
    assert reference.is_exact(frozenset({("dog",)}))
    assert not reference.is_exact(said | {("dog", "wear", "collar")})
    assert not reference.is_exact(frozenset({("dog",), ("collar",)}))
    assert not reference.is_exact(frozenset())


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("a snowy road", {("road", "snowy")}),
        ("a man skiing down a snowy hill", {("man", "ski down", "hill"), ("hill", "snowy")}),
        ("a person on a snowy hill top", {("person", "on", "hill top"), ("hill top", "snowy")}),
        ("two dogs and three cats", {("dog", "2"), ("cat", "3")}),
        ("a red bus and a blue bus", {("bus", "red"), ("bus", "blue")}),
        (
            "a man is eating a pizza and a woman is eating a salad",
            {("man", "eat", "pizza"), ("woman", "eat", "salad")},
        ),
        ("a man with a dog and a woman with a cat", {("man", "with", "dog"), ("woman", "with", "cat")}),
        (
            "a man in a shirt and a tie on a bench",
            {("man", "wear", "shirt"), ("man", "wear", "tie"), ("man", "on", "bench")},
        ),
        ("a glass of wine on a table", {("glass", "on", "table"), ("glass", "of", "wine")}),
        ("the kids like pizza", {("kid", "like", "pizza")}),
        ("a couple of dogs near a pair of shoes", {("dog", "near", "shoe")}),
        (
            "a wooden table topped with glasses of wine",
            {("table", "wooden"), ("table", "top with", "glass"), ("glass", "of", "wine")},
        ),
        ("a woman wearing glasses", {("woman", "wear", "glasses")}),
        (
            "Bowls of fruit, carrots, and celery are sitting on a table.",
            {
                ("bowl", "of", "fruit"),
                ("bowl", "have", "carrot"),
                ("bowl", "sit on", "table"),
                ("celery", "sit on", "table"),
            },
        ),
        ("a bigger dog than the cat", {("dog", "bigger than", "cat")}),
        ("a tree as tall as a house", {("tree", "as tall as", "house")}),
        ("no dogs or cats", {("cat", "no")}),
        ("a group of children wearing helmets", {("child", "wear", "helmet")}),
        ("not every man is wearing a hat", {("man", "not every"), ("man", "wear", "hat")}),
        ("nobody is on the beach", {("person", "no"), ("person", "on", "beach")}),
        (
            "everyone but the goalie is wearing a helmet",
            {("everyone", "wear", "helmet"), ("goalie", "not wear", "helmet")},
        ),
        ("a bird perches on a wire", {("bird", "perch on", "wire")}),
        ("a boy pours water on a plant", {("boy", "pour", "water"), ("water", "on", "plant")}),
        ("two children wave to a clown", {("child", "2"), ("child", "wave to", "clown")}),
        ("a baseball player slides in the dirt", {("baseball player", "slide in", "dirt")}),
        ("two zebras side by side", {("zebra", "2")}),
        (
            "a man is sitting on a bench and his dog is lying on the ground",
            {("man", "sit on", "bench"), ("dog", "lay on", "ground")},
        ),
    ],
)
def test_what_belongs_together(parser: CaptionParser, caption: str, said: set[tuple[str, ...]]) -> None:
    """Clauses, coordination, numbers, vessels, collectives, comparisons and verbs, nothing beside them."""
    graph = next(parser.parse([caption]))
    assert_valid(graph)
    found = facts(graph)
    assert said <= found
    relations = {fact for fact in said if len(fact) == 3}
    assert {fact for fact in found if len(fact) == 3} == relations


MENDED = """a an the two three man men dog dogs leaps leap like snowy icy while as and with in of on rides
race water pours is are her kids towers , ."""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(MENDED.split()), min_size=1, max_size=14),
    data=st.data(),
)
def test_mended_parses_are_trees(words: list[str], data: st.DataObject) -> None:
    """Whatever a tagger and a parser make of a text, mending leaves a tree and other texts alone."""
    names = ["NN", "NNS", "JJ", "VBZ", "IN", "DT", "CD"]
    labels = ["nsubj", "dobj", "pobj", "prep", "compound", "amod", "conj", "ROOT", "attr", "advcl"]
    vocabulary = Vocabulary(names, labels)
    drawn = [
        data.draw(st.lists(st.sampled_from(of), min_size=len(words), max_size=len(words)))
        for of in (names, labels)
    ]
    order = data.draw(st.permutations(range(len(words))))
    heads = [0] * len(words)
    for place, token in enumerate(order):  # each hangs from one drawn before it
        heads[token] = order[data.draw(st.integers(0, max(place - 1, 0)))]
    other = (["a", "dog", "leaps"], ["DT", "NN", "NNS"], ["ROOT", "compound", "ROOT"], [1, 2, 2])
    alone = mend(vocabulary, parsed_batch(vocabulary, [(words, *drawn, heads)]))
    batch = mend(vocabulary, parsed_batch(vocabulary, [other, (words, *drawn, heads), other]))
    size = len(words)
    assert (batch.heads[3 : 3 + size] - 3).tolist() == alone.heads.tolist()
    assert batch.labels[3 : 3 + size].tolist() == alone.labels.tolist()
    assert batch.tags[3 : 3 + size].tolist() == alone.tags.tolist()
    above = alone.heads
    for _ in range(size):
        above = alone.heads[above]
    assert (alone.heads[above] == above).all()
    assert {2, 5 + size} <= batch.verbs


def test_what_a_question_asks_for_is_no_object(parser: CaptionParser) -> None:
    graph = next(parser.parse(["what color is the dog?"]))
    assert [item.name for item in graph.objects] == ["dog"]


def test_spatial_captions_in_every_combination(parser: CaptionParser) -> None:
    relations = {
        "to the left of": "left of",
        "above": "above",
        "next to": "next to",
        "inside": "inside",
    }
    shapes = ["circle", "square", "star", "heart"]
    captions: list[str] = []
    wanted: list[set[tuple[str, ...]]] = []
    for (subject, other), (words, predicate) in itertools.product(
        itertools.permutations(shapes, 2), relations.items()
    ):
        for be in ("is ", ""):
            captions.append(f"a small red {subject} {be}{words} a large striped blue {other}")
            wanted.append(
                {(subject, "small"), (subject, "red"), (other, "large"), (other, "striped"), (other, "blue")}
            )
            wanted[-1].add((subject, predicate, other))
    right = [want <= facts(graph) for want, graph in zip(wanted, parser.parse(captions), strict=True)]
    assert sum(right) >= 0.97 * len(right)


def test_heads_and_spans_point_at_the_words(parser: CaptionParser) -> None:
    graph = next(parser.parse(["two tennis players stand behind a net"]))
    players = graph.objects[0]
    assert players.name == "tennis player"
    assert graph.tokens[slice(*players.span)] == ("tennis", "players")
    assert graph.tokens[players.head] == "players"
    relation = graph.relations[0]
    assert [graph.tokens[token] for token in relation.tokens] == ["stand", "behind"]


def test_empty_repeated_and_long_texts(parser: CaptionParser) -> None:
    long_text = "a dog on a mat and " * 2_000
    graphs = list(parser.parse(["", "  \n", "a dog on a mat", long_text, "a dog on a mat"]))
    assert graphs[0] == graphs[1] == TextGraph(())
    assert graphs[2] == graphs[4]
    assert len(graphs[3].tokens) == MAX_TOKENS
    assert_valid(graphs[3])


ODD_TEXTS = [
    "🐶 on a 🛹",
    "\x00\x01\x7f",
    "كلب على سجادة",
    "\ud800 dog",
    "a" * 20_000,
    "🐶" * 20_000,
    "))) , ( is",
    "of of of the",
    "-",
    "a-b-c- -d",
]


def test_direction_marks_are_in_no_name(parser: CaptionParser) -> None:
    plain, marked = parser.parse(["a dog on a mat", "a dog\u200f on \u202ea mat\u2069"])
    assert plain == marked


def test_odd_texts(parser: CaptionParser) -> None:
    graphs = list(parser.parse(ODD_TEXTS))
    for graph in graphs:
        assert_valid(graph)
    assert graphs == list(parser.parse(ODD_TEXTS))


VOCABULARY = """a the dog dogs man woman is are in on of to left next front top with and or , . ? there what
color that which it holding sitting held by has have red two bunch 's his covered between standing not up
down"""
WORDS = st.sampled_from(VOCABULARY.split())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=20).map(" ".join)))
def test_any_text_gives_a_valid_graph(parser: CaptionParser, text: str) -> None:
    first = next(parser.parse([text]))
    assert_valid(first)
    assert first == next(parser.parse([text]))


Parse = tuple[list[str], list[str], list[str], list[int]]


def graphs_of(parses: list[Parse], network: GraphNetwork | None = None) -> list[TextGraph]:
    """Graphs of texts parsed by hand."""
    network = network or shipped_network()
    batch = parsed_batch(network.vocabulary, parses)
    tags = [tag for parse in parses for tag in parse[1]]
    words = [parse[0] for parse in parses]
    return list(decode_graphs(network, batch, network(batch), words, tags.__getitem__))


TAGS = st.sampled_from(["NN", "NNS", "VBG", "VBN", "VBZ", "JJ", "IN", "DT", "CD", "WDT", "RB", "PRP", "?"])
RELATIONS = "nsubj dobj pobj prep conj acl relcl amod compound attr acomp agent xcomp pcomp ROOT"
LABELS = st.sampled_from(RELATIONS.split())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tree_gives_a_valid_graph(data: st.DataObject) -> None:
    """Whatever a pipeline returns, also trees no sane parser makes and tags nobody has heard of."""
    tokens = data.draw(st.lists(WORDS, min_size=1, max_size=14))
    size = len(tokens)
    tags = data.draw(st.lists(TAGS, min_size=size, max_size=size))
    labels = data.draw(st.lists(LABELS, min_size=size, max_size=size))
    order = data.draw(st.permutations(range(size)))
    heads = list(range(size))
    for place, token in enumerate(order[1:], start=1):
        heads[token] = order[data.draw(st.integers(0, place - 1))]
    (graph,) = graphs_of([(tokens, tags, labels, heads)])
    assert_valid(graph)


CAPTIONS = [
    "a man riding a horse",
    "two dogs next to each other on a red couch by the window of an old house",
    "the",
    "a woman with a hat , a bag and an umbrella stands in front of a bus",
    "boats",
]


shipped_network = cache(new_shipped_network)


@cache
def parses_of_captions() -> list[Parse]:
    return [
        ([t.text for t in doc], [t.tag_ for t in doc], [t.dep_ for t in doc], [t.head.i for t in doc])
        for doc in CaptionParser.pipeline().pipe(CAPTIONS)
    ]


@settings(max_examples=40, deadline=None)
@given(order=st.lists(st.integers(0, len(CAPTIONS) - 1), min_size=1, max_size=40))
def test_a_graph_depends_on_no_other_text(order: list[int]) -> None:
    """To the last bit of every probability: resumed and divided builds rest on it."""
    network = shipped_network()
    docs = parses_of_captions()
    together = network(parsed_batch(network.vocabulary, (docs[place] for place in order)))
    begin = 0
    for place in order:
        alone = network(parsed_batch(network.vocabulary, [docs[place]]))
        rows = together.pairs[:, 0]
        own = (rows >= begin) & (rows < begin + len(docs[place][0]))
        assert np.array_equal(together.relations[own], alone.relations)
        for name in ("role", "prefix", "form"):
            whole = getattr(together, name)[begin : begin + len(alone.role)]
            assert np.array_equal(whole, getattr(alone, name))
        here = (together.attributes[:, 0] >= begin) & (together.attributes[:, 0] < begin + len(alone.role))
        assert np.array_equal(together.attributes[here] - begin, alone.attributes)
        begin += len(alone.role)


def test_words_are_forgotten_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the network and those of spaCy, which otherwise grow with the corpus."""
    parser = CaptionParser()
    expected = list(parser.parse(CAPTIONS))
    monkeypatch.setattr("tbkin_core.parsing.network.REMEMBERED_WORDS", 20)
    monkeypatch.setattr("tbkin_core.parsing.parser.NEW_STRINGS", 60)
    parser._load()
    first = parser._nlp
    for _ in range(2):
        assert [next(parser.parse([caption])) for caption in CAPTIONS] == expected
        made_up = ["".join(letters) for letters in itertools.product("qxz", repeat=4)]
        list(parser.parse([" ".join(made_up[at : at + 9]) for at in range(0, 81, 9)], batch_size=2))
    component = parser._nlp.get_pipe("scene_graph")
    assert len(component._network.vocabulary.text) <= 20 < REMEMBERED_WORDS
    assert parser._nlp is not first


def test_a_batch_of_forgotten_words_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = new_shipped_network()
    monkeypatch.setattr("tbkin_core.parsing.network.REMEMBERED_WORDS", 3)
    batch = parsed_batch(network.vocabulary, [(["a", "dog"], ["DT", "NN"], ["det", "ROOT"], [1, 1])])
    parsed_batch(network.vocabulary, [(["two", "cats"], ["CD", "NNS"], ["nummod", "ROOT"], [1, 1])])
    with pytest.raises(ValueError, match="forgotten"):
        network(batch)


PIPELINE = Path(str(resources.files("tbkin_core"))) / "resources" / "parser"


def test_the_component_is_found_by_its_entry_point() -> None:
    """By a program that has never heard of tbkin; its documents pass between processes."""
    program = f"""
import spacy
nlp = spacy.load({str(PIPELINE)!r})
nlp.add_pipe("scene_graph")
if __name__ == "__main__":
    graphs = [doc._.scene_graph for doc in nlp.pipe(["a black dog on a sofa"] * 3, n_process=2)]
    print(graphs[2].relations[0].predicate, graphs[0].objects[1].name)
"""
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=120)
    if "multiprocessing" in done.stderr:  # standard input is no file to start processes from
        pytest.skip(done.stderr[-200:])
    assert done.stdout.split() == ["on", "sofa"], done.stderr


def test_component_in_a_pipeline_of_ones_own(tmp_path: Path) -> None:
    import spacy
    from spacy.tokens import Doc, DocBin

    nlp = spacy.load(PIPELINE)
    nlp.add_pipe("scene_graph")
    doc = nlp("a black dog on a sofa")
    graph = doc._.scene_graph
    assert facts(graph) == {("dog", "black"), ("dog", "on", "sofa")}
    assert Doc(nlp.vocab).from_bytes(doc.to_bytes())._.scene_graph == graph
    (stored,) = DocBin(docs=[doc], store_user_data=True).get_docs(nlp.vocab)
    assert stored._.scene_graph == graph
    nlp.to_disk(tmp_path / "own")
    assert spacy.load(tmp_path / "own")("a black dog on a sofa")._.scene_graph == graph
    # White space that spaCy keeps as tokens is none of the graph's.
    spaced = nlp("  a  black dog\n on a   sofa ")._.scene_graph
    assert spaced == graph
    # A parser of this pipeline words its graphs as it is told.
    text = "a cat below a table"
    worded = next(CaptionParser(str(tmp_path / "own"), wording="factual").parse([text]))
    assert facts(worded) == {("cat", "under", "table")}
    with pytest.raises(ConfigError, match="wording"):
        nlp.add_pipe("scene_graph", name="other", config={"wording": "poetic"})
    blank = spacy.blank("en")
    blank.add_pipe("scene_graph")
    with pytest.raises(ConfigError, match="no tags or no dependency tree"):
        blank("a black dog")


def test_damaged_network_says_so(tmp_path: Path) -> None:
    shipped = Path(str(resources.files("tbkin_core"))) / "resources" / "parser" / "scene_graph.npz"
    (tmp_path / "half.npz").write_bytes(shipped.read_bytes()[:50_000])
    for name in ("half.npz", "none.npz"):
        with pytest.raises(MissingDependencyError, match="scene-graph network"):
            read_network(tmp_path / name)


def test_readings_are_where_the_words_stand() -> None:
    vocabulary = Vocabulary(["IN", "VBG", "VBZ", "NN", "RB"], [])

    def readings(text: str, tags: str, first: int, second: int) -> dict[str, str]:
        words = text.split()
        parse = (words, tags.split(), ["dep"] * len(words), [0] * len(words))
        # Another text before it moves all token numbers.
        batch = parsed_batch(vocabulary, [(["cat"], ["NN"], ["ROOT"], [0]), parse])
        found = Sentences(vocabulary, batch).readings(1 + first, 1 + second, 1, 1 + len(words))
        assert all(1 <= token <= len(words) for _, tokens in found.values() for token in tokens)
        return {name: predicate for name, (predicate, _) in found.items()}

    found = readings("man sitting on the side of a bed", "NN VBG IN DT NN IN DT NN", 0, 7)
    assert found["verb preposition"] == "sit on side of"
    assert found["preposition"] == "on side of"
    found = readings("bed that a man is sitting on", "NN IN DT NN VBZ VBG RB", 0, 3)
    assert found["later verb preposition"] == "sit on"
    assert "preposition" not in found  # "that" is none


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        ("at the left of", "left of"),
        ("park on the right side of", "park right of"),
        ("to left of", "left of"),
        ("on side of", "on side of"),
        ("leave", "leave"),
        ("left hand", "left hand"),
    ],
)
def test_sides_have_one_form(predicate: str, expected: str) -> None:
    assert plain_sides(predicate) == expected


def test_missing_pipeline_names_the_way_out() -> None:
    with pytest.raises(MissingDependencyError, match="--parser builtin"):
        CaptionParser("no_such_pipeline_anywhere")


def test_unusable_pipeline_is_refused(tmp_path: Path) -> None:
    import spacy

    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(MissingDependencyError, match="tagger and a parser"):
        CaptionParser(str(tmp_path / "blank"))


def test_noun_chunks_of_the_shipped_pipeline() -> None:
    import spacy

    import tbkin_core

    nlp = spacy.load(Path(tbkin_core.__file__).parent / "resources" / "parser")
    chunks = [chunk.text for chunk in nlp("a man is riding a brown horse on the beach").noun_chunks]
    assert chunks == ["a man", "a brown horse", "the beach"]


NOUNS = """
    boxes box, knives knife, bushes bush, people people, grass grass, horses horse, cherries cherry, women
    woman, glasses glasses, pants pants, jeans jeans, scissors scissors, shorts shorts, goggles goggles,
    clothes clothes, stairs stair, outskirts outskirts,
    canvas canvas, canvases canvas, atlas atlas, christmas christmas, gas
    gas, lens lens, lenses lens, series series, news news, tennis tennis, bus bus, buses bus, thermos
    thermos, zombies zombie, cookies cookie, hoodies hoodie, ponies pony, ties tie, movies movie, elves
    elf, scarves scarf, leaves leaf, bookshelves bookshelf, headscarves headscarf, giraffes giraffe, waves
    wave, sleeves sleeve, lives life, heroes hero, echoes echo, potatoes potato, shoes shoe, toes toe,
    photos photo, bases base, axes axe, vases vase, crosses cross, mustaches mustache, axles axle, houses
    house, roses rose, irises iris, skis ski, taxis taxi, menus menu, tvs tv, ads ad, feet foot, teeth tooth,
    geese goose, mongooses mongoose, sheep sheep, oxen ox, firemen fireman, policewomen policewoman,
    specimen specimen, humans human, cola cola, dice dice, wings wing, boots boot, eyes eye, grounds
    ground
"""
VERBS = """
    riding ride, sitting sit, held hold, grazing graze, carries carry, skateboarding skateboard, has have,
    covered cover, parked park, eating eat, swinging swing, swing swing, string string, strung string,
    springing spring, sprang spring, flinging fling, slinging sling, stinging sting, bringing bring,
    singing sing, shredding shred, shred shred, sledding sled, sled sled, embedded embed, embed embed,
    propelled propel, paused pause, cruising cruise, patrolled patrol, kayaking kayak, typing type,
    squared square, muzzled muzzle, silhouetted silhouette, hopping hop, hoping hope, taping tape, tapping
    tap, staring stare, starring star, planed plane, planned plan, rolling roll, falling fall, passing
    pass, focused focus, buzzing buzz, traveled travel, travelling travel, opening open, quitting quit,
    tied tie, dying die, dyed dye, skiing ski, seeing see, freed free, seed seed, feed feed, panicked
    panic, spoon-fed spoon-feed, lying lay, lies lay, laid lay, lain lay, seated sit, left leave, saw see,
    felt feel, found find, wound wind, ground ground, rent rent, lives live, goes go, does do, is be, was
    be, went go, bent bend, shot shoot, dug dig, rung ring, caped cape, wooded wood
"""


def table(cases: str) -> list[tuple[str, str]]:
    return [(form, lemma) for form, lemma in (case.split() for case in cases.split(","))]


@pytest.mark.parametrize(("form", "lemma"), table(NOUNS))
def test_noun_lemmas(form: str, lemma: str) -> None:
    assert lemmatize_noun(form) == lemma
    assert lemmatize_noun(lemma) == lemma


@pytest.mark.parametrize(("form", "lemma"), table(VERBS))
def test_verb_lemmas(form: str, lemma: str) -> None:
    assert lemmatize_verb(form) == lemma


@given(st.sampled_from(sorted(shipped_lemmas()["nouns"].values())))
def test_a_lemma_of_a_noun_is_its_own(lemma: str) -> None:
    assert lemmatize_noun(lemma) == lemma


@given(st.sampled_from(sorted(shipped_lemmas()["verbs"].values())))
def test_a_lemma_of_a_verb_is_its_own(lemma: str) -> None:
    assert lemmatize_verb(lemma) == lemma


@given(st.from_regex(r"[a-z-]{0,12}(s|es|ies|ing|ed|ied)?", fullmatch=True))
def test_every_word_has_a_lemma(word: str) -> None:
    for lemmatize in (lemmatize_noun, lemmatize_verb):
        assert bool(lemmatize(word)) == bool(word)


def test_the_recipe_inflects_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    recipe = importlib.import_module("lemma_tables")
    seldom = "outskirt rend tetri vas singe"
    often = """canvas glass boot boots outskirts hero tv ga gas tetris cape canvases heroes tvs capes
        hop hope find found rent sing cap patrol bring
        hopping hoping caped singed patrolling rang smoothies"""
    frequency = {**dict.fromkeys(seldom.split(), -16.0), **dict.fromkeys(often.split(), -9.0), "find": -8.0}
    nouns = "canvas glass boot boots outskirt outskirts hero tv ga gas tetri cape"
    verbs = "hop hope find found rend rent sing singe patrol bring cap ring hear"
    irregular = {
        "found": ["find"],
        "rent": ["rend"],
        "sang": ["sing"],
        "rang": ["ring"],
        "spoon-fed": ["spoon-feed"],
    }
    monkeypatch.setattr(recipe, "CHOSEN_NOUNS", {"bases": "base"})
    monkeypatch.setattr(recipe, "CHOSEN_VERBS", {})
    noun_table, verb_table = recipe.lemma_tables(
        [("Heard", "hear", "VBD"), ("heard", "hear", "VBN"), ("rung", "rinj", "VBN"), ("tvs", "tvs", "NN")],
        recipe.Words(frozenset(nouns.split()), {}, frequency),
        recipe.Words(frozenset(verbs.split()), irregular, frequency),
    )
    canvas = {"canvas": "canvas", "canvases": "canvas"}
    others = {"outskirts": "outskirts", "heroes": "hero", "tvs": "tv", "smoothies": "smoothie"}
    assert noun_table == {**canvas, **others}
    assert verb_table == {
        "found": "find",
        "sang": "sing",
        "rang": "ring",
        "singed": "singe",
        "patrolling": "patrol",
        "spoon-fed": "spoon-feed",
        "heard": "hear",
    }


def test_another_pipeline_takes_the_place_of_the_shipped_one(parser: CaptionParser) -> None:
    import tbkin_core

    other = CaptionParser(str(Path(tbkin_core.__file__).parent / "resources" / "parser"))
    assert list(other.parse(EXAMPLES)) == list(parser.parse(EXAMPLES))
    assert other.version
    assert parser.name == "builtin"


def test_treebank_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copula and preposition become heads, conjuncts a chain, hyphenated words one token."""
    monkeypatch.syspath_prepend(RECIPES)
    train_parser = importlib.import_module("train_parser")
    rows = [
        ("Cats", "cat", "NNS", 7, "nsubj", "_"),
        (",", ",", ",", 3, "punct", "_"),
        ("dogs", "dog", "NNS", 1, "conj", "_"),
        ("and", "and", "CC", 5, "cc", "_"),
        ("birds", "bird", "NNS", 1, "conj", "_"),
        ("are", "be", "VBP", 7, "cop", "_"),
        ("black", "black", "JJ", 0, "root", "SpaceAfter=No"),
        ("-", "-", "HYPH", 7, "punct", "SpaceAfter=No"),
        ("ish", "ish", "JJ", 7, "dep", "_"),
        ("in", "in", "IN", 11, "case", "_"),
        ("Rome", "Rome", "NNP", 7, "obl", "_"),
    ]
    lines = [
        f"{index}\t{word}\t{lemma}\t_\t{tag}\t_\t{head}\t{label}\t_\t{misc}"
        for index, (word, lemma, tag, head, label, misc) in enumerate(rows, start=1)
    ]
    (tmp_path / "one.conllu").write_text("# text\n" + "\n".join(lines) + "\n\n", encoding="utf-8")
    (tree,) = train_parser.read_conllu(tmp_path / "one.conllu")
    tree = train_parser.join_hyphens(train_parser.convert(tree))
    heads = ["ROOT" if head < 0 else tree.words[head] for head in tree.heads]
    assert list(zip(tree.words, tree.labels, heads, strict=True)) == [
        ("Cats", "nsubj", "are"),
        (",", "punct", "Cats"),
        ("dogs", "conj", "Cats"),
        ("and", "cc", "dogs"),
        ("birds", "conj", "dogs"),
        ("are", "ROOT", "ROOT"),
        ("black-ish", "acomp", "are"),
        ("in", "prep", "black-ish"),
        ("Rome", "pobj", "in"),
    ]


def test_the_rules_that_check_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    rules = importlib.import_module("caption_rules")
    words, tags = ["photo", "of", "a", "black", "dog"], ["NN", "IN", "DT", "JJ", "NN"]
    parse = (words, tags, ["ROOT", "prep", "det", "amod", "pobj"], [0, 0, 4, 4, 1])
    for rewrite in (True, False):
        graph = rules.graph_from_parse(*parse, rules.Lexicon(), rewrite=rewrite)
        assert facts(graph) == {("photo", "of", "dog"), ("dog", "black")}


# ------------------------------------------------------------------------------------------- the scorer


def test_factual_notation() -> None:
    tuples = parse_factual_graph("( bushes , grow on , lawn ) , ( lawn , is , green ) , ( sky )")
    assert tuples == {("bush",), ("bush", "grow on", "lawn"), ("lawn",), ("lawn", "green"), ("sky",)}


def test_factual_notation_refuses_pairs() -> None:
    with pytest.raises(DataError, match="expected"):
        parse_factual_graph("( dog , brown )")


def test_graph_tuples_count_unlisted_objects() -> None:
    graph = TextGraph(
        ("dogs", "on", "red", "mat", "door"),
        (TextObject(0, (0, 1), "dog"), TextObject(3, (3, 4), "mat"), TextObject(4, (4, 5), "door")),
        (TextAttribute(1, "red", (2,)),),
        (TextRelation(0, "on", 1, (1,)),),
    )
    assert graph_tuples(graph) == parse_factual_graph("( dogs , on , mat ) , ( mat , is , red ) , ( door )")


def test_f1_and_exact() -> None:
    reference = parse_factual_graph("( dog , on , mat ) , ( mat , is , red )")
    candidate = parse_factual_graph("( dog , on , mat )")
    assert tuple_f1(candidate, reference) == pytest.approx(2 * 3 / (3 + 4))
    assert tuple_f1(frozenset(), reference) == 0
    result = score([candidate, reference], [reference, reference])
    assert result.f1 == pytest.approx((6 / 7 + 1) / 2)
    assert result.exact == 0.5
    with pytest.raises(DataError):
        score([], [])


def test_factual_dev_stays_above_the_floor(parser: CaptionParser, shared_data: Path) -> None:
    pairs = read_factual(shared_data / "factual" / "dev.csv")[:300]
    candidates = [graph_tuples(graph) for graph in parser.parse(caption for caption, _ in pairs)]
    result = score(candidates, [parse_factual_graph(graph) for _, graph in pairs])
    assert result.f1 >= 0.80
    assert result.exact >= 0.55


def test_missing_factual_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_factual(tmp_path / "none.csv")


def test_wordings_differ_in_names_alone() -> None:
    text = "a red circle to the left of a blue square"
    plain = next(iter(CaptionParser().parse([text])))
    factual = next(iter(CaptionParser(wording="factual").parse([text])))
    assert [item.name for item in plain.objects] == [item.name for item in factual.objects]
    assert {item.predicate for item in plain.relations} == {"left of"}
    assert {item.predicate for item in factual.relations} == {"at the left of"}
    assert {(item.subject, item.object) for item in plain.relations} == {
        (item.subject, item.object) for item in factual.relations
    }


def test_each_other_names_no_object() -> None:
    graph = next(iter(CaptionParser().parse(["two zebras standing next to each other"])))
    assert {item.name for item in graph.objects} == {"zebra"}  # no "other"
