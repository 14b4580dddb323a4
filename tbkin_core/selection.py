"""The rules of threshold-based explicit selection, one entry each; knows no torch.

Settings, attention, figures and the page read what differs between rules here. A rule's mathematics stand in
`tbkin_core.modeling.attention` and, for the page, in `resources/page/attention.js`, both under its name.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace

from tbkin_core.errors import ConfigError, MissingDependencyError


@dataclass(frozen=True, slots=True)
class Rule:
    """How a rule is named, which thresholds it takes, and how figures, page and help speak of it."""

    name: str  # as the settings have it
    keeps: str = ""  # ends the sentence "Each query keeps the keys ..."
    symbol: str = "τ"  # of its threshold; "" for a transform, which has none: it is on (1) or off (0)
    low: float = -math.inf  # least threshold; a rule without one compares scores, not weights
    high: float = math.inf  # largest threshold
    whole: bool = False  # the threshold is a number of keys
    usual: float = 0.3  # a threshold to show the rule with where none is given
    step: float | None = None  # of the page's slider; None where that depends on the scores
    dense_at_zero: bool = True  # as its threshold goes to 0, it keeps ever more like the dense model
    axis: str = "Threshold τ"  # label of the axis of its thresholds
    axis_detail: str = ""  # goes on with the label where there is room; rules alike in both share a plot
    phrase: str = "{name}, τ = {threshold}"  # a selection in words, from {name} and {threshold}
    unit: str = ""  # what a whole threshold counts, in the singular
    library: str = ""  # what has to be installed for it, also the name of the extra that does so

    @property
    def is_transform(self) -> bool:
        """Sparse attention in the softmax's place, without a threshold."""
        return not self.symbol

    @property
    def is_number(self) -> bool:
        """Whether the threshold is any number, and no count of keys."""
        return not (self.is_transform or self.whole)

    def in_words(self, threshold: float) -> str:
        """ "relative, τ = 0.3", "top 4 keys", "entmax15"."""
        words = self.phrase.format(name=self.name, threshold=f"{threshold:g}")
        return f"{words} {self.unit}{'s' * (threshold != 1)}" if self.unit else words


_TABLE = (
    Rule("relative", keeps="with at least τ times the weight of its strongest", low=0, high=1, step=0.01),
    Rule("probability", keeps="with a weight of at least τ", low=0, high=1, step=0.005),
    Rule(
        "score",
        keeps="with a score of at least τ before the softmax",
        dense_at_zero=False,
        axis_detail=" on the score",
    ),
    Rule(
        "topk",
        keeps="with the k largest weights",
        symbol="k",
        low=0,
        whole=True,
        usual=4,
        step=1,
        dense_at_zero=False,
        axis="k (keys kept)",
        phrase="top {threshold}",
        unit="key",
    ),
    Rule("sparsemax", symbol="", usual=1, phrase="{name}", library="entmax"),
    Rule("entmax15", symbol="", usual=1, phrase="{name}", library="entmax"),
)
RULE_TABLE = {rule.name: rule for rule in _TABLE}
RULES = tuple(rule.name for rule in _TABLE if not rule.is_transform)
TRANSFORMS = tuple(rule.name for rule in _TABLE if rule.is_transform)  # to compare with
SELECTIONS = (*RULES, *TRANSFORMS)
_SCOPES = {
    "all": "",
    "cross-modal": "across modalities",
    "text-to-image": "from text to image",
    "image-to-text": "from image to text",
}
SCOPES = tuple(_SCOPES)
_GROWTH = 1000.0
"""A threshold on weights begins to grow in training at so much less."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection rule and its threshold; threshold 0 keeps everything, whatever the rule.

    Raises:
        ConfigError: Unknown rule or scope, or a threshold outside the rule's range.
        MissingDependencyError: A rule whose library is not installed.
    """

    rule: str = "relative"  # one of `SELECTIONS`; the equations stand in `tbkin_core.modeling.attention`
    threshold: float = 0.0  # τ, the number of keys k for "topk", or 1 for one of `TRANSFORMS`
    layers: tuple[int, ...] | None = None  # layers that select; None means all
    scope: str = "all"  # one of `SCOPES`: which pairs of query and key a selection may drop
    straight_through: bool = False  # give dropped keys the dense softmax's gradient

    def __post_init__(self) -> None:
        if problem := check_threshold(self.rule, self.threshold):
            raise ConfigError(problem)
        if self.scope not in SCOPES:
            raise ConfigError(f"threshold_scope: expected one of {', '.join(SCOPES)}, got {self.scope!r}")
        if self.threshold != 0:
            require_library(self.rule)

    @property
    def name(self) -> str:
        """As people read it: "relative τ = 0.3", "topk k = 4", "entmax15", "dense"."""
        if self.threshold == 0:
            return "dense"
        rule = RULE_TABLE[self.rule]
        return rule.name if rule.is_transform else f"{rule.name} {rule.symbol} = {self.threshold:g}"

    @property
    def where(self) -> str:
        """Where it selects, as people read it: "in layers 1, 3, across modalities", "" for everywhere."""
        layers = ""
        if self.layers is not None:
            plural = "s" if len(self.layers) > 1 else ""
            layers = f"in layer{plural} {', '.join(map(str, self.layers))}" if self.layers else "in no layer"
        return ", ".join(filter(None, (layers, _SCOPES[self.scope])))

    def in_layer(self, layer: int) -> Selection:
        """What a layer does: this, or where it does not select the dense attention."""
        return self if self.layers is None or layer in self.layers else replace(self, threshold=0.0)


