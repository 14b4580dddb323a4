"""The recipe that trains the scene-graph network: alignment, questions made of captions, and the weights."""

from __future__ import annotations

import importlib
import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from networks import parsed_batch, write_network

from tbkin_core.parsing.network import (
    JOINED,
    NO_OBJECT,
    OBJECT,
    PART,
    SAME,
    GraphNetwork,
    Vocabulary,
    read_network,
)
from tbkin_core.parsing.parser import CaptionParser

RECIPES = Path(__file__).resolve().parents[1] / "examples" / "shipped_models"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        return importlib.import_module("train_scene_graphs")


@pytest.fixture(scope="module")
def nlp() -> object:
    return CaptionParser.pipeline()


def aligned(recipe: ModuleType, nlp: object, caption: str, graph: str):  # type: ignore[no-untyped-def]
    (row,) = recipe.parsed([caption.split()], nlp)
    vocabulary = Vocabulary(recipe.TAGS, recipe.LABELS)
    return recipe.align(row, graph, vocabulary, Counter({("guy", "person"): 9}))


def test_a_graph_is_found_in_its_words(recipe: ModuleType, nlp: object) -> None:
    row = aligned(
        recipe,
        nlp,
        "two guys on a light blue bed spread",
        "( guys , on , bed spread ) , ( guys , is , 2 ) , ( bed spread , is , light blue )",
    )
    assert row.roles == [NO_OBJECT, OBJECT, *[NO_OBJECT] * 4, PART, OBJECT]
    assert row.attributes == {(0, 1): "", (5, 7): ""}
    assert [word for word, before in zip(row.words, row.prefix, strict=True) if before] == ["light"]
    assert row.relations == {(1, 7): ">on"}


def test_other_names_and_each_other(recipe: ModuleType, nlp: object) -> None:
    row = aligned(recipe, nlp, "a guy with a cell phone", "( person , with , cellphone )")
    assert row.roles == [NO_OBJECT, "=person", NO_OBJECT, NO_OBJECT, JOINED, OBJECT]
    assert row.relations == {(1, 5): ">with"}
    row = aligned(recipe, nlp, "dogs next to each other", "( dogs , next to , dogs )")
    assert row.roles[0] == OBJECT
    assert row.roles[4] == SAME
    assert row.relations == {(0, 4): ">next to"}


def test_which_of_two_men_is_left_open(recipe: ModuleType, nlp: object) -> None:
    row = aligned(
        recipe, nlp, "a man behind a tall man in a hat", "( man , behind , man ) , ( man , is , tall )"
    )
    assert row.attributes == {(4, 5): ""}
    assert row.open_attributes == {(4, 1)}


def test_questions_keep_what_they_say(recipe: ModuleType, nlp: object) -> None:
    """Every new text has its objects, attributes and relations at words that also stood in the caption."""
    row = aligned(
        recipe,
        nlp,
        "a red cup on a wooden table",
        "( cup , is , red ) , ( cup , on , table ) , ( table , is , wooden )",
    )
    made = [new for seed in range(40) for new in recipe.framed([row], nlp, 1.0, random.Random(seed))]
    assert len({tuple(new.words) for new in made}) > 10
    for new in made:
        words = new.words
        assert {words[head] for head in new.objects} <= {"cup", "table"}
        for (token, head), form in new.attributes.items():
            assert form == ""
            said = (words[token], words[head])
            assert said in {("red", "cup"), ("wooden", "table")} or said[0] in {
                "left", "right", "second", "middle",
            }, (words, said)  # fmt: skip
        for (first, second), relation in new.relations.items():
            assert (words[first], words[second]) == ("cup", "table")
            assert relation[0] == ">"
            assert set(relation[1:].split()) <= set(words)


def small(recipe: ModuleType):  # type: ignore[no-untyped-def]
    """Untrained weights and their names."""
    torch.manual_seed(0)
    names = recipe.Names(
        [NO_OBJECT, OBJECT, PART, JOINED, SAME], ["", "wooden"], ["none", ">@preposition", "<@verb", ">have"]
    )
    vectors = np.random.default_rng(0).normal(0, 0.3, (4, 16)).astype(np.float32)
    model = recipe.SmallNetwork(names, vectors, width=24, layers=2, arc=8, relation=16)
    words = ["dog", "cat", "sofa"]
    stored = {
        "roles": names.roles,
        "forms": names.forms,
        "outcomes": names.outcomes,
        "tags": recipe.TAGS,
        "labels": recipe.LABELS,
        "words": words,
    }
    return model.eval(), names, stored


def test_numpy_computes_what_torch_trained(recipe: ModuleType, nlp: object) -> None:
    model, names, stored = small(recipe)
    network = GraphNetwork(model.arrays(), stored)
    rows = recipe.parsed(
        [text.split() for text in ("a dog on a red sofa with a cat", "cat", "dogs near the bus")], nlp
    )
    known = {word: number for number, word in enumerate(stored["words"], start=1)}
    inputs = recipe.small_inputs(rows, known, network.vocabulary)
    with torch.no_grad():
        states = model(recipe.collate_small(inputs))
    expected = recipe.choices_of(model.heads, states, [len(row.words) for row in rows], names)
    batch = parsed_batch(network.vocabulary, (row.parse for row in rows))
    mask = torch.arange(states.shape[1])[None] < torch.tensor([[len(row.words)] for row in rows])
    # Weights and rows are rounded to a percent or so of their largest number.
    assert np.abs(network.states(batch) - states[mask].numpy()).max() < 0.05
    found = network(batch)
    assert len(found.pairs) > 3
    for name in ("role", "prefix", "form", "pairs"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert {*map(tuple, found.attributes)} == {*map(tuple, expected.attributes)}
    assert np.abs(found.relations - expected.relations).max() < 0.02


def test_a_written_network_is_nearly_the_trained_one(recipe: ModuleType, nlp: object, tmp_path: Path) -> None:
    model, _, stored = small(recipe)
    write_network(tmp_path / "network.npz", model.arrays(), stored)
    rows = recipe.parsed([["a", "dog", "on", "a", "sofa"]], nlp)
    networks = [read_network(tmp_path / "network.npz"), GraphNetwork(model.arrays(), stored)]
    states = [
        network.states(parsed_batch(network.vocabulary, (row.parse for row in rows))) for network in networks
    ]
    assert np.abs(states[0] - states[1]).max() < 0.1
    assert np.abs(states[0]).max() > 0.5
    assert networks[0].outcomes == networks[1].outcomes == tuple(stored["outcomes"])
