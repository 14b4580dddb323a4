"""Attention over the kept keys, and the transport plan, each in one kernel; needs Triton and a GPU.

The mathematics are those of `tbkin_core.modeling.attention` and `tbkin_core.modeling.losses`, whose plain
PyTorch remains for everything else: ask `available` and `supports` before, and once
`tbkin_core.modeling.kernel_checks`.
The weights (B, H, L, L) are never written to memory; the backward pass computes them anew from query and key.
Nothing is summed in an order that changes, so equal inputs give equal bits.

Device code stands in `tbkin_core.modeling.triton_kernels`, loaded with the first call.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any

import torch
from torch import Tensor

KERNEL_RULES = ("dense", "relative", "probability", "score")
MAX_LENGTH = MAX_WIDTH = 128  # a program holds whole rows of keys
MAX_WORDS, MAX_REGIONS = 64, 128  # a program holds a whole plan
_HALF = (torch.float16, torch.bfloat16)


def available(device: torch.device | str) -> bool:
    """Whether kernels run on a device: a CUDA one, or for tests the CPU under TRITON_INTERPRET=1."""
    kind = torch.device(device).type
    if importlib.util.find_spec("triton") is None:
        return False
    if kind == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def supports(query: Tensor, key: Tensor, value: Tensor, rule: str) -> bool:
    """Whether `fused_attention` takes tensors of these shapes and types, (B, H, L, D), under a rule."""
    length, width = query.shape[-2:]
    if rule not in KERNEL_RULES or not query.shape == key.shape == value.shape:
        return False
    if length > MAX_LENGTH or width > MAX_WIDTH:
        return False
    dtype = _compute_type(query, key, value)
    # In float32 the products run without tensor cores; larger blocks would not fit the registers.
    return dtype in _HALF or (dtype == torch.float32 and (length <= 64 or width <= 64))


def supports_transport(cost: Tensor) -> bool:
    """Whether `transport_plan` takes costs of this shape and type, (B, T, K)."""
    return cost.dtype == torch.float32 and cost.shape[1] <= MAX_WORDS and cost.shape[2] <= MAX_REGIONS


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor,
    rule: str,
    threshold: float | Tensor,
    *,
    scope: str = "all",
    text_length: int = 0,
    dropout: float = 0.0,
    straight_through: bool = False,
) -> Tensor:
    """`selective_attention` in one kernel, with gradient.

    Args:
        query, key, value: (B, H, L, D).
        key_mask: (B, L) bool, True = may be attended to; every row has a True.
        rule: One of `KERNEL_RULES`.
        threshold: τ; 0 is dense. A new one needs no new kernel, and as a 0-dimensional CPU tensor that is
            filled anew no new graph either: `torch.compile` takes a number for a constant.
        scope: One of `tbkin_core.selection.SCOPES`.
        text_length: T, where the regions begin.
        dropout: Probability; the seed is drawn from PyTorch's CPU generator, which costs no synchronisation.
        straight_through: Give dropped keys the dense softmax's gradient.

    Returns:
        (B, H, L, D) in the type of `value`, laid out as (B, L, H, D).
    """
    dtype = _compute_type(query, key, value)
    seed = torch.randint(2**31 - 1, ()) if dropout > 0 else None
    if not isinstance(threshold, Tensor):
        threshold = torch.tensor(threshold, dtype=torch.float64)
    output = attention_op(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        key_mask,
        rule,
        threshold,
        scope,
        text_length,
        dropout,
        straight_through,
        seed,
    )
    return output.to(value.dtype)


def transport_plan(
    cost: Tensor, text_mask: Tensor, region_mask: Tensor, beta: float, iterations: int
) -> Tensor:
    """The plan of `optimal_transport_distance`, without gradient.

    Args:
        cost: (B, T, K) float32.
        text_mask, region_mask: (B, T) and (B, K) bool, True where there is a word or region.
        beta: Proximal step.
        iterations: Outer iterations, one inner iteration each.

    Returns:
        (B, T, K) float32, zero where there is no word or no region.
    """
    return _transport(cost.detach(), text_mask, region_mask, beta, iterations)


def _compute_type(query: Tensor, key: Tensor, value: Tensor) -> torch.dtype:
    """As a matrix product would choose: autocast's, else the widest of the three."""
    kind = query.device.type
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    if dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return dtype


def _block(size: int) -> int:
    """The block that holds `size` entries; tensor cores take 16 at least."""
    return max(16, 1 << (size - 1).bit_length())


def _tiling(dtype: torch.dtype, block_length: int, block_width: int, backward: bool) -> dict[str, int]:
    """Queries a block, and warps: what fits into registers when compiled for compute capability 9.0."""
    warps = 8 if block_length == 128 else 4
    if dtype == torch.float32:
        return {"BLOCK_M": 16, "num_warps": 16 if backward and block_length == 128 else 8}
    few = backward and block_length >= 64 and block_width != 64
    return {"BLOCK_M": 16 if few else min(32, block_length), "num_warps": warps}


def _unit_last_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _empty_output(query: Tensor) -> Tensor:
    """(B, H, L, D) laid out as (B, L, H, D), in which heads are joined without a copy."""
    batch, heads, length, width = query.shape
    return query.new_empty((batch, length, heads, width)).transpose(1, 2)


