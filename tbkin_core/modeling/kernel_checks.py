"""Whether the kernels compute what plain PyTorch does, asked where they are about to be used.

Nobody has run them on every card and every version of Triton; so a run that uses them compares them first, on
a few random tensors of the shapes it will meet, and goes on without them where they differ.
"""

from __future__ import annotations

import logging
import math
from functools import cache

import torch
from torch import Tensor

from tbkin_core.modeling import kernels
from tbkin_core.modeling.attention import scope_mask, select_keys
from tbkin_core.modeling.losses import proximal_plan

logger = logging.getLogger("tbkin")

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
_MARGIN = 1e-3  # how far from the threshold, relative to it, rounding decides nothing


def dropout_factors(
    batch: int, heads: int, length: int, width: int, dropout: float, seed: Tensor, like: Tensor
) -> Tensor:
    """What the kernels multiply weights with under a seed, (B, H, L, L) float64: 0 or 1 / (1 - p).

    Read off attention with equal weights over an identity, `width` columns of it at a time.
    """
    zeros = like.new_zeros((batch, heads, length, width))
    everything = torch.ones((batch, length), dtype=torch.bool, device=like.device)
    parts, threshold = [], torch.zeros(())
    for part in torch.eye(length, dtype=like.dtype, device=like.device).split(width, dim=1):
        value = zeros.clone()
        value[..., : part.shape[1]] = part
        read = kernels.attention_op(
            zeros, zeros, value, everything, "dense", threshold, "all", 0, dropout, False, seed
        )
        parts.append(read[..., : part.shape[1]] > 0)
    return torch.cat(parts, dim=-1).double() / (1 - dropout)


@cache
def attention_problem(
    device: torch.device,
    dtype: torch.dtype,
    rule: str = "relative",
    scope: str = "all",
    straight_through: bool = False,
    length: int = 60,
    width: int = 64,
    dropout: float = 0.1,
) -> str | None:
    """Compare the kernels for attention with plain PyTorch on a few random tensors; once a process.

    Costs milliseconds apart from compiling the kernels, which are those used later for such a shape.

    Args:
        length: L, keys of a query.
        width: D of a head.
        dropout: Probability; they are compared without it too.

    Returns:
        None where all agree, else what differs or was raised.
    """
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            return _attention_differs(device, dtype, rule, scope, length, width, dropout, straight_through)
    except torch.OutOfMemoryError:
        raise  # it says nothing of the kernel
    except Exception as error:  # whatever a compiler or driver raises; the caller has another way
        return f"{type(error).__name__}: {error}"


def _attention_differs(
    device: torch.device,
    dtype: torch.dtype,
    rule: str,
    scope: str,
    length: int,
    width: int,
    dropout: float,
    straight_through: bool,
) -> str | None:
    generator = torch.Generator().manual_seed(0)
    batch, heads, text_length = 2, 2, length // 3

    def random(scale: float) -> Tensor:
        joined = scale * torch.randn((batch, length, heads * width), generator=generator)
        return joined.to(device, dtype).view(batch, length, heads, width).transpose(1, 2)

    tensors = tuple(random(scale).requires_grad_() for scale in (2.0, 1.0, 1.0))
    upstream = random(1.0)
    key_mask = torch.rand((batch, length), generator=generator).to(device) > 0.2
    key_mask[:, 0] = True
    threshold = {"relative": 0.1, "probability": 1 / length, "score": 0.5}.get(rule, 0.0)
    tau = torch.tensor(threshold)

    query, key, value = exact = tuple(tensor.detach().double().requires_grad_() for tensor in tensors)
    scores = (query @ key.transpose(-2, -1) / math.sqrt(width)).masked_fill(
        ~key_mask[:, None, None, :], float("-inf")
    )
    droppable = scope_mask(scope, text_length, length, device)
    fewer, kept, more = (
        select_keys(scores.detach(), rule, threshold * factor, droppable)
        for factor in (1 + _MARGIN, 1, 1 - _MARGIN)
    )
    weights = scores.masked_fill(~kept, float("-inf")).softmax(dim=-1)
    if straight_through:
        dense = scores.softmax(dim=-1)
        weights = dense + (weights - dense).detach()
    # A query of which rounding decides what it keeps proves nothing.
    clear = (fewer == more).all(dim=-1, keepdim=True)  # (B, H, L, 1)
    upstream = upstream * clear
    for probability in {0.0, dropout}:
        seed = torch.tensor(20) if probability else None
        output = kernels.attention_op(
            *tensors, key_mask, rule, tau, scope, text_length, probability, straight_through, seed
        )
        used = weights
        if seed is not None:
            used = weights * dropout_factors(batch, heads, length, width, probability, seed, tensors[0])
        expected = used @ value
        found = (output * clear, *torch.autograd.grad(output, tensors, upstream))
        wanted = (
            expected * clear,
            *torch.autograd.grad(expected, exact, upstream.double(), retain_graph=True),
        )
        names = ("output", "query's gradient", "key's gradient", "value's gradient")
        for name, kernel, plain in zip(names, found, wanted, strict=True):
            if (problem := _difference(kernel, plain, _TOLERANCE[dtype])) is not None:
                return f"{name} of {rule} attention ({dtype}, dropout {probability:g}) differs {problem}"
    return None


def _difference(kernel: Tensor, plain: Tensor, tolerance: float) -> str | None:
    kernel, plain = kernel.detach().double(), plain.detach()
    off = float((kernel - plain).abs().max() / plain.abs().max())
    return None if off <= tolerance else f"by {off:.2g} of its largest entry, more than {tolerance:g}"


@cache
def transport_kernel_works(device: torch.device) -> bool:
    """Whether the transport plan can be found in one kernel on a device; a warning where it should be."""
    if not kernels.available(device):
        return False
    if problem := transport_problem(device):
        logger.warning("the kernel for optimal transport is not used: %s", problem)
    return not problem


def transport_problem(device: torch.device) -> str | None:
    """Compare the kernel for the transport plan with its loop in float64, as `attention_problem` does."""
    try:
        generator = torch.Generator().manual_seed(0)
        cost = 2 * torch.rand((2, 24, 50), generator=generator)
        text_mask, region_mask = torch.arange(24) < torch.tensor([[24], [9]]), torch.arange(50) < 41
        region_mask = region_mask.expand(2, 50)
        inputs = cost.to(device), text_mask.to(device), region_mask.to(device)
        plan = kernels.transport_plan(*inputs, beta=0.5, iterations=50).cpu()
        problem = _difference(plan, proximal_plan(cost.double(), text_mask, region_mask, 0.5, 50), 1e-4)
        return problem and f"transport plan differs {problem}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # as above
        return f"{type(error).__name__}: {error}"
