"""Traces of a small model with random weights, for the tests of figures and of the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tbkin_core.figures.trace import Pass, Trace
from tbkin_core.graphs.unified import CrossEdges, UnifiedGraph, region_edges
from tbkin_core.modeling import Selection, TbkinConfig, TbkinForRec, TbkinForVqa
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation

ANSWERS = ("red", "blue", "two", "dog")
LABELS = ("dog", "tall building", "", "car")


def tiny_trace(
    text: str = "what color is the umbrella ?",
    regions: int = 5,
    task: str = "vqa",
    selection: Selection | None = None,
    labels: tuple[str, ...] = LABELS,
    answers: tuple[str, ...] = ANSWERS,
    layers: int = 2,
    heads: int = 2,
    graph: bool = True,
) -> Trace:
    """What a model of random weights does with the words of `text` and some drawn regions.

    The first word consists of two pieces, so that words and pieces are not the same.
    """
    selection = selection or Selection("relative", 0.3)
    words = text.split()
    pieces = ["[CLS]", *(part for word in words[:1] for part in (word, "##s")), *words[1:], "[SEP]"]
    word_ids = [-1, *([0, 0] if words else []), *range(1, len(words)), -1]
    torch.manual_seed(1)
    kind: Any = TbkinForRec if task == "rec" else TbkinForVqa
    model = kind(
        TbkinConfig(
            vocab_size=40, hidden_size=8 * heads, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=32, max_position_embeddings=max(16, len(pieces)), region_feature_size=6,
            num_answers=len(answers), initializer_range=0.6,
        )
    ).eval()  # fmt: skip
    width, height = 320, 240
    chance = np.random.default_rng(0)
    corners = np.sort(chance.random((regions, 2, 2)), axis=1) * np.array([width, height])  # (K, corner, xy)
    boxes = corners.reshape(regions, 4).astype(np.float32)
    inputs = {
        "input_ids": torch.arange(len(pieces))[None] % 40,
        "attention_mask": torch.ones(1, len(pieces), dtype=torch.bool),
        "region_features": torch.randn(1, regions, 6),
        "region_geometry": torch.rand(1, regions, 5),
        "region_mask": torch.ones(1, regions, dtype=torch.bool),
    }
    passes = []
    for rule in (Selection(), selection):
        model.tbkin.selection = rule
        with torch.inference_mode():
            output = model(**inputs, output_attentions=True)
        passes.append(_pass(task, output, answers))
    region_labels = [labels[number % len(labels)] for number in range(regions)]
    return Trace(
        task=task,
        text=text,
        image=chance.integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8),
        image_size=(width, height),
        boxes=boxes,
        region_labels=region_labels,
        words=words,
        pieces=pieces,
        word_ids=np.array(word_ids, np.int64),
        selection=selection.rule,
        threshold=selection.threshold,
        scope=selection.scope,
        layers=None if selection.layers is None else list(selection.layers),
        dense=passes[0],
        thresholded=passes[1],
        checkpoint="tiny",
        target_box=(10.0, 20.0, 110.0, 120.0) if task == "rec" else None,
        graph=tiny_graph(text, boxes, region_labels).to_dict() if graph else None,
    )


def tiny_graph(
    text: str,
    boxes: np.ndarray,
    labels: list[str],
    names: tuple[str, ...] = ("umbrella", "dog"),
    predicate: str = "above",
) -> UnifiedGraph:
    """Objects in a row, each with an attribute and a relation to the next; the last one has regions."""
    objects = tuple(TextObject(number, (number, number + 1), name) for number, name in enumerate(names))
    found = [number for number, label in enumerate(labels) if names and label == names[-1]]
    return UnifiedGraph(
        0,
        "image",
        text,
        TextGraph(
            tuple(text.split()),
            objects,
            tuple(TextAttribute(number, "large", (0,)) for number in range(len(names))),
            tuple(TextRelation(number, predicate, number + 1, (0,)) for number in range(len(names) - 1)),
        ),
        boxes,
        tuple(labels),
        region_edges(boxes),
        CrossEdges(
            np.full(len(found), len(names) - 1, np.int32),
            np.array(found, np.int32),
            np.linspace(1, 0.5, len(found)).astype(np.float32),
        ),
    )


def _pass(task: str, output: Any, answers: tuple[str, ...]) -> Pass:
    scores = torch.stack([record.scores[0] for record in output.attentions]).numpy().astype(np.float16)
    kept = torch.stack([record.kept[0] for record in output.attentions]).numpy()
    logits = output.rec_scores[0] if task == "rec" else output.vqa_logits[0]
    best = logits.softmax(dim=-1).sort(descending=True)
    order = best.indices.tolist()
    names = [f"region {number}" if task == "rec" else answers[number] for number in order]
    pairs = list(zip(names, best.values.tolist(), strict=True))
    if task != "rec":
        return Pass(scores, kept, answers=pairs)
    box = (5.0, 25.0, 100.0, 118.0)
    return Pass(scores, kept, answers=pairs, chosen=order[0], runner_up=order[1], box=box)
