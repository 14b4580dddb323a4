"""Networks that read scene graphs off parses, as the recipes make them: their inputs and their file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.parsing.network import WEIGHT_LEVELS, Array, ParsedBatch, Vocabulary


def parsed_batch(
    vocabulary: Vocabulary,
    parses: Iterable[tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[int]]],
) -> ParsedBatch:
    """Texts as (tokens, tags, labels, heads), heads counted from the text's beginning."""
    words: list[str] = []
    numbers: list[tuple[int, int, int]] = []  # tag, label, head of each token
    offsets = [0]
    for tokens, tags, labels, heads in parses:
        words += [token.lower() for token in tokens]
        places = (offsets[-1] + head for head in heads)
        numbers += zip(map(vocabulary.tag, tags), map(vocabulary.label, labels), places, strict=True)
        offsets.append(len(words))
    rows = np.array(vocabulary.rows(words), np.int64)
    all_tags, all_labels, all_heads = np.array(numbers, np.int64).reshape(-1, 3).T
    begins = np.array(offsets, np.int64)
    return ParsedBatch(rows, all_tags, all_labels, all_heads, begins, vocabulary.generation)


def write_network(path: Path, arrays: Mapping[str, Array], names: Mapping[str, Sequence[str]]) -> None:
    """Write a network as one compressed .npz: tables and matrices at 8 bits per number, the rest at 16."""
    packed: dict[str, Any] = {"names": json.dumps({key: list(value) for key, value in names.items()})}
    for name, values in arrays.items():
        owner, _, kind = name.rpartition(".")
        if values.ndim == 2 and (kind == "weight" or len(values) > 100):
            # Of a large table a few numbers may be cut, so that the others keep their precision.
            sizes = np.abs(values)
            largest = sizes.max(axis=0) if kind == "weight" else np.quantile(sizes, 0.9999, axis=0)
            scale = np.maximum(largest, 1e-6).astype(np.float32) / WEIGHT_LEVELS
            packed[name] = np.clip(np.rint(values / scale), -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
            packed[f"{owner}.scale"] = scale
        else:
            packed[name] = values.astype(np.float16)
    np.savez_compressed(path, **packed)
