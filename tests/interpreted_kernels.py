"""The kernels in Triton's interpreter, on a CPU, against plain PyTorch.

`tests/test_kernels.py` runs this file in a process of its own: Triton reads TRITON_INTERPRET when it defines
a kernel, so that no process can have both.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkin_core.modeling import (
    Selection,
    TbkinConfig,
    TbkinForVqa,
    acceleration,
    kernel_checks,
    kernels,
    selective_attention,
)
from tbkin_core.modeling.acceleration import accelerate
from tbkin_core.modeling.attention import scope_mask, select_keys
from tbkin_core.modeling.losses import optimal_transport_distance, proximal_plan
from tbkin_core.selection import SCOPES

CPU = torch.device("cpu")
BATCH, HEADS, LENGTH, WIDTH, TEXT = 2, 2, 19, 8, 7
THRESHOLDS = {"relative": 0.3, "probability": 0.05, "score": 0.4}
VARIANTS = list(itertools.product(THRESHOLDS, SCOPES, (False, True)))


def inputs(
    seed: int, dtype: torch.dtype = torch.float32, length: int = LENGTH, width: int = WIDTH
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Query, key, value as a layer makes them, views of (B, L, H·D); a mask (B, L); an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)

    def states() -> torch.Tensor:
        joined = torch.randn((BATCH, length, HEADS * width), generator=generator).to(dtype)
        return joined.view(BATCH, length, HEADS, width).transpose(1, 2)

    tensors = [(2 * states()).requires_grad_(), states().requires_grad_(), states().requires_grad_()]
    mask = torch.rand((BATCH, length), generator=generator) > 0.3
    mask[:, 0] = True
    return tensors, mask, states()


def clear_rows(
    tensors: list[torch.Tensor], mask: torch.Tensor, rule: str, scope: str, margin: float
) -> torch.Tensor:
    """(B, H, L, 1) bool: where a threshold off by the share `margin` keeps the same keys."""
    query, key = (tensor.detach().double() for tensor in tensors[:2])
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    free = scope_mask(scope, TEXT, scores.shape[-1])
    low, high = (select_keys(scores, rule, THRESHOLDS[rule] * (1 + off), free) for off in (-margin, margin))
    return (low == high).all(dim=-1, keepdim=True)


def plain(
    tensors: list[torch.Tensor], mask: torch.Tensor, selection: Selection, upstream: torch.Tensor
) -> list[torch.Tensor]:
    """Output and gradients of `selective_attention` in float64."""
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    query, key, value = exact
    output = selective_attention(query, key, value, mask[:, None, None, :], selection, text_length=TEXT)[0]
    return [output, *torch.autograd.grad(output, exact, upstream.double())]


def fused(
    tensors: list[torch.Tensor], mask: torch.Tensor, selection: Selection, upstream: torch.Tensor
) -> list[torch.Tensor]:
    query, key, value = tensors
    output = kernels.fused_attention(
        query,
        key,
        value,
        mask,
        selection.rule,
        selection.threshold,
        scope=selection.scope,
        text_length=TEXT,
        straight_through=selection.straight_through,
    )
    return [output, *torch.autograd.grad(output, tensors, upstream)]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        off = (one.double() - other).abs().max() / other.abs().max()
        assert off <= tolerance


@pytest.mark.parametrize(("rule", "scope", "straight_through"), VARIANTS)
def test_equals_plain_attention_and_its_gradients(rule: str, scope: str, straight_through: bool) -> None:
    selection = Selection(rule, THRESHOLDS[rule], scope=scope, straight_through=straight_through)
    tensors, mask, upstream = inputs(1)
    clear = clear_rows(tensors, mask, rule, scope, 1e-4)
    upstream = upstream * clear
    found, expected = (run(tensors, mask, selection, upstream) for run in (fused, plain))
    assert clear.float().mean() > 0.9
    found[0], expected[0] = found[0] * clear, expected[0] * clear
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("length", "dtype", "tolerance"),
    [
        (1, torch.float32, 1e-5),
        (33, torch.float32, 1e-5),
        (16, torch.bfloat16, 2e-2),
        (65, torch.bfloat16, 2e-2),
        (40, torch.float16, 3e-3),
    ],
)
def test_lengths_and_types(length: int, dtype: torch.dtype, tolerance: float) -> None:
    selection = Selection("relative", THRESHOLDS["relative"])
    tensors, mask, upstream = inputs(2, dtype, length, 24)
    clear = clear_rows(tensors, mask, "relative", "all", 1e-4)
    upstream = upstream * clear
    found, expected = (run(tensors, mask, selection, upstream) for run in (fused, plain))
    found[0], expected[0] = found[0] * clear, expected[0] * clear
    if length == 1:  # a single weight is 1 whatever the score, so the gradients of both are exactly 0
        assert not any(gradient.any() for gradient in found[1:3])
        found, expected = [found[0], found[3]], [expected[0], expected[3]]
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize("rule", ["dense", *THRESHOLDS])
def test_threshold_0_is_dense_whatever_the_rule(rule: str) -> None:
    (query, key, value), mask, _ = inputs(3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask[:, None, None, :])
    found = kernels.fused_attention(query, key, value, mask, rule, 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_any_strides_give_the_same() -> None:
    (query, key, value), mask, upstream = inputs(4)
    wide = [torch.cat([part, part], dim=-2)[..., ::2, :] for part in (query, key, value)]  # a step over rows
    wide[1] = wide[1].transpose(-2, -1).contiguous().transpose(-2, -1)  # last dimension apart
    masks = torch.stack([mask, mask], dim=-1)[..., 0]
    selection = Selection("relative", 0.3)
    picked = [part.detach().contiguous().requires_grad_() for part in wide]
    found = fused([part.detach().requires_grad_() for part in wide], masks, selection, upstream.contiguous())
    for one, other in zip(found, fused(picked, mask, selection, upstream), strict=True):
        assert torch.equal(one, other)
        assert one.transpose(1, 2).is_contiguous()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(THRESHOLDS)), st.sampled_from(SCOPES))
def test_keeps_the_keys_that_select_keys_keeps(seed: int, rule: str, scope: str) -> None:
    (query, key, _), mask, _ = inputs(seed, length=9, width=16)
    # Over an identity, attention returns its weights.
    value = torch.eye(9, 16).expand(BATCH, HEADS, 9, 16)
    with torch.no_grad():
        weights = kernels.fused_attention(
            query, key, value, mask, rule, THRESHOLDS[rule], scope=scope, text_length=TEXT
        )[..., :9]
    scores = query.double() @ key.double().transpose(-2, -1) / 4
    scores = scores.detach().masked_fill(~mask[:, None, None, :], float("-inf"))
    kept = select_keys(scores, rule, THRESHOLDS[rule], scope_mask(scope, TEXT, 9))
    clear = clear_rows([query, key], mask, rule, scope, 1e-4)
    assert torch.equal((weights > 0) & clear, kept & clear)
    assert not weights[~mask[:, None, None, :].expand_as(weights)].any()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(BATCH, HEADS, 9))
    assert (weights.argmax(dim=-1) == scores.argmax(dim=-1)).all()


def with_dropout(
    tensors: list[torch.Tensor], mask: torch.Tensor, seed: int, rule: str = "relative"
) -> torch.Tensor:
    torch.manual_seed(seed)
    query, key, value = tensors
    return kernels.fused_attention(query, key, value, mask, rule, 0.3, dropout=0.25)


def test_dropout_follows_the_seed_and_is_right_on_average() -> None:
    tensors, mask, _ = inputs(5)
    tensors, mask = [part[:1, :1] for part in tensors], mask[:1]  # one program, the interpreter is slow
    with torch.no_grad():
        assert torch.equal(with_dropout(tensors, mask, 1), with_dropout(tensors, mask, 1))
        runs = torch.stack([with_dropout(tensors, mask, seed) for seed in range(60)])
        query, key, value = tensors
        undropped = kernels.fused_attention(query, key, value, mask, "relative", 0.3)
    assert not torch.equal(runs[0], runs[1])
    error = runs.std(dim=0) / math.sqrt(len(runs))
    off = (runs.mean(dim=0) - undropped).abs() / error.clamp_min(1e-6)
    assert off.max() < 5
    assert off.square().mean() < 1.5


def test_dropout_drops_its_share_independently() -> None:
    factors = torch.stack(
        [
            kernel_checks.dropout_factors(2, 2, 33, 32, 0.25, torch.tensor(seed), torch.zeros(()))
            for seed in range(2)
        ]
    )
    assert set(factors.unique().tolist()) == {0.0, 1 / 0.75}
    kept = factors > 0
    assert abs(kept.double().mean() - 0.75) < 4 * math.sqrt(0.75 * 0.25 / kept.numel())
    # Places near each other along every axis agree as often as independent draws: 0.75² + 0.25².
    for axis, apart in itertools.product(range(5), range(1, 9)):
        if (pairs := kept.shape[axis] - apart) > 0:
            agreement = kept.narrow(axis, apart, pairs) == kept.narrow(axis, 0, pairs)
            assert abs(agreement.double().mean() - 0.625) < 5 * math.sqrt(0.25 / agreement.numel())


@pytest.mark.parametrize("straight_through", [False, True])
def test_backward_drops_what_forward_dropped(straight_through: bool) -> None:
    tensors, mask, upstream = inputs(6)
    upstream = upstream * clear_rows(tensors, mask, "relative", "all", 1e-4)
    query, key, value = tensors
    torch.manual_seed(8)
    output = kernels.fused_attention(
        query, key, value, mask, "relative", 0.3, dropout=0.25, straight_through=straight_through
    )
    torch.manual_seed(8)
    seed = torch.randint(2**31 - 1, ())
    factors = kernel_checks.dropout_factors(BATCH, HEADS, LENGTH, WIDTH, 0.25, seed, torch.zeros(()))
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    scores = exact[0] @ exact[1].transpose(-2, -1) / math.sqrt(WIDTH)
    scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    kept = select_keys(scores.detach(), "relative", 0.3)
    weights = scores.masked_fill(~kept, float("-inf")).softmax(dim=-1)
    if straight_through:
        dense = scores.softmax(dim=-1)
        weights = dense + (weights - dense).detach()
    expected = (weights * factors) @ exact[2]
    assert_close(
        list(torch.autograd.grad(output, tensors, upstream)),
        list(torch.autograd.grad(expected, exact, upstream.double())),
        1e-5,
    )


def test_autocast_and_mixed_types() -> None:
    (query, key, value), mask, _ = inputs(7)
    half = kernels.fused_attention(*(part.bfloat16() for part in (query, key, value)), mask, "relative", 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.supports(query, key, value, "relative")
        cast = kernels.fused_attention(query.bfloat16(), key, value.bfloat16(), mask, "relative", 0.3)
    assert cast.dtype == torch.bfloat16
    assert torch.equal(cast, half)
    mixed = kernels.fused_attention(query.bfloat16(), key, value, mask, "relative", 0.3)
    assert mixed.dtype == torch.float32


def test_checkpointing_draws_the_same_seed_again() -> None:
    tensors, mask, upstream = inputs(8)

    def layer(*parts: torch.Tensor) -> torch.Tensor:
        return kernels.fused_attention(*parts, mask, "relative", 0.3, dropout=0.25)

    torch.manual_seed(2)
    direct = layer(*tensors)
    expected = [direct, *torch.autograd.grad(direct, tensors, upstream)]
    torch.manual_seed(2)
    again = torch.utils.checkpoint.checkpoint(layer, *tensors, use_reentrant=False)
    torch.randint(9, (3,))
    for one, other in zip([again, *torch.autograd.grad(again, tensors, upstream)], expected, strict=True):
        assert torch.equal(one, other)


def test_compiles_into_one_graph_for_all_lengths_and_thresholds() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    def layer(
        parts: list[torch.Tensor], mask: torch.Tensor, threshold: torch.Tensor, text_length: int
    ) -> torch.Tensor:
        query, key, value = parts
        assert kernels.available(query.device)
        assert kernels.supports(query, key, value, "relative")
        attended = kernels.fused_attention(
            query,
            key,
            value,
            mask,
            "relative",
            threshold,
            scope="cross-modal",
            text_length=text_length,
            dropout=0.25,
        )
        return attended.transpose(1, 2).reshape(query.shape[0], query.shape[2], -1)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    threshold = torch.tensor(0.1)
    for length in (20, 17, 40):
        tensors, mask, _ = inputs(9, length=length)
        threshold.fill_(length / 100)
        results = []
        for function in (layer, compiled):
            torch.manual_seed(4)
            output = function(tensors, mask, threshold, length // 3)
            results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)
    assert counter.frame_count <= 2  # the first length, then any


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_operators_keep_what_pytorch_asks_of_them(dropout: float) -> None:
    tensors, mask, upstream = inputs(10)
    seed = torch.tensor(3) if dropout else None
    options = (mask, "relative", torch.tensor(0.3), "all", TEXT, dropout, False, seed)
    torch.library.opcheck(kernels.attention_op, (*tensors, *options))
    if dropout:
        detached = [tensor.detach() for tensor in tensors]
        torch.library.opcheck(kernels._attention_backward, (upstream, *detached, *options))
        masks = torch.ones(BATCH, 5, dtype=torch.bool), torch.ones(BATCH, 7, dtype=torch.bool)
        torch.library.opcheck(kernels._transport, (torch.rand(BATCH, 5, 7), *masks, 0.5, 3))


@pytest.mark.parametrize(("words", "regions"), [(5, 9), (20, 36), (64, 100)])
def test_transport_plan_equals_its_loop(words: int, regions: int) -> None:
    generator = torch.Generator().manual_seed(words)
    text, boxes = (torch.randn((3, size, 6), generator=generator) for size in (words, regions))
    text_mask = torch.arange(words) < torch.tensor([[words], [words // 2], [0]])  # one without any word
    region_mask = torch.arange(regions) < torch.tensor([[regions], [regions - 2], [2]])
    both = text_mask[:, :, None] & region_mask[:, None, :]
    cost = 1 - torch.einsum(
        "btd,bkd->btk", *(torch.nn.functional.normalize(part, dim=-1) for part in (text, boxes))
    )
    cost = cost.masked_fill(~both, 0.0)
    assert kernels.supports_transport(cost)
    plan = kernels.transport_plan(cost, text_mask, region_mask, beta=0.5, iterations=50)
    expected = proximal_plan(cost[:2].double(), text_mask[:2], region_mask[:2], 0.5, 50)
    assert (plan[:2] - expected).abs().max() <= 1e-5 * expected.max()
    assert not plan[~both].any()
    # The distance itself comes from the loop in `losses`.
    distance = optimal_transport_distance(text, boxes, text_mask, region_mask)
    torch.testing.assert_close((cost * plan).sum(dim=(1, 2)), distance, rtol=1e-5, atol=1e-6)


def test_says_what_it_does_not_support() -> None:
    def asks(length: int, width: int, dtype: torch.dtype = torch.float32, rule: str = "relative") -> bool:
        tensor = torch.empty((1, 1, length, width), dtype=dtype)
        return kernels.supports(tensor, tensor, tensor, rule)

    assert asks(128, 64)
    assert asks(128, 128, torch.bfloat16)
    assert not asks(128, 128)
    assert not asks(129, 64)
    assert not asks(64, 129)
    assert not asks(64, 64, torch.float64)
    assert not asks(64, 64, rule="topk")
    assert not kernels.supports_transport(torch.empty(1, 65, 3))


def test_checks_pass_and_tell_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = kernel_checks.attention_problem.__wrapped__
    given = CPU, torch.bfloat16, "probability", "cross-modal", False, 20, 16
    assert compare(*given) is None
    assert compare(CPU, torch.float32, "dense", length=17, width=16) is None
    assert kernel_checks.transport_problem(CPU) is None
    monkeypatch.setattr(kernels, "_block", lambda size: 16)  # too small for 20 keys
    assert "differs" in (compare(*given) or "") or "Error" in (compare(*given) or "")


# ---- in a model ---------------------------------------------------------------------------------


def model_and_inputs() -> tuple[Any, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = TbkinConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        region_feature_size=6, num_answers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        threshold=0.2, threshold_scope="cross-modal", threshold_layers=[1],
    )  # fmt: skip
    present = torch.arange(5) < torch.tensor([[5], [2], [3]])
    inputs = {
        "input_ids": torch.randint(0, 50, (3, 7)),
        "attention_mask": torch.arange(7) < torch.tensor([[7], [4], [5]]),
        "region_features": torch.randn(3, 5, 6),
        "region_geometry": torch.rand(3, 5, 5),
        "region_mask": present,
    }
    return TbkinForVqa(config), inputs


def test_a_model_computes_the_same_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, inputs = model_and_inputs()
    model = copy.deepcopy(plain)
    accelerate(model, CPU, kernel=torch.float32)
    calls = []
    attend = kernels.fused_attention
    monkeypatch.setattr(kernels, "fused_attention", lambda *a, **b: calls.append(a) or attend(*a, **b))
    gradients = []
    for it in (plain, model):
        logits = it(**inputs).vqa_logits
        logits.square().sum().backward()
        gradients.append([logits, *(weight.grad for weight in it.parameters() if weight.grad is not None)])
    assert len(calls) == 1, "one of the layers selects"
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    # Where attention is recorded, and in other numbers, PyTorch alone computes.
    model(**inputs, output_attentions=True)
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    assert len(calls) == 1


def test_a_kernel_that_differs_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(acceleration, "attention_problem", lambda *given: "output differs by 0.3")
    model, _ = model_and_inputs()
    with caplog.at_level("WARNING", logger="tbkin"):
        accelerate(model, CPU, kernel=torch.float32)
    assert "the kernel for attention is not used: output differs by 0.3" in caplog.text
    assert all(layer.kernel is None for layer in model.tbkin.encoder.layers)


def test_distances_are_the_same_with_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_checks.transport_kernel_works(CPU)
    text, regions = torch.randn(3, 6, 8, requires_grad=True), torch.randn(3, 9, 8)
    masks = torch.arange(6) < torch.tensor([[6], [2], [1]]), torch.arange(9) < torch.tensor([[9], [1], [4]])
    calls = []
    find = kernels.transport_plan
    monkeypatch.setattr(kernels, "transport_plan", lambda *given: calls.append(given) or find(*given))
    found = []
    for kernel in (False, True):
        distance = optimal_transport_distance(text, regions, *masks, kernel=kernel)
        found.append((distance, *torch.autograd.grad(distance.sum(), text)))
    assert len(calls) == 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
