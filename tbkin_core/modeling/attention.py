"""Threshold-based explicit selection in attention.

Letters: B batch, H heads, L length (text then regions), D width of a head, T text tokens, K regions.

With s = qkᵀ/√D + mask and A = softmax(s), a key j is kept for query i when

    relative      A_ij ≥ τ · max_j A_ij, that is s_ij ≥ max_j s_ij + ln τ
    probability   A_ij ≥ τ, or A_ij is the row's largest
    score         s_ij ≥ τ, or s_ij is the row's largest
    topk          A_ij is among the k largest

and the result is A restricted to the kept keys and renormalised, which is a softmax over them. Selection by a
threshold on attention is the paper's (Guo, Shen, Chen 2025; earlier SCAVQAN, Applied Intelligence 2022), by
top-k MESAN's (Sensors 2020). The paper's abstract does not fix the rule, hence four of them.

To compare with, sparsemax (Martins and Astudillo 2016) and 1.5-entmax (Peters et al. 2019) take the place of
the softmax: they drop keys by themselves. Under a scope they share out anew what A gives to the keys that may
be dropped, and the other keys keep what A gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tbkin_core.errors import ConfigError
from tbkin_core.modeling import kernels
from tbkin_core.selection import Selection, rule_of

Threshold = float | Tensor
"""τ as a number, or () as a tensor on the CPU: what is compiled with a tensor serves every τ."""


@dataclass(frozen=True, slots=True)
class AttentionRecord:
    """What one layer computed, for figures and metrics."""

    scores: Tensor  # (B, H, L, L) before the softmax, padding at -inf
    weights: Tensor  # (B, H, L, L) after selection; rows sum to 1
    kept: Tensor  # (B, H, L, L) bool


def scope_mask(
    scope: str, text_length: int, length: int, device: torch.device | None = None
) -> Tensor | None:
    """(L, L) bool, True where the selection may drop a key; None means everywhere."""
    if scope == "all":
        return None
    is_text = torch.arange(length, device=device) < text_length
    query, key = is_text[:, None], is_text[None, :]
    if scope == "cross-modal":
        return query != key
    return query & ~key if scope == "text-to-image" else ~query & key


def select_keys(scores: Tensor, rule: str, threshold: float, scope: Tensor | None = None) -> Tensor:
    """Which keys each query keeps.

    Args:
        scores: (B, H, L, L), padding at -inf; every row has a finite entry.
        rule: One of `RULES`.
        threshold: τ, or k for "topk".
        scope: (L, L) bool, where dropping is allowed.

    Returns:
        (B, H, L, L) bool. A row's largest entry is always kept, padding never.
    """
    if threshold == 0:
        return scores > float("-inf")
    return _kept_as_numbers(scores, rule, threshold, scope) > 0


def _kept_as_numbers(scores: Tensor, rule: str, threshold: Threshold, scope: Tensor | None) -> Tensor:
    """`select_keys` as 1 and 0 in the type of the scores: a CPU multiplies by bools ten times as slowly."""
    if rule not in _LEAST_SCORES:
        raise ConfigError(f"selection: expected one of {', '.join(_LEAST_SCORES)}, got {rule!r}")
    scores = scores.detach()
    largest = scores.amax(dim=-1, keepdim=True)  # (B, H, L, 1)
    least = _LEAST_SCORES[rule](scores, largest, threshold)
    kept = torch.ge(scores, torch.minimum(least, largest), out=torch.empty_like(scores))
    if scope is not None:
        kept = torch.maximum(kept, (~scope & (scores > float("-inf"))).to(kept.dtype))
    return kept


def _log(tau: Threshold) -> Threshold:
    return tau.log() if isinstance(tau, Tensor) else math.log(tau)


def _topk(scores: Tensor, largest: Tensor, k: Threshold) -> Tensor:
    least = _kth_largest(scores, min(int(k), scores.shape[-1]))
    # Where a row has fewer keys than k, the least is the padding's -inf, which is never kept.
    return least.clamp_min(torch.finfo(scores.dtype).min)


_LEAST_SCORES: dict[str, Callable[[Tensor, Tensor, Threshold], Tensor]] = {
    "relative": lambda scores, largest, tau: largest + _log(tau),
    # A_ij ≥ τ in log space: s_ij ≥ ln τ + logsumexp(s_i).
    "probability": lambda scores, largest, tau: _log(tau) + scores.logsumexp(dim=-1, keepdim=True),
    "score": lambda scores, largest, tau: torch.zeros_like(largest) + tau,
    "topk": _topk,
}
"""Of each rule with a threshold: from the scores (B, H, L, L), the largest of each row (B, H, L, 1) and the
threshold, the least score that a row keeps, (B, H, L, 1); its largest is kept in any case."""


def _kth_largest(scores: Tensor, k: int) -> Tensor:
    """(..., L) -> (..., 1)."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        # Eight times as fast as PyTorch's topk on a CPU.
        place = scores.shape[-1] - k
        parted = np.partition(scores.numpy(), place, axis=-1)
        return torch.from_numpy(parted[..., place : place + 1])
    return scores.topk(k, dim=-1).values[..., -1:]


