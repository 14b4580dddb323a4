"""Thresholded attention against a slow reference, and the guarantees that τ = 0 and padding carry."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tbkin_core.errors import ConfigError
from tbkin_core.modeling import Selection, TbkinConfig, TbkinForVqa, selective_attention
from tbkin_core.modeling.attention import scope_mask, select_keys, transformed_weights
from tbkin_core.selection import (
    RULE_TABLE,
    RULES,
    SCOPES,
    SELECTIONS,
    TRANSFORMS,
    check_threshold,
    grown,
    run_name_part,
    usual_threshold,
)

BATCH, HEADS, LENGTH, WIDTH, TEXT = 2, 2, 7, 4, 4
# Whether key j is kept for query i, from A_ij, s_ij, all A_i of keys there are, and the threshold.
EQUATIONS: dict[str, Callable[[float, float, list[float], float], bool]] = {
    "relative": lambda weight, score, row, threshold: weight >= threshold * max(row),
    "probability": lambda weight, score, row, threshold: weight >= threshold,
    "score": lambda weight, score, row, threshold: score >= threshold,
    "topk": lambda weight, score, row, threshold: weight in sorted(row)[-int(threshold) :],
}


def thresholds(rule: str) -> st.SearchStrategy[float]:
    """Thresholds under which a rule selects."""
    entry = RULE_TABLE[rule]
    if entry.whole:
        return st.integers(1, LENGTH + 2).map(float)
    if math.isinf(entry.low):
        return st.floats(-2, 2).filter(lambda value: abs(value) > 1e-3)
    return st.floats(1e-3, min(entry.high, LENGTH))


@st.composite
def selections(draw: st.DrawFn, scope: str | None = None) -> Selection:
    rule = draw(st.sampled_from(RULES))
    chosen = scope or draw(st.sampled_from(SCOPES))
    return Selection(rule, draw(thresholds(rule)), scope=chosen)


def random_attention(
    seed: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value (B, H, L, D) and a mask (B, 1, 1, L) with some padding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, HEADS, LENGTH, WIDTH)
    query, key, value = (2 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
    mask = torch.rand((BATCH, 1, 1, LENGTH), generator=generator) > 0.3
    mask[..., 0] = True
    return query, key, value, mask


def may_drop(scope: str, query: int, key: int) -> bool:
    sides = ("text" if query < TEXT else "image", "text" if key < TEXT else "image")
    crossing = {"text-to-image": [("text", "image")], "image-to-text": [("image", "text")]}
    crossing["cross-modal"] = crossing["text-to-image"] + crossing["image-to-text"]
    return scope == "all" or sides in crossing[scope]


def reference_row(
    scores: NDArray[np.float64], valid: NDArray[np.bool_], selection: Selection, query: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Kept keys and weights of one query, entry by entry from the equations, probabilities and all."""
    present = [key for key in range(len(scores)) if valid[key]]
    exponentials = {key: math.exp(scores[key] - max(scores[other] for other in present)) for key in present}
    attention = {key: value / sum(exponentials.values()) for key, value in exponentials.items()}
    largest = max(attention.values())
    row = list(attention.values())
    kept = np.zeros(len(scores), np.bool_)
    for key in present:
        keep = EQUATIONS[selection.rule](attention[key], scores[key], row, selection.threshold)
        kept[key] = keep or attention[key] == largest or not may_drop(selection.scope, query, key)
    weights = np.array([attention.get(key, 0.0) if kept[key] else 0.0 for key in range(len(scores))])
    return kept, weights / weights.sum()


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), selection=selections())
def test_every_rule_equals_the_equations(seed: int, selection: Selection) -> None:
    query, key, value, mask = random_attention(seed)
    output, record = selective_attention(query, key, value, mask, selection, text_length=TEXT, record=True)
    assert record is not None
    scores = np.einsum("bhid,bhjd->bhij", query.numpy(), key.numpy()) / math.sqrt(WIDTH)
    for batch in range(BATCH):
        valid = mask[batch, 0, 0].numpy()
        for head in range(HEADS):
            for row in range(LENGTH):
                kept, weights = reference_row(scores[batch, head, row], valid, selection, row)
                place = (batch, head, row)
                np.testing.assert_array_equal(record.kept[place].numpy(), kept)
                np.testing.assert_allclose(record.weights[place].numpy(), weights, atol=1e-12)
                np.testing.assert_allclose(
                    output[place].numpy(), weights @ value[batch, head].numpy(), atol=1e-10
                )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), selection=selections())