def _arguments(
    tensors: tuple[Tensor, ...],
    key_mask: Tensor,
    rule: str,
    threshold: Tensor,
    scope: str,
    text_length: int,
    dropout: float,
    straight_through: bool,
    seed: Tensor | None,
    *,
    backward: bool,
) -> dict[str, Any]:
    """What both attention kernels take beside their tensors, from which strides are read."""
    _, heads, length, width = tensors[-1].shape
    tau = float(threshold)
    if tau == 0:
        rule = "dense"
    block_length, block_width = _block(length), _block(width)
    names = ("gradient", "query", "key", "value")[-len(tensors) :]
    strides = {
        f"{name}_{axis}": tensor.stride(place)
        for name, tensor in zip(names, tensors, strict=True)
        for place, axis in enumerate(("batch", "head", "row"))
    }
    return {
        **strides,
        "mask_batch": key_mask.stride(0),
        "mask_key": key_mask.stride(1),
        "heads": heads,
        "length": length,
        "text_length": text_length,
        "scale": 1 / math.sqrt(width),
        "least": math.log(tau) if rule in ("relative", "probability") else tau,
        "seed": 0 if seed is None else int(seed),
        "dropout": dropout,
        "inverse": 0.0 if dropout >= 1 else 1 / (1 - dropout),
        "RULE": rule,
        "SCOPE": "all" if rule == "dense" else scope,
        "DROPOUT": seed is not None,
        "WIDTH": width,
        "BLOCK_L": block_length,
        "BLOCK_D": block_width,
        **({"STRAIGHT_THROUGH": straight_through} if backward else {}),
        **_tiling(tensors[-1].dtype, block_length, block_width, backward),
    }


def _device_code() -> Any:
    # Loaded with the first call: Triton need not be installed, and takes a second.
    from tbkin_core.modeling import triton_kernels

    return triton_kernels


_TENSORS = "Tensor query, Tensor key, Tensor value"
_OPTIONS = (
    "Tensor key_mask, str rule, Tensor threshold, str scope, SymInt text_length, float dropout, "
    "bool straight_through, Tensor? seed"
)


@torch.library.custom_op(
    "tbkin::selective_attention",
    mutates_args=(),
    schema=f"({_TENSORS}, {_OPTIONS}) -> Tensor",
)
def attention_op(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor, *options: Any) -> Tensor:
    """`fused_attention` with all of the schema's options, the seed of its dropout among them."""
    tensors = tuple(_unit_last_stride(tensor) for tensor in (query, key, value))
    output = _empty_output(query)
    arguments = _arguments(tensors, key_mask, *options, backward=False)
    batch, heads, length, _ = query.shape
    grid = (batch * heads, -(-length // arguments["BLOCK_M"]))
    with torch.cuda.device_of(query):
        _device_code().attention_forward[grid](*tensors, key_mask, output, **arguments)
    return output


@attention_op.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return _empty_output(query)


@torch.library.custom_op(
    "tbkin::selective_attention_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, {_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = tuple(_unit_last_stride(tensor) for tensor in (gradient.to(query.dtype), query, key, value))
    gradients = _empty_output(query), _empty_output(query), _empty_output(query)
    arguments = _arguments(tensors, key_mask, *options, backward=True)
    arguments["QUERIES"] = -(-query.shape[2] // arguments["BLOCK_M"]) * arguments["BLOCK_M"]
    with torch.cuda.device_of(query):
        _device_code().attention_backward[(query.shape[0] * query.shape[1],)](
            *tensors, key_mask, *gradients, **arguments
        )
    return gradients


@_attention_backward.register_fake
def _(gradient: Tensor, query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_output(query), _empty_output(query), _empty_output(query)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, key_mask, rule, threshold, *options, seed = inputs
    ctx.save_for_backward(query, key, value, key_mask, threshold, seed)
    ctx.rule, ctx.options = rule, options


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, threshold, seed = ctx.saved_tensors
    gradients = _attention_backward(gradient, *tensors, ctx.rule, threshold, *ctx.options, seed)
    return (*gradients, *[None] * 8)


attention_op.register_autograd(_differentiate, setup_context=_keep_for_backward)


@torch.library.custom_op(
    "tbkin::transport_plan",
    mutates_args=(),
    schema="(Tensor cost, Tensor text_mask, Tensor region_mask, float beta, int iterations) -> Tensor",
)
def _transport(cost: Tensor, text_mask: Tensor, region_mask: Tensor, beta: float, iterations: int) -> Tensor:
    batch, words, regions = cost.shape
    block_words, block_regions = _block(words), _block(regions)
    plan = torch.empty_like(cost, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(cost):
        _device_code().transport[(batch,)](
            cost.contiguous(),
            text_mask.contiguous(),
            region_mask.contiguous(),
            plan,
            words,
            regions,
            -1 / beta,
            ITERATIONS=iterations,
            BLOCK_T=block_words,
            BLOCK_K=block_regions,
            num_warps=min(max(4, block_words * block_regions // 512), 16),
        )
    return plan


@_transport.register_fake
def _(cost: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(cost, memory_format=torch.contiguous_format)
