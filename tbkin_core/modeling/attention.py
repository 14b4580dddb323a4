"""Threshold-based explicit selection in attention.

Letters: B batch, H heads, L length (text then regions), D width of a head, T text tokens, K regions.

With s = qkᵀ/√D + mask and A = softmax(s), a key j is kept for query i when

    relative      A_ij ≥ τ · max_j A_ij, that is s_ij ≥ max_j s_ij + ln τ
    probability   A_ij ≥ τ, or A_ij is the row's largest
    score         s_ij ≥ τ, or s_ij is the row's largest
    topk          A_ij is among the k largest

and the result is a softmax over the kept keys. Selection by a threshold on attention is the paper's
(Guo, Shen, Chen 2025; earlier SCAVQAN, Applied Intelligence 2022), by top-k MESAN's (Sensors 2020). The
paper's abstract does not fix the rule, hence four of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tbkin_core.errors import ConfigError
from tbkin_core.selection import RULES, Selection


@dataclass(frozen=True, slots=True)
class AttentionRecord:
    """What one layer computed, for figures and metrics.

    Attributes:
        scores: (B, H, L, L) before the softmax, padding at -inf.
        weights: (B, H, L, L) after selection; rows sum to 1.
        kept: (B, H, L, L) bool.
    """

    scores: Tensor
    weights: Tensor
    kept: Tensor


def scope_mask(
    scope: str, text_length: int, length: int, device: torch.device | None = None
) -> Tensor | None:
    """(L, L) bool, True where the selection may drop a key; None means everywhere."""
    if scope == "all":
        return None
    is_text = torch.arange(length, device=device) < text_length
    text_to_image = is_text[:, None] & ~is_text[None, :]
    image_to_text = ~is_text[:, None] & is_text[None, :]
    if scope == "text-to-image":
        return text_to_image
    if scope == "image-to-text":
        return image_to_text
    return text_to_image | image_to_text


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
    valid = scores > float("-inf")
    if threshold == 0:
        return valid
    largest = scores.amax(dim=-1, keepdim=True)  # (B, H, L, 1)
    if rule == "relative":
        kept = scores >= largest + math.log(threshold)
    elif rule == "probability":
        # A_ij ≥ τ in log space: s_ij ≥ ln τ + logsumexp(s_i).
        kept = scores >= math.log(threshold) + scores.logsumexp(dim=-1, keepdim=True)
    elif rule == "score":
        kept = scores >= threshold
    elif rule == "topk":
        k = min(int(threshold), scores.shape[-1])
        kept = scores >= scores.topk(k, dim=-1).values[..., -1:]
    else:
        raise ConfigError(f"selection: expected one of {', '.join(RULES)}, got {rule!r}")
    kept = kept | (scores == largest)
    if scope is not None:
        kept = kept | ~scope
    return kept & valid


def selective_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    selection: Selection,
    layer: int = 0,
    text_length: int = 0,
    dropout: float = 0.0,
    record: bool = False,
) -> tuple[Tensor, AttentionRecord | None]:
    """Attention over the keys that the selection keeps (equations at the top of this module).

    Args:
        query, key, value: (B, H, L, D).
        mask: (B, 1, 1, L) or (B, 1, L, L) bool, True = may attend; every row has a True.
        selection: The rule; where it is not active in `layer`, PyTorch's fused attention is used.
        layer: Number of this layer.
        text_length: T, where the regions begin.
        dropout: Probability; pass 0 outside training.
        record: Also return scores, weights and kept keys.

    Returns:
        (B, H, L, D) and the record or None.
    """
    active = selection.active_in(layer)
    if not active and not record:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout
        ), None
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, L, L)
    scores = scores.masked_fill(~mask, float("-inf"))
    if active:
        scope = scope_mask(selection.scope, text_length, scores.shape[-1], scores.device)
        with torch.no_grad():
            kept = select_keys(scores, selection.rule, selection.threshold, scope)
        weights = scores.masked_fill(~kept, float("-inf")).softmax(dim=-1)
        if selection.straight_through and torch.is_grad_enabled():
            dense = scores.softmax(dim=-1)
            weights = dense + (weights - dense).detach()
    else:
        kept = scores > float("-inf")
        weights = scores.softmax(dim=-1)
    if active:
        output = functional.dropout(weights, dropout) @ value  # (B, H, L, D)
    else:
        # Recording must not change what the dense model computes, not even in the last bit.
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return output, AttentionRecord(scores.detach(), weights.detach(), kept) if record else None