def test_rows_sum_to_one_keep_their_largest_and_never_padding(seed: int, selection: Selection) -> None:
    query, key, value, mask = random_attention(seed, torch.float32)
    _, record = selective_attention(query, key, value, mask, selection, text_length=TEXT, record=True)
    assert record is not None
    torch.testing.assert_close(record.weights.sum(dim=-1), torch.ones(BATCH, HEADS, LENGTH))
    assert record.kept.gather(-1, record.scores.argmax(dim=-1, keepdim=True)).all()
    assert not (record.kept & ~mask).any()
    assert (record.weights[~record.kept] == 0).all()
    assert (record.weights[record.kept] > 0).all()
    free = scope_mask(selection.scope, TEXT, LENGTH)
    if free is not None:
        assert (record.kept | ~mask)[..., ~free].all(), "outside its scope a selection drops nothing"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_a_larger_threshold_keeps_a_subset(seed: int, data: st.DataObject) -> None:
    rule = data.draw(st.sampled_from([name for name in RULES if not RULE_TABLE[name].whole]))
    low, high = sorted(data.draw(st.tuples(thresholds(rule), thresholds(rule))))
    query, key, _, mask = random_attention(seed)
    scores = (query @ key.transpose(-2, -1)).masked_fill(~mask, float("-inf"))
    assert not (select_keys(scores, rule, high) & ~select_keys(scores, rule, low)).any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, LENGTH + 3))
def test_topk_keeps_k_of_the_keys_there_are(seed: int, k: int) -> None:
    query, key, _, mask = random_attention(seed)
    scores = (query @ key.transpose(-2, -1)).masked_fill(~mask, float("-inf"))
    expected = mask.sum(dim=-1).clamp_max(k).expand(BATCH, HEADS, LENGTH)
    assert torch.equal(select_keys(scores, "topk", float(k)).sum(dim=-1), expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), selection=selections(), straight=st.booleans())
def test_gradients_of_dropped_keys(seed: int, selection: Selection, straight: bool) -> None:
    query, key, value, mask = random_attention(seed)
    scores = (query @ key.transpose(-2, -1) / math.sqrt(WIDTH)).masked_fill(~mask, float("-inf"))
    kept = select_keys(scores, selection.rule, selection.threshold, scope_mask(selection.scope, TEXT, LENGTH))
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=value.dtype)
    chosen = Selection(selection.rule, selection.threshold, scope=selection.scope, straight_through=straight)

    def gradients(function: Any) -> tuple[torch.Tensor, ...]:
        inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        return torch.autograd.grad((function(*inputs) * upstream).sum(), inputs)

    def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = (query @ key.transpose(-2, -1) / math.sqrt(WIDTH)).masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1) @ value

    def restricted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = query @ key.transpose(-2, -1) / math.sqrt(WIDTH)
        exponentials = torch.where(kept, scores.exp(), 0.0)
        return exponentials / exponentials.sum(dim=-1, keepdim=True) @ value

    def selected(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return selective_attention(query, key, value, mask, chosen, text_length=TEXT)[0]

    found = gradients(selected)
    sparse = gradients(restricted)
    expected = gradients(dense) if straight else sparse
    # What a key is asked (query, key) learns as in the dense model; what it says (value) as selected.
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    torch.testing.assert_close(found[2], sparse[2])


def tiny_model(**settings: Any) -> TbkinForVqa:
    torch.manual_seed(0)
    config = TbkinConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        region_feature_size=6,
        num_answers=5,
        initializer_range=0.6,
        **settings,
    )
    return TbkinForVqa(config).eval()


@functools.cache
def shared_model() -> TbkinForVqa:
    return tiny_model()


def tiny_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(0, 30, (3, 5), generator=generator),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool(),
        "region_features": torch.randn((3, 4, 6), generator=generator),
        "region_geometry": torch.rand((3, 4, 5), generator=generator),
        "region_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool(),
    }


# ---- sparsemax and 1.5-entmax -------------------------------------------------------------------


def solved(scores: NDArray[np.float64], rule: str) -> NDArray[np.float64]:
    """The transform by its definition: max(s - t, 0), or max(s / 2 - t, 0)², with the t that sums to 1."""
    high = float(scores.max()) / (2 if rule == "entmax15" else 1)
    low = high - 1

    def weights(cut: float) -> NDArray[np.float64]:
        return np.maximum(scores / 2 - cut, 0) ** 2 if rule == "entmax15" else np.maximum(scores - cut, 0)

    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if weights(middle).sum() > 1 else (low, middle)
    return weights(low)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(TRANSFORMS), scope=st.sampled_from(SCOPES))
