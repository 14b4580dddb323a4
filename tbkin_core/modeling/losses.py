"""Losses of pretraining and fine-tuning, each as a sum over its targets.

None of them makes a device wait: what is chosen is chosen by masks and by numbers that are known before.

A sum, not a mean: the training loop divides by the number of targets of the whole accumulation window
over all devices, so that one batch of 8 equals 8 accumulated batches of 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tbkin_core.modeling import kernels
from tbkin_core.modeling.direct import NEVER


def masked_word_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of (M, V) logits against (M,) ids, summed."""
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def image_words_loss(logits: Tensor, words: Tensor, told: Tensor) -> Tensor:
    """Cross-entropy of (B, V) logits against the words of each text, which count alike, summed over texts.

    Args:
        logits: (B, V).
        words: (B, T) ids.
        told: (B, T) bool, which of them count; a text of none costs nothing.
    """
    found = logits.float().log_softmax(dim=-1).gather(1, words)  # (B, T)
    return -((found * told).sum(dim=1) / told.sum(dim=1).clamp_min(1)).sum()


def region_feature_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """SmoothL1 of (M, F) predictions, mean over F, summed over regions (masked region regression)."""
    return functional.smooth_l1_loss(predicted.float(), target.float(), reduction="none").mean(dim=-1).sum()


def region_class_loss(logits: Tensor, targets: Tensor, confidence: Tensor) -> Tensor:
    """Cross-entropy of (M, C) logits against (M,) classes, weighted by the detector's confidence, summed.

    Targets of -1 are unknown and cost nothing.
    """
    loss = functional.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="none")
    return (loss * confidence).sum()


def matching_loss(logits: Tensor, matched: Tensor) -> Tensor:
    """Cross-entropy of (B, 2) logits against (B,) 0/1, summed; -100 was not asked and costs nothing."""
    return functional.cross_entropy(logits.float(), matched.long(), reduction="sum")


def optimal_transport_distance(
    text: Tensor,
    regions: Tensor,
    text_mask: Tensor,
    region_mask: Tensor,
    beta: float = 0.5,
    iterations: int = 50,
    kernel: bool = False,
) -> Tensor:
    """Inexact proximal point optimal transport between words and regions under cosine cost.

    IPOT (Xie et al., UAI 2020, algorithm 1) with uniform marginals, as UNITER and ROSITA use it for
    alignment. The plan is found without gradient; the distance carries it through the cost.

    Args:
        text, regions: (B, T, D) and (B, K, D).
        text_mask, region_mask: (B, T) and (B, K) bool, True where there is a word or region.
        beta: Proximal step.
        iterations: Outer iterations, one inner iteration each.
        kernel: Find the plan in one kernel, where it takes such costs.

    Returns:
        (B,) distances.
    """
    # Fifty iterations in half precision would drift; autocast would take the products there.
    with torch.autocast(text.device.type, enabled=False):
        text = functional.normalize(text.float(), dim=-1, eps=1e-5)
        regions = functional.normalize(regions.float(), dim=-1, eps=1e-5)
        both = text_mask[:, :, None] & region_mask[:, None, :]  # (B, T, K)
        cost = (1 - text @ regions.transpose(1, 2)).masked_fill(~both, 0.0)
        if kernel and kernels.supports_transport(cost):
            plan = kernels.transport_plan(cost, text_mask, region_mask, beta, iterations)
        else:
            plan = proximal_plan(cost.detach(), text_mask, region_mask, beta, iterations)
        return (cost * plan).sum(dim=(1, 2))


def proximal_plan(
    cost: Tensor, text_mask: Tensor, region_mask: Tensor, beta: float, iterations: int
) -> Tensor:
    """The plan (B, T, K) of `optimal_transport_distance` for costs (B, T, K), which take no gradient."""
    both = text_mask[:, :, None] & region_mask[:, None, :]
    kernel = torch.exp(-cost / beta).masked_fill(~both, 0.0)
    plan = both.to(cost.dtype)
    words = text_mask.sum(dim=1).clamp_min(1).to(cost.dtype)[:, None]  # (B, 1); no word, no distance
    boxes = region_mask.sum(dim=1).to(cost.dtype)[:, None]
    scale_text = text_mask.to(cost.dtype) / words  # (B, T)
    for _ in range(iterations):
        proximal = kernel * plan  # (B, T, K)
        column = boxes * torch.einsum("btk,bt->bk", proximal, scale_text)
        scale_region = torch.where(region_mask, 1 / column.clamp_min(1e-30), 0.0)
        row = words * torch.einsum("btk,bk->bt", proximal, scale_region)
        scale_text = torch.where(text_mask, 1 / row.clamp_min(1e-30), 0.0)
        plan = scale_text[:, :, None] * proximal * scale_region[:, None, :]
    return plan


def answer_loss(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """VQA loss of (B, answers) logits against (B, answers) soft scores, summed over the batch.

    Args:
        kind: "kl" compares the softmax with the normalised scores (the first epochs); "bce" each answer's
            sigmoid with its score, summed over answers (Anderson et al. 2018).
    """
    if kind == "kl":
        total = targets.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return functional.kl_div(
            functional.log_softmax(logits.float(), dim=-1), targets / total, reduction="sum"
        )
    return functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")


def region_score_loss(scores: Tensor, targets: Tensor, region_mask: Tensor) -> Tensor:
    """KL divergence of (B, K) region scores against (B, K) target distributions, summed.

    Rows without a target (no region near the box) cost nothing.
    """
    logarithm = functional.log_softmax(scores.float().masked_fill(~region_mask, -1e9), dim=-1)
    return functional.kl_div(logarithm, targets, reduction="sum")


def box_loss(deltas: Tensor, targets: Tensor, near: Tensor) -> Tensor:
    """SmoothL1 of (B, K, 4) box refinements where (B, K) `near` is True, mean over 4, summed."""
    loss = functional.smooth_l1_loss(deltas.float(), targets, reduction="none").mean(dim=-1)
    return torch.where(near, loss, 0.0).sum()


def contrastive_loss(similarities: Tensor, positives: Tensor, own: Tensor) -> Tensor:
    """InfoNCE both ways between B texts and I images, summed over the 2 B choices.

    Each text is to choose its image among those that it is not true of, and be chosen by it among the texts
    that are not true of that image (van den Oord et al. 2018; of several texts of an image each in turn).

    Args:
        similarities: (B, I), scaled.
        positives: (B, I) bool, which texts are true of which images.
        own: (B,) which image each text is of, one of its positives.
    """
    scores = similarities.float()
    right = scores.gather(1, own[:, None])[:, 0]  # (B,)
    wrong = scores.masked_fill(positives, -NEVER)
    of_text = torch.logaddexp(right, wrong.logsumexp(dim=1))
    of_image = torch.logaddexp(right, wrong.logsumexp(dim=0)[own])
    return (of_text + of_image - 2 * right).sum()