def rule_of(name: str) -> Rule:
    """The entry of a rule; ConfigError where there is none of that name."""
    if name not in RULE_TABLE:
        raise ConfigError(_unknown(name))
    return RULE_TABLE[name]


def check_threshold(rule: str, threshold: float) -> str | None:
    """What is wrong with a threshold under a rule, or None."""
    if rule not in RULE_TABLE:
        return _unknown(rule)
    entry = RULE_TABLE[rule]
    if not math.isfinite(threshold):
        return f"threshold: expected a finite number, got {threshold}"
    if entry.is_transform and threshold not in (0, 1):
        return f"threshold: selection {rule!r} has none, omit it; got {threshold:g}"
    if entry.low <= threshold <= entry.high and (not entry.whole or threshold == int(threshold)):
        return None
    if entry.whole:
        expected = f"the whole number {entry.symbol} (0 is dense)"
    elif math.isfinite(entry.high):
        expected = f"a number from {entry.low:g} to {entry.high:g}"
    else:
        expected = f"a number of at least {entry.low:g}"
    return f"threshold: expected {expected} for selection {rule!r}, got {threshold:g}"


def grown(selection: Selection, share: float) -> Selection:
    """A selection at a share of its growth in training: dense at 0, itself at 1.

    What is cut is a matter of the logarithm of attention: a τ that grew evenly would have dropped most of
    what it drops at all when it is a tenth of its value. So the cut rises evenly on the scores, by ln 1000 in
    all; a number of keys falls from a thousand times as many, in halves.
    """
    rule, threshold = rule_of(selection.rule), selection.threshold
    if share >= 1 or rule.is_transform or threshold == 0:
        return selection
    if share <= 0:
        return replace(selection, threshold=0.0)
    left = (1 - share) * math.log(_GROWTH)
    if rule.whole:
        return replace(selection, threshold=threshold * 2 ** math.ceil(left / math.log(2)))
    if math.isinf(rule.low):  # compares scores
        return replace(selection, threshold=threshold - left)
    return replace(selection, threshold=threshold * math.exp(-left))


def usual_threshold(rule: str) -> float:
    """A threshold to show a rule with where none is given; of an unknown one that of the first."""
    return RULE_TABLE.get(rule, _TABLE[0]).usual


def run_name_part(rule: str, threshold: float) -> str:
    """A selection in the name of a run or a file: "relative-0.3", "topk-4", "entmax15"."""
    return rule if rule_of(rule).is_transform else f"{rule}-{threshold:g}"


def require_library(rule: str) -> None:
    """MissingDependencyError where a rule needs a library that is not installed."""
    library = rule in RULE_TABLE and RULE_TABLE[rule].library
    if library and importlib.util.find_spec(library) is None:
        raise MissingDependencyError(
            f"selection: {rule!r} needs the {library} library, which is not installed",
            hint=f"install it with `pip install 'tbkin[{library}]'`",
        )


def _unknown(rule: str) -> str:
    return f"selection: expected one of {', '.join(SELECTIONS)}, got {rule!r}"


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


SELECTION_HELP = f"{_listed(RULES)}; or without a threshold {_listed(TRANSFORMS)}."
THRESHOLD_HELP = "τ of the explicit selection; 0 is the dense model. " + " ".join(
    f"For {rule.name} the number of {rule.unit}s." for rule in _TABLE if rule.unit
)