def test_transforms_equal_their_definition(seed: int, rule: str, scope: str) -> None:
    query, key, value, mask = random_attention(seed)
    selection = Selection(rule, 1, scope=scope)
    output, record = selective_attention(query, key, value, mask, selection, text_length=TEXT, record=True)
    assert record is not None
    torch.testing.assert_close(
        record.weights.sum(dim=-1), torch.ones(BATCH, HEADS, LENGTH, dtype=torch.float64)
    )
    torch.testing.assert_close(output, record.weights @ value)
    assert not (record.kept & ~mask).any()
    assert (record.weights[~record.kept] == 0).all()
    scores = (query @ key.transpose(-2, -1) / math.sqrt(WIDTH)).numpy()
    for batch in range(BATCH):
        valid = mask[batch, 0, 0].numpy()
        for head in range(HEADS):
            for row in range(LENGTH):
                line = scores[batch, head, row]
                dense = np.where(valid, np.exp(line - line[valid].max()), 0)
                expected = dense / dense.sum()
                inside = valid & np.array([may_drop(scope, row, key) for key in range(LENGTH)])
                if inside.any():
                    expected[inside] = expected[inside].sum() * solved(line[inside], rule)
                found = record.weights[batch, head, row].numpy()
                np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("rule", TRANSFORMS)
def test_transforms_are_those_of_the_library(rule: str) -> None:
    import entmax

    scores = 2 * torch.randn((2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(transformed_weights(scores, rule), getattr(entmax, rule)(scores, dim=-1))
    half = transformed_weights(scores.bfloat16(), rule)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), transformed_weights(scores, rule), atol=0.02, rtol=0)


def test_sparsemax_drops_more_than_entmax() -> None:
    query, key, value, mask = random_attention(0)
    kept = []
    for rule in ("entmax15", "sparsemax"):
        _, record = selective_attention(query, key, value, mask, Selection(rule, 1), record=True)
        assert record is not None
        kept.append(int(record.kept.sum()))
    assert int(mask.sum()) * HEADS * LENGTH > kept[0] > kept[1] >= BATCH * HEADS * LENGTH


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("scope", ["all", "text-to-image"])
@pytest.mark.parametrize("rule", TRANSFORMS)
def test_gradients_of_transforms(rule: str, scope: str, straight: bool) -> None:
    query, key, value, mask = (tensor[:1, :1] for tensor in random_attention(4))
    selection = Selection(rule, 1, scope=scope, straight_through=straight)
    inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value)]

    def output(*tensors: torch.Tensor) -> torch.Tensor:
        return selective_attention(*tensors, mask, selection, text_length=TEXT)[0]

    gradients = torch.autograd.grad(output(*inputs).square().sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Padded keys are asked nothing and say nothing.
    for gradient in gradients[1:]:
        assert (gradient.masked_select(~mask.transpose(-2, -1)) == 0).all()
    if not straight:
        assert torch.autograd.gradcheck(output, inputs, eps=1e-7, atol=1e-4)


def test_a_transform_is_on_or_off() -> None:
    with pytest.raises(ConfigError, match="has none, omit it"):
        Selection("sparsemax", 0.3)
    assert Selection("entmax15", 0).name == "dense"
    assert Selection("entmax15", 1).name == "entmax15"


def test_a_layer_that_does_not_select_is_dense() -> None:
    chosen = Selection("relative", 0.3, layers=(1,), scope="cross-modal")
    assert chosen.in_layer(1) == chosen
    assert chosen.in_layer(0).threshold == 0
    assert Selection("relative", 0.3).in_layer(7).threshold == 0.3


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("rule", SELECTIONS)
def test_threshold_zero_is_the_dense_model_bit_for_bit(rule: str, scope: str) -> None:
    model, inputs = shared_model(), tiny_inputs()
    model.tbkin.selection = Selection()
    with torch.no_grad():
        dense = model(**inputs).vqa_logits
        model.tbkin.selection = Selection(rule, 0.0, scope=scope, straight_through=True)
        assert torch.equal(model(**inputs).vqa_logits, dense)
        entry = RULE_TABLE[rule]
        strong = 2.0 if entry.whole or math.isinf(entry.low) else 0.9
        model.tbkin.selection = Selection(rule, 1.0 if entry.is_transform else strong)
        assert not torch.equal(model(**inputs).vqa_logits, dense)


@settings(max_examples=20, deadline=None)
@given(selection=st.one_of(selections(), st.just(Selection()), st.just(Selection("entmax15", 1))))
def test_recording_changes_nothing(selection: Selection) -> None:
    model, inputs = shared_model(), tiny_inputs()
    model.tbkin.selection = selection
    with torch.no_grad():
        plain, recorded = model(**inputs), model(**inputs, output_attentions=True)
    assert torch.equal(plain.vqa_logits, recorded.vqa_logits)
    assert plain.attentions is None
    assert len(recorded.attentions) == 3
    assert recorded.attentions[0].weights.shape == (3, 2, 9, 9)


def test_only_the_named_layers_select() -> None:
    model, inputs = tiny_model(threshold=0.9, threshold_layers=[1]), tiny_inputs()
    valid = torch.cat([inputs["attention_mask"], inputs["region_mask"]], dim=1)[:, None, None, :]
    with torch.no_grad():
        records = model(**inputs, output_attentions=True).attentions
    everything = valid.expand_as(records[0].kept)
    assert torch.equal(records[0].kept, everything)
    assert torch.equal(records[2].kept, everything)
    assert records[1].kept.sum() < everything.sum()
    with torch.no_grad():
        dense = tiny_model()(**inputs).vqa_logits
        none = tiny_model(threshold=0.9, threshold_layers=[])(**inputs).vqa_logits
    assert torch.equal(dense, none)


def test_pair_mask_hides_keys_from_single_queries() -> None:
    query, key, value, mask = random_attention(3)
    pairs = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool)
    pairs[:, :, 2, 1:] = False
    for selection in (Selection(), Selection("relative", 0.2)):
        output, record = selective_attention(query, key, value, mask & pairs, selection, record=True)
        assert record is not None
        torch.testing.assert_close(output[:, :, 2], value[:, :, 0])
        assert not record.kept[:, :, 2, 1:].any()


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        ("relative", 1.1), ("relative", -0.1), ("probability", 2.0), ("topk", 1.5), ("topk", -1.0),
        ("score", math.nan), ("relative", math.inf), ("nearest", 0.1),
    ],
)  # fmt: skip
def test_thresholds_out_of_range_are_refused(rule: str, threshold: float) -> None:
    with pytest.raises(ConfigError):
        Selection(rule, threshold)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ConfigError, match="cross-modal"):
        Selection("relative", 0.1, scope="crossmodal")


