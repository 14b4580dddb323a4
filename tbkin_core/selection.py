"""The rules of threshold-based explicit selection and their ranges; knows no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tbkin_core.errors import ConfigError

RULES = ("relative", "probability", "score", "topk")
SCOPES = ("all", "cross-modal", "text-to-image", "image-to-text")


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection rule and its threshold; threshold 0 keeps everything, whatever the rule.

    Attributes:
        rule: One of `RULES`; the equations stand in `tbkin_core.modeling.attention`.
        threshold: τ, or the number of keys k for "topk".
        layers: Layers that select; None means all.
        scope: One of `SCOPES`: which pairs of query and key a selection may drop.
        straight_through: Give dropped keys the dense softmax's gradient.

    Raises:
        ConfigError: Unknown rule or scope, or a threshold outside the rule's range.
    """

    rule: str = "relative"
    threshold: float = 0.0
    layers: tuple[int, ...] | None = None
    scope: str = "all"
    straight_through: bool = False

    def __post_init__(self) -> None:
        problem = check_threshold(self.rule, self.threshold)
        if problem is None and self.scope not in SCOPES:
            problem = f"threshold_scope: expected one of {', '.join(SCOPES)}, got {self.scope!r}"
        if problem is not None:
            raise ConfigError(problem)

    def active_in(self, layer: int) -> bool:
        """Whether a layer selects at all; where it does not, attention is the fused dense one."""
        return self.threshold != 0 and (self.layers is None or layer in self.layers)


def check_threshold(rule: str, threshold: float) -> str | None:
    """What is wrong with a threshold under a rule, or None."""
    if rule not in RULES:
        return f"selection: expected one of {', '.join(RULES)}, got {rule!r}"
    if not math.isfinite(threshold):
        return f"threshold: expected a finite number, got {threshold}"
    if rule in ("relative", "probability") and not 0 <= threshold <= 1:
        return f"threshold: expected a number from 0 to 1 for selection {rule!r}, got {threshold:g}"
    if rule == "topk" and (threshold < 0 or threshold != int(threshold)):
        return f"threshold: expected the whole number k (0 is dense) for selection 'topk', got {threshold:g}"
    return None
