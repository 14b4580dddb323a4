"""Losses: sums over targets, optimal transport against linear programming, box refinement."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor
from torch.nn import functional

from tbkin_core.modeling.losses import (
    answer_loss,
    box_loss,
    image_words_loss,
    masked_word_loss,
    matching_loss,
    optimal_transport_distance,
    region_class_loss,
    region_feature_loss,
    region_score_loss,
)
from tbkin_core.tasks.rec import apply_deltas, box_deltas

ROWS, CLASSES, REGIONS = 8, 5, 4
SEEDS = st.integers(0, 10**6)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(seed: int) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Every loss with inputs whose first dimension is the 8 samples."""
    source = generator(seed)
    logits = torch.randn((ROWS, CLASSES), generator=source)
    targets = torch.randint(-1, CLASSES, (ROWS,), generator=source)
    scores = torch.rand((ROWS, CLASSES), generator=source).round(decimals=1)
    present = torch.arange(REGIONS)[None] < torch.randint(1, REGIONS + 1, (ROWS, 1), generator=source)
    near = present & (torch.rand((ROWS, REGIONS), generator=source) < 0.4)
    share = near / near.sum(dim=1, keepdim=True).clamp_min(1)
    boxes = torch.randn((2, ROWS, REGIONS, 4), generator=source)
    words = torch.arange(3)[None] < torch.randint(1, 4, (ROWS, 1), generator=source)
    states = torch.randn((ROWS, 3, 6), generator=source), torch.randn((ROWS, REGIONS, 6), generator=source)
    return {
        "words": (masked_word_loss, (logits, targets.clamp_min(0))),
        "features": (region_feature_loss, (logits, 2 * logits.flip(0))),
        "classes": (region_class_loss, (logits, targets, scores[:, 0])),
        "matching": (matching_loss, (logits[:, :2], targets > 1)),
        "image words": (image_words_loss, (logits, targets.clamp_min(0)[:, None].expand(-1, 3), words)),
        "kl": (functools.partial(answer_loss, kind="kl"), (logits, scores)),
        "bce": (functools.partial(answer_loss, kind="bce"), (logits, scores)),
        "regions": (region_score_loss, (logits[:, :REGIONS], share, present)),
        "boxes": (box_loss, (boxes[0], boxes[1], near)),
        "transport": (lambda *inputs: optimal_transport_distance(*inputs).sum(), (*states, words, present)),
    }


LOSSES = tuple(samples(0))


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
@pytest.mark.parametrize("name", LOSSES)
def test_eight_samples_cost_eight_times_one(name: str, seed: int) -> None:
    loss, inputs = samples(seed)[name]
    singly = sum(loss(*(value[row : row + 1] for value in inputs)) for row in range(ROWS))
    torch.testing.assert_close(loss(*inputs), singly, atol=1e-4, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_eight_samples_are_those_of_each(name: str, seed: int) -> None:
    loss, inputs = samples(seed)[name]

    def gradient(first: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        leaf = first.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, *rest), leaf)[0]

    together = gradient(inputs[0], inputs[1:])
    singly = torch.cat(
        [
            gradient(inputs[0][row : row + 1], tuple(value[row : row + 1] for value in inputs[1:]))
            for row in range(ROWS)
        ]
    )
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, singly, atol=1e-5, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_sums_equal_means_times_counts(seed: int) -> None:
    logits = torch.randn((ROWS, CLASSES), generator=generator(seed))
    targets = torch.randint(0, CLASSES, (ROWS,), generator=generator(seed + 1))
    mean = functional.cross_entropy(logits, targets)
    torch.testing.assert_close(masked_word_loss(logits, targets), ROWS * mean)
    torch.testing.assert_close(region_class_loss(logits, targets, torch.ones(ROWS)), ROWS * mean)
    torch.testing.assert_close(
        region_feature_loss(logits, logits.flip(0)), ROWS * functional.smooth_l1_loss(logits, logits.flip(0))
    )
    scores = torch.rand((ROWS, CLASSES), generator=generator(seed + 2))
    torch.testing.assert_close(
        answer_loss(logits, scores, "bce"),
        ROWS * CLASSES * functional.binary_cross_entropy_with_logits(logits, scores),
    )


def test_nothing_to_learn_costs_nothing_and_has_a_gradient() -> None:
    logits = torch.randn((3, CLASSES), requires_grad=True)
    deltas = torch.randn((3, REGIONS, 4), requires_grad=True)
    unknown = region_class_loss(logits, torch.full((3,), -1), torch.ones(3))
    nowhere = box_loss(deltas, torch.zeros(3, REGIONS, 4), torch.zeros(3, REGIONS, dtype=torch.bool))
    (unknown + nowhere).backward()
    assert unknown.item() == 0
    assert nowhere.item() == 0
    for leaf in (logits, deltas):
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_unknown_classes_cost_nothing_and_confidence_weighs() -> None:
    logits = torch.randn((4, CLASSES), generator=generator(0))
    targets, confidence = torch.tensor([-1, 2, -1, 4]), torch.tensor([1.0, 0.5, 1.0, 0.25])
    singly = functional.cross_entropy(logits[[1, 3]], targets[[1, 3]], reduction="none")
    torch.testing.assert_close(
        region_class_loss(logits, targets, confidence), 0.5 * singly[0] + 0.25 * singly[1]
    )


def test_the_words_of_a_text_count_alike_and_a_text_of_none_costs_nothing() -> None:
    logits = torch.randn((3, CLASSES), generator=generator(1))
    words = torch.tensor([[1, 2, 0], [4, 0, 0], [3, 3, 3]])
    told = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    chances = logits.log_softmax(-1)
    expected = -(chances[0, 1] + chances[0, 2]) / 2 - chances[1, 4]
    assert image_words_loss(logits, words, told) == pytest.approx(float(expected))


