"""Attention of a trace summed up for people: over layers and heads, and from word pieces to words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import ConfigError
from tbkin_core.figures.trace import Pass, Trace


@dataclass(frozen=True)
class AttentionView:
    """Attention of one forward pass, summed up over layers and heads."""

    region_weights: NDArray[np.floating]  # (K,) weight of each region, 0 and up; 0 = dropped
    word_weights: NDArray[np.floating]  # (W,) weight of each word
    word_region: NDArray[np.floating]  # (W, K) attention from words to regions; 0 = dropped
    source: str = ""  # how the weights were summed up, for the caption; may be empty
    positions: int = 0  # n, word pieces and regions among which a row is shared; 0 counts words and regions

    @property
    def even_share(self) -> float:
        """What each position has where all get alike, 1 / n (see `tbkin_core.figures.scale`)."""
        return 1 / (self.positions or max(len(self.word_weights) + len(self.region_weights), 1))


def check_choice(layers: int, heads: int, layer: int | None, head: int | None) -> None:
    """ConfigError where a model of so many layers and heads has no such layer or head."""
    for name, value, count in (("layer", layer, layers), ("head", head, heads)):
        if value is not None and not 0 <= value < count:
            raise ConfigError(
                f"{name}: expected a number from 0 to {count - 1} ({count} {name}s), got {value}"
            )


def attention_views(
    trace: Trace, aggregate: str | None = None, layer: int | None = None, head: int | None = None
) -> tuple[AttentionView, AttentionView]:
    """Where attention went in the dense and in the thresholded pass.

    What is shown is what one position read: [CLS], from which an answer is read, or the region that a REC
    model chose, whose own final state it scored. By default, which the trace's presentation has, an answer
    takes the last layer, the mean of its heads: unlike rollout it is exactly 0 where selection dropped a key
    in all heads, and its [CLS] row points at the object asked for at least as often (measured on scenes). A
    grounding takes rollout: which words reached the chosen region, and which regions it was compared with.

    Args:
        trace: The trace.
        aggregate: "rollout" (over all layers) or "last" (layer); None takes the default above.
        layer: Show this layer alone, numbered from 0.
        head: Show this head alone, of `layer` or of the last layer.

    Raises:
        ConfigError: No such layer or head.
    """
    layers, heads = trace.dense.scores.shape[:2]
    check_choice(layers, heads, layer, head)
    aggregate = aggregate or trace.presentation.aggregate
    if layer is None and (head is not None or aggregate == "last"):
        layer = layers - 1
    if layer is None:
        how = f"attention rollout over {layers} layers"
    else:
        place = f"layer {layer}" + (
            f", the last of {layers}" if layer == layers - 1 else f" of 0 to {layers - 1}"
        )
        how = f"attention in {place}, " + (
            f"mean of {heads} heads" if head is None else f"head {head} of {heads}"
        )
    return _view(trace, trace.dense, layer, head, how), _view(trace, trace.thresholded, layer, head, how)


def _view(trace: Trace, content: Pass, layer: int | None, head: int | None, how: str) -> AttentionView:
    if layer is None:
        attention = rollout(content.weights())
    elif head is None:
        attention = content.weights()[layer].mean(axis=0)
    else:
        attention = content.weights()[layer, head]
    length = len(trace.word_ids)
    row = 0 if content.chosen is None else length + content.chosen
    membership = (trace.word_ids[None] == np.arange(len(trace.words))[:, None]).astype(np.float32)  # (W, T)
    # A word attends as its pieces do on average, and receives what they receive together.
    pieces = np.maximum(membership.sum(axis=1, keepdims=True), 1)
    # Of a model that sees no image, regions have no part in any row. What is even is so of the dense pass.
    positions = int(trace.dense.kept[0, 0, row].sum())
    return AttentionView(
        region_weights=attention[row, length:],
        word_weights=membership @ attention[row, :length],
        word_region=membership @ attention[:length, length:] / pieces,
        source=f"{how}, as read by {'[CLS]' if content.chosen is None else 'the chosen region'}",
        positions=positions,
    )


def rollout(weights: NDArray[np.floating]) -> NDArray[np.float32]:
    """Attention rollout (Abnar and Zuidema, ACL 2020): heads averaged, residuals halved, layers multiplied.

    Args:
        weights: (N, H, L, L) attention of all layers.

    Returns:
        (L, L) float32; row i says how much of each input position reached position i.
    """
    identity = np.eye(weights.shape[-1], dtype=np.float32)
    result = identity
    for layer in weights:
        result = (0.5 * layer.mean(axis=0) + 0.5 * identity) @ result
    return result.astype(np.float32)
