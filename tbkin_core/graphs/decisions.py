"""Learned choices between readings: sparse features of one choice to a probability for every outcome.

Each kind of choice (what a modifier is to its noun, what relates two objects, ...) has a small network:
features are hashed to rows of an embedding table, the rows are added up, and one hidden layer gives the
scores. The tables ship as 8-bit integers; numpy alone runs them. `examples/train_parser.py` trains them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Choice:
    """One kind of choice; H is the hidden size, C the number of outcomes.

    Attributes:
        outcomes: Names of the C outcomes.
        table: (2**bits, H) int8 embedding of the hashed features.
        scale: (H,) what one step of the table is worth.
        bias: (H,) added to the sum of the rows.
        weights: (H, C) hidden to outcome scores.
        output_bias: (C,).
    """

    outcomes: tuple[str, ...]
    table: Array
    scale: Array
    bias: Array
    weights: Array
    output_bias: Array

    def probabilities(self, features: Sequence[Sequence[str]]) -> Array:
        """(N, C) probabilities of the outcomes for N choices; every choice has at least one feature."""
        mask = len(self.table) - 1
        rows = [crc32(feature.encode()) & mask for choice in features for feature in choice]
        starts = np.zeros(len(features), np.int64)
        np.cumsum([len(choice) for choice in features[:-1]], out=starts[1:])
        summed = np.add.reduceat(self.table[rows], starts, axis=0, dtype=np.int32)  # (N, H)
        hidden = np.maximum(summed * self.scale + self.bias, 0.0, dtype=np.float32)
        # Not a matrix product: its rounding depends on N, and a text must not depend on its batch.
        scores = np.einsum("nh,hc->nc", hidden, self.weights) + self.output_bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        result: Array = scores / scores.sum(axis=1, keepdims=True)
        return result


Decisions = Mapping[str, Choice]


def read_decisions(path: Path) -> dict[str, Choice]:
    """Choices in an .npz file that `write_decisions` made."""
    choices = {}
    with np.load(path, allow_pickle=False) as arrays:
        outcomes: dict[str, list[str]] = json.loads(str(arrays["outcomes"]))
        for name, names in outcomes.items():
            choices[name] = Choice(
                tuple(names),
                arrays[f"{name}.table"],
                arrays[f"{name}.scale"].astype(np.float32),
                arrays[f"{name}.bias"].astype(np.float32),
                arrays[f"{name}.weights"].astype(np.float32),
                arrays[f"{name}.output_bias"].astype(np.float32),
            )
    return choices


def write_decisions(choices: Decisions, path: Path) -> None:
    """Write choices as one compressed .npz file."""
    arrays: dict[str, Any] = {
        "outcomes": json.dumps({name: list(choice.outcomes) for name, choice in choices.items()})
    }
    for name, choice in choices.items():
        arrays[f"{name}.table"] = choice.table
        arrays[f"{name}.scale"] = choice.scale.astype(np.float32)
        arrays[f"{name}.bias"] = choice.bias.astype(np.float32)
        arrays[f"{name}.weights"] = choice.weights.astype(np.float16)
        arrays[f"{name}.output_bias"] = choice.output_bias.astype(np.float32)
    np.savez_compressed(path, **arrays)


@cache
def shipped_decisions() -> dict[str, Choice]:
    """The decisions in `tbkin_core/resources/parser`; none where the file is absent."""
    file = resources.files("tbkin_core").joinpath("resources", "parser", "decisions.npz")
    path = Path(str(file))
    return read_decisions(path) if path.is_file() else {}