def test_kl_is_zero_at_its_target_and_bce_least_there() -> None:
    scores = torch.tensor([[0.9, 0.3, 0.0, 0.0, 0.6]])
    logits = (scores / scores.sum()).clamp_min(1e-20).log()
    assert answer_loss(logits, scores, "kl").item() == pytest.approx(0, abs=1e-6)
    at_target = answer_loss(scores.clamp(1e-6, 1 - 1e-6).logit(), scores, "bce")
    assert at_target < answer_loss(scores.clamp(1e-6, 1 - 1e-6).logit() + 0.3, scores, "bce")
    assert answer_loss(logits, torch.zeros_like(scores), "kl").item() == 0


def test_region_scores_ignore_padding_and_rows_without_a_target() -> None:
    scores = torch.tensor([[1.0, 2.0, float("-inf")], [0.5, 0.1, 0.2]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    targets = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]])
    loss = region_score_loss(scores, targets, mask)
    expected = functional.kl_div(
        torch.tensor([1.0, 2.0]).log_softmax(0), torch.tensor([0.25, 0.75]), reduction="sum"
    )
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert torch.isfinite(gradient).all()
    assert not gradient[1].any()


# ---- optimal transport --------------------------------------------------------------------------


def exact_transport(cost: np.ndarray) -> float:
    """Least cost of moving uniform mass from rows to columns, by linear programming."""
    rows, columns = cost.shape
    constraints = [np.kron(np.eye(rows)[row], np.ones(columns)) for row in range(rows)]
    constraints += [np.kron(np.ones(rows), np.eye(columns)[column]) for column in range(columns)]
    marginals = [1 / rows] * rows + [1 / columns] * columns
    return float(linprog(cost.ravel(), A_eq=np.array(constraints), b_eq=marginals, bounds=(0, None)).fun)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, words=st.integers(1, 4), boxes=st.integers(1, 4))
def test_transport_comes_near_the_exact_cost(seed: int, words: int, boxes: int) -> None:
    text = torch.randn((1, words, 5), generator=generator(seed))
    regions = torch.randn((1, boxes, 5), generator=generator(seed + 1))
    masks = torch.ones((1, words), dtype=torch.bool), torch.ones((1, boxes), dtype=torch.bool)
    cost = (1 - functional.normalize(text[0], dim=-1) @ functional.normalize(regions[0], dim=-1).T).numpy()
    exact = exact_transport(cost)
    assert optimal_transport_distance(text, regions, *masks).item() == pytest.approx(exact, abs=0.05)
    many = optimal_transport_distance(text, regions, *masks, iterations=1500)
    assert many.item() == pytest.approx(exact, abs=5e-3)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, words=st.integers(0, 3), boxes=st.integers(0, 3))
def test_transport_does_not_see_padding(seed: int, words: int, boxes: int) -> None:
    text = torch.randn((1, 3, 5), generator=generator(seed))
    regions = torch.randn((1, 3, 5), generator=generator(seed + 1))
    masks = torch.arange(3)[None] < words, torch.arange(3)[None] < boxes
    padded = optimal_transport_distance(text, regions, *masks)
    assert torch.isfinite(padded).all()
    if not words or not boxes:
        assert padded.item() == 0
        return
    plain = optimal_transport_distance(
        text[:, :words], regions[:, :boxes], masks[0][:, :words], masks[1][:, :boxes]
    )
    torch.testing.assert_close(padded, plain, atol=1e-5, rtol=1e-5)


def test_transport_of_equal_sets_is_nearly_free() -> None:
    states = torch.eye(4)[None]
    everything = torch.ones((1, 4), dtype=torch.bool)
    order = torch.tensor([2, 0, 3, 1])
    assert optimal_transport_distance(states, states[:, order], everything, everything).item() < 1e-3
    assert optimal_transport_distance(states, -states, everything, everything).item() > 0.9


# ---- boxes --------------------------------------------------------------------------------------

SIDE = st.floats(0, 300, width=32)
BOXES = st.tuples(SIDE, SIDE, st.floats(1, 200, width=32), st.floats(1, 200, width=32)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(BOXES, BOXES), min_size=1, max_size=5))
def test_refining_by_the_difference_of_two_boxes_gives_the_second(
    pairs: list[tuple[tuple[float, ...], tuple[float, ...]]],
) -> None:
    boxes, targets = (np.array(side, np.float32) for side in zip(*pairs, strict=True))
    sizes = np.full((len(pairs), 2), 1000, np.float32)
    found = apply_deltas(boxes, box_deltas(boxes, targets), sizes)
    growth = np.log(targets[:, 2:] - targets[:, :2]) - np.log(boxes[:, 2:] - boxes[:, :2])
    reachable = (np.abs(growth) < 2).all(axis=1)  # growth is limited to a factor of e²
    np.testing.assert_allclose(found[reachable], targets[reachable], atol=0.05)
    assert (found >= 0).all()
    assert (found <= 1000).all()


def test_no_refinement_keeps_the_box_inside_the_image() -> None:
    boxes = np.array([[10, 20, 30, 60], [-5, 0, 900, 40]], np.float32)
    found = apply_deltas(boxes, np.zeros((2, 4), np.float32), np.array([[100, 100], [50, 30]], np.float32))
    np.testing.assert_allclose(found, [[10, 20, 30, 60], [0, 0, 50, 30]], atol=1e-4)
