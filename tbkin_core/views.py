"""What one forward pass says of one image: answers or a box, and where attention went."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tbkin_core.evaluation.attribution import attention_rollout, kept_counts, last_layer_attention
from tbkin_core.figures.attention import AttentionView
from tbkin_core.modeling import TbkinConfig
from tbkin_core.tasks import apply_deltas

_QUESTION = re.compile(
    r"(what|which|who|whose|whom|where|when|why|how|is|are|was|were|does?|did|can|could|will|would|has|have"
    r"|had|should)\b|.*\?\s*$",
    re.IGNORECASE | re.DOTALL,
)


def is_question(text: str) -> bool:
    """Whether an English text asks ("what color", "is it red") rather than names something."""
    return _QUESTION.match(text.strip()) is not None


@dataclass(slots=True)
class Prediction:
    """Answers best first, with probabilities; for REC the regions by number, and the refined box."""

    answers: list[tuple[str, float]] = field(default_factory=list)
    chosen: int | None = None
    runner_up: int | None = None
    box: NDArray[np.float32] | None = None


def predictions(
    task: str, config: TbkinConfig, output: Any, boxes: NDArray, size: tuple[int, int], top: int
) -> Prediction:
    """Read the answer off a model's output for one image.

    Args:
        task: "vqa", "rec" or "pretrain" (which says whether image and text belong together).
        config: The model's configuration.
        output: Its output for a batch of one.
        boxes: (K, 4) xyxy pixels.
        size: Image width and height in pixels.
        top: How many answers.
    """
    if task == "vqa":
        best = output.vqa_logits[0].float().softmax(dim=-1).topk(min(top, config.num_answers))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        answers = config.answers()
        return Prediction([(answers[number], value) for number, value in pairs])
    if task == "pretrain":
        match = float(output.itm_logits[0].float().softmax(dim=-1)[1])
        return Prediction([("belong together", match), ("do not", 1 - match)])
    scores = output.rec_scores[0].float().softmax(dim=-1)
    best = scores.topk(min(top, len(boxes)))
    order = best.indices.tolist()
    deltas = output.rec_deltas[0, order[0]].float().cpu().numpy()[None]
    refined = apply_deltas(boxes[order[0]][None], deltas, np.array([size], np.float32))[0]
    return Prediction(
        [(f"region {number}", value) for number, value in zip(order, best.values.tolist(), strict=True)],
        order[0],
        order[1] if len(order) > 1 else None,
        refined,
    )


def attention_views(
    task: str, output: Any, inputs: dict[str, Any], word_ids: NDArray, chosen: int | None
) -> tuple[AttentionView, float]:
    """Where the output's attention went, and the kept fraction.

    An answer is read from [CLS], so its weights are those that [CLS] gives in the last layer. A region of a
    grounding is scored by its own final state, so its weights are what reached that state by attention
    rollout (its own part included): which words, and which regions it was compared with.

    Args:
        output: The model's output for a batch of one, with attentions.
        inputs: Its inputs.
        word_ids: (T,) word of each piece, -1 for special tokens.
        chosen: Region chosen by a REC model.
    """
    length = inputs["input_ids"].shape[1]
    if task == "rec" and chosen is not None:
        attention = attention_rollout(output.attentions)[0]  # (L, L)
        row, source = attention[length + chosen], "attention rollout to the chosen region"
    else:
        attention = last_layer_attention(output.attentions)[0]  # (L, L)
        row, source = attention[0], "attention of [CLS] in the last layer, mean of heads"
    words = int(word_ids.max(initial=-1)) + 1
    membership = np.zeros((words, length), np.float32)
    for place, word in enumerate(word_ids):
        if word >= 0:
            membership[word, place] = 1
    pieces = membership.sum(axis=1, keepdims=True)
    # A word attends as its pieces do on average, and receives what they receive together.
    word_region = membership @ attention[:length, length:] / np.maximum(pieces, 1)
    word_weights, region_weights = membership @ row[:length], row[length:]
    valid = torch.cat([inputs["attention_mask"].bool(), inputs["region_mask"].bool()], dim=1)
    counts = kept_counts(output.attentions, valid, length)
    kept = sum(value[:, 0].sum() for value in counts.values())
    total = sum(value[:, 1].sum() for value in counts.values())
    return AttentionView(region_weights, word_weights, word_region, source), float(kept / max(total, 1))