def transformed_weights(scores: Tensor, rule: str, scope: Tensor | None = None) -> Tensor:
    """Attention by one of `TRANSFORMS` in the softmax's place; arguments as those of `select_keys`.

    Returns:
        (B, H, L, L); rows sum to 1, padding is exactly 0.
    """
    import entmax

    transform = {"sparsemax": entmax.sparsemax, "entmax15": entmax.entmax15}[rule]
    exact = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    if scope is None:
        return transform(exact, dim=-1).to(scores.dtype)
    dense = exact.softmax(dim=-1)
    inside = scope & (exact > float("-inf"))
    # A row without a key to share among gets any finite scores: its share is 0.
    chosen = exact.masked_fill(~inside, float("-inf"))
    chosen = torch.where(inside.any(dim=-1, keepdim=True), chosen, 0.0)
    share = (dense * inside).sum(dim=-1, keepdim=True)
    return (torch.where(inside, share * transform(chosen, dim=-1), dense)).to(scores.dtype)


def selective_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    selection: Selection,
    text_length: int = 0,
    dropout: float = 0.0,
    record: bool = False,
    threshold: Tensor | None = None,
    kernel: torch.dtype | None = None,
) -> tuple[Tensor, AttentionRecord | None]:
    """Attention over the keys that the selection keeps (equations at the top of this module).

    Args:
        query, key, value: (B, H, L, D); the first of the queries alone will do, and values of another width.
        mask: (B, 1, 1, L) or (B, 1, L, L) bool, True = may attend; every row has a True.
        selection: The rule; with threshold 0 PyTorch's fused attention is used. Its layers are the encoder's
            business.
        text_length: T, where the regions begin.
        dropout: Probability; pass 0 outside training.
        record: Also return scores, weights and kept keys.
        threshold: () τ in place of the selection's, which then is not looked at: see `Threshold`.
        kernel: Type of numbers in which a selection is computed in one kernel where that takes it.

    Returns:
        (B, H, L, D) and the record or None.
    """
    active = threshold is not None or selection.threshold != 0
    if not active and not record:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout
        ), None
    tau = selection.threshold if threshold is None else threshold
    own = active and not record and query.dtype == kernel and mask.shape[2] == 1
    if own and kernels.supports(query, key, value, selection.rule):
        scope, straight = selection.scope, selection.straight_through
        options: dict[str, Any] = {"scope": scope, "text_length": text_length, "straight_through": straight}
        given = query, key, value, mask[:, 0, 0], selection.rule, tau
        return kernels.fused_attention(*given, **options, dropout=dropout), None
    # Scale and mask in their cheapest form: selecting shall cost no more than the fused dense attention.
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)  # (B, H, L, L)
    scores += torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device).masked_fill_(
        ~mask, float("-inf")
    )
    droppable = scope_mask(selection.scope, text_length, scores.shape[-1], scores.device)
    if droppable is not None:
        droppable = droppable[: scores.shape[-2]]
    if not active:
        kept, weights = scores > float("-inf"), scores.softmax(dim=-1)
        # Recording must not change what the dense model computes, not even in the last bit.
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return output, AttentionRecord(scores.detach(), weights.detach(), kept)
    if rule_of(selection.rule).is_transform:
        weights, total = transformed_weights(scores, selection.rule, droppable), None
        kept = weights.detach()
        if droppable is not None:
            kept = torch.where(droppable, kept, (scores > float("-inf")).to(kept.dtype))
    else:
        with torch.no_grad():
            kept = _kept_as_numbers(scores, selection.rule, tau, droppable)
        weights = scores.softmax(dim=-1) * kept
        total = weights.sum(dim=-1, keepdim=True)  # (B, H, L, 1)
    if selection.straight_through and torch.is_grad_enabled():
        dense = scores.softmax(dim=-1)
        weights = weights if total is None else weights / total
        weights, total = dense + (weights - dense).detach(), None
    output = functional.dropout(weights, dropout) @ value  # (B, H, L, D)
    if total is not None:
        # Dividing what the weights gave is less work than dividing the weights.
        output = output / total
    if not record:
        return output.to(value.dtype), None
    weights = weights if total is None else weights / total
    return output.to(value.dtype), AttentionRecord(scores.detach(), weights.detach(), kept > 0)
