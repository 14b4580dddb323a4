"""The rules of threshold-based explicit selection and their ranges; knows no torch."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass

from tbkin_core.errors import ConfigError, MissingDependencyError

RULES = ("relative", "probability", "score", "topk")
TRANSFORMS = ("sparsemax", "entmax15")
"""Sparse attention without a threshold, to compare with: it is on (1) or off (0)."""
SELECTIONS = (*RULES, *TRANSFORMS)
SCOPES = ("all", "cross-modal", "text-to-image", "image-to-text")


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection rule and its threshold; threshold 0 keeps everything, whatever the rule.

    Attributes:
        rule: One of `SELECTIONS`; the equations stand in `tbkin_core.modeling.attention`.
        threshold: τ, the number of keys k for "topk", or 1 for one of `TRANSFORMS`.
        layers: Layers that select; None means all.
        scope: One of `SCOPES`: which pairs of query and key a selection may drop.
        straight_through: Give dropped keys the dense softmax's gradient.

    Raises:
        ConfigError: Unknown rule or scope, or a threshold outside the rule's range.
        MissingDependencyError: One of `TRANSFORMS` without the entmax library.
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
        if self.threshold != 0:
            require_library(self.rule)

    @property
    def name(self) -> str:
        """As people read it: "relative τ = 0.3", "topk k = 4", "entmax15", "dense"."""
        if self.threshold == 0:
            return "dense"
        if self.rule in TRANSFORMS:
            return self.rule
        return f"{self.rule} {'k' if self.rule == 'topk' else 'τ'} = {self.threshold:g}"

    def active_in(self, layer: int) -> bool:
        """Whether a layer selects at all; where it does not, attention is the fused dense one."""
        return self.threshold != 0 and (self.layers is None or layer in self.layers)


def check_threshold(rule: str, threshold: float) -> str | None:
    """What is wrong with a threshold under a rule, or None."""
    if rule not in SELECTIONS:
        return f"selection: expected one of {', '.join(SELECTIONS)}, got {rule!r}"
    if not math.isfinite(threshold):
        return f"threshold: expected a finite number, got {threshold}"
    if rule in ("relative", "probability") and not 0 <= threshold <= 1:
        return f"threshold: expected a number from 0 to 1 for selection {rule!r}, got {threshold:g}"
    if rule == "topk" and (threshold < 0 or threshold != int(threshold)):
        return f"threshold: expected the whole number k (0 is dense) for selection 'topk', got {threshold:g}"
    if rule in TRANSFORMS and threshold not in (0, 1):
        return f"threshold: selection {rule!r} has none, leave it away; got {threshold:g}"
    return None


def usual_threshold(rule: str) -> float:
    """A threshold to show a rule with where none is given."""
    return 1.0 if rule in TRANSFORMS else 4.0 if rule == "topk" else 0.3


def require_library(rule: str) -> None:
    """MissingDependencyError where a rule needs the entmax library and it is not installed."""
    if rule in TRANSFORMS and importlib.util.find_spec("entmax") is None:
        raise MissingDependencyError(
            f"selection: {rule!r} needs the entmax library, which is not installed",
            hint="install it with `pip install 'tbkin[entmax]'`",
        )
