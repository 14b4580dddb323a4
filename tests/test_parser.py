"""The caption parser and the FACTUAL scorer."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbkin_core.errors import DataError, MissingDependencyError
from tbkin_core.evaluation.factual import (
    graph_tuples,
    parse_factual_graph,
    read_factual,
    score,
    tuple_f1,
)
from tbkin_core.graphs.parser import (
    MAX_TOKENS,
    CaptionParser,
    graph_from_parse,
    lemmatize_noun,
    lemmatize_verb,
)
from tbkin_core.graphs.text_graph import TextAttribute, TextGraph, TextObject, TextRelation


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
        assert relation.tokens
        assert all(0 <= token < size for token in relation.tokens)


EXAMPLES: dict[str, set[tuple[str, ...]]] = {
    "a black and white cat": {("cat", "black"), ("cat", "white")},
    "The bed spread is red and white.": {("bed spread", "red"), ("bed spread", "white")},
    "trees and bushes growing on green lawn": {
        ("tree", "grow on", "lawn"),
        ("bush", "grow on", "lawn"),
        ("lawn", "green"),
    },
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
    "the ball is between the box and the cone": {("ball", "between", "box"), ("ball", "between", "cone")},
}


@pytest.mark.parametrize("caption", EXAMPLES)
def test_linguistic_cases(parser: CaptionParser, caption: str) -> None:
    graph = next(parser.parse([caption]))
    assert_valid(graph)
    assert EXAMPLES[caption] <= facts(graph)


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


TAGS = st.sampled_from(["NN", "NNS", "VBG", "VBN", "VBZ", "JJ", "IN", "DT", "CD", "WDT", "RB"])
RELATIONS = "nsubj dobj pobj prep conj acl relcl amod compound attr acomp agent xcomp pcomp ROOT"
LABELS = st.sampled_from(RELATIONS.split())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tree_gives_a_valid_graph(data: st.DataObject) -> None:
    """The rules hold for whatever a pipeline returns, also for trees no sane parser makes."""
    tokens = data.draw(st.lists(WORDS, min_size=1, max_size=14))
    size = len(tokens)
    tags = data.draw(st.lists(TAGS, min_size=size, max_size=size))
    labels = data.draw(st.lists(LABELS, min_size=size, max_size=size))
    order = data.draw(st.permutations(range(size)))
    heads = list(range(size))
    for place, token in enumerate(order[1:], start=1):
        heads[token] = order[data.draw(st.integers(0, place - 1))]
    assert_valid(graph_from_parse(tokens, tags, labels, heads))


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


@pytest.mark.parametrize(
    ("form", "lemma"),
    [
        ("boxes", "box"),
        ("knives", "knife"),
        ("bushes", "bush"),
        ("people", "people"),
        ("grass", "grass"),
        ("horses", "horse"),
        ("cherries", "cherry"),
        ("women", "woman"),
        ("glasses", "glasses"),
    ],
)
def test_noun_lemmas(form: str, lemma: str) -> None:
    assert lemmatize_noun(form) in {lemma, lemma.removesuffix("es")}


@pytest.mark.parametrize(
    ("form", "lemma"),
    [
        ("riding", "ride"),
        ("sitting", "sit"),
        ("held", "hold"),
        ("grazing", "graze"),
        ("carries", "carry"),
        ("skateboarding", "skateboard"),
        ("has", "have"),
        ("covered", "cover"),
        ("parked", "park"),
        ("eating", "eat"),
    ],
)
def test_verb_lemmas(form: str, lemma: str) -> None:
    assert lemmatize_verb(form) == lemma


def test_another_pipeline_takes_the_place_of_the_shipped_one(parser: CaptionParser) -> None:
    import tbkin_core

    other = CaptionParser(str(Path(tbkin_core.__file__).parent / "resources" / "parser"))
    assert list(other.parse(EXAMPLES)) == list(parser.parse(EXAMPLES))
    assert other.version
    assert parser.name == "builtin"


def test_treebank_conversion(tmp_path: Path) -> None:
    """Copula and preposition become heads, conjuncts a chain, hyphenated words one token."""
    path = Path(__file__).resolve().parents[1] / "examples" / "train_parser.py"
    specification = importlib.util.spec_from_file_location("train_parser", path)
    assert specification is not None
    assert specification.loader is not None
    train_parser = importlib.util.module_from_spec(specification)
    sys.modules["train_parser"] = train_parser
    specification.loader.exec_module(train_parser)
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
    assert {(item.subject, item.object) for item in plain.relations} == {
        (item.subject, item.object) for item in factual.relations
    }


def test_each_other_names_no_object() -> None:
    graph = next(iter(CaptionParser().parse(["two zebras standing next to each other"])))
    assert {item.name for item in graph.objects} == {"zebra"}  # no "other"