@pytest.mark.parametrize("rule", SELECTIONS)
def test_an_entry_of_the_table_is_whole(rule: str) -> None:
    """What settings, figures and page take from an entry is there and fits its range."""
    entry = RULE_TABLE[rule]
    usual = usual_threshold(rule)
    assert usual != 0 and check_threshold(rule, usual) is None and check_threshold(rule, 0) is None
    assert entry.is_transform or (entry.keeps and entry.axis)
    assert not entry.whole or entry.unit
    assert run_name_part(rule, usual) == (rule if entry.is_transform else f"{rule}-{usual:g}")
    assert Selection(rule, usual).name.startswith(rule) and Selection(rule).name == "dense"


@pytest.mark.parametrize("rule", SELECTIONS)
def test_a_selection_grows_from_dense_to_itself(rule: str) -> None:
    """And drops no key on its way that it keeps in the end."""
    full = Selection(rule, usual_threshold(rule), scope="cross-modal")
    assert grown(full, 1) == grown(full, math.inf) == full
    if RULE_TABLE[rule].is_transform:
        assert grown(full, 0.2) == full
        return
    assert grown(full, 0).threshold == grown(full, -3).threshold == 0
    scores = 1.5 * torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    shares = []
    kept = torch.ones_like(scores, dtype=torch.bool)
    for place in (0.01, 0.2, 0.4, 0.6, 0.8, 0.95, 1):
        part = grown(full, place)
        assert part.scope == "cross-modal" and check_threshold(rule, part.threshold) is None
        now = select_keys(scores, rule, part.threshold)
        assert not (now & ~kept).any()
        kept = now
        shares.append(float(now.float().mean()))
    assert shares[0] > 0.9 and shares[-1] < 0.6
    # Neither at once in the beginning nor in the end.
    assert max(a - b for a, b in itertools.pairwise(shares)) < 0.4


def test_selections_in_words() -> None:
    given = [("relative", 0.25), ("topk", 4), ("topk", 1), ("entmax15", 1)]
    assert [RULE_TABLE[rule].in_words(threshold) for rule, threshold in given] == [
        "relative, τ = 0.25",
        "top 4 keys",
        "top 1 key",
        "entmax15",
    ]
    assert [Selection(rule, threshold).name for rule, threshold in given] == [
        "relative τ = 0.25",
        "topk k = 4",
        "topk k = 1",
        "entmax15",
    ]
