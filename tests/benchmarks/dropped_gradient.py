"""How much of what a model would learn from lies on the keys that a threshold drops.

    python tests/benchmarks/dropped_gradient.py WORKSPACE [--checkpoint runs/finetune/vqa]
        [--init runs/finetune/rec] [--data coco] [--threshold 0.3] [--questions 256]

A key that is dropped gets no gradient. For a VQA checkpoint, once with its head and the weights that its
training began from (`--init`) and once as it is trained, the dense model answers questions of val; of each
layer are printed the share of the gradient of the loss with respect to the scores (sum of magnitudes) that
lies on keys which `relative` would drop, overall and by type of answer, the share of keys and of attention
that it would keep, and of rows of which it would leave one key.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from tbkin_core.datasets import open_dataset
from tbkin_core.features.store import FeatureStore
from tbkin_core.modeling import models
from tbkin_core.modeling.checkpoint import apply_init, load_init, load_model
from tbkin_core.modeling.losses import answer_loss
from tbkin_core.tasks.base import finetune_task
from tbkin_core.tasks.inputs import InputSource, to_device


def recorded(seen: list[Tensor]) -> Any:
    """Dense attention that keeps its scores (B, H, L, L), with their gradient."""

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *_: Any) -> tuple[Tensor, None]:
        scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
        scores = scores.masked_fill(~mask, -math.inf)
        scores.retain_grad()
        seen.append(scores)
        return scores.softmax(dim=-1) @ value, None

    return attention


def shares(scores: Tensor, valid: Tensor, threshold: float, kinds: np.ndarray) -> dict[str, float]:
    """What is printed of a layer; `valid` is (B, L)."""
    assert scores.grad is not None
    attention, gradient = scores.detach().softmax(dim=-1), scores.grad.abs()
    real = (valid[:, None, :, None] & valid[:, None, None, :]).expand_as(attention)
    dropped = (attention < threshold * attention.amax(dim=-1, keepdim=True)) & real
    kept = real & ~dropped
    rows = kept.sum(dim=-1)[valid[:, None].expand(-1, attention.shape[1], -1)]
    found = {
        "gradient dropped": float(gradient[dropped].sum() / gradient[real].sum()),
        "keys kept": float(kept.sum() / real.sum()),
        "attention kept": float(attention[kept].sum() / attention[real].sum()),
        "rows of one key": float((rows == 1).float().mean()),
    }
    for kind in np.unique(kinds):
        own = torch.from_numpy(kinds == kind)
        of_kind = (gradient * dropped)[own].sum() / (gradient * real)[own].sum()
        found[f"gradient dropped, {kind}"] = float(of_kind)
    return found


def main(
    workspace: Annotated[Path, typer.Argument()],
    checkpoint: Annotated[str, typer.Option()] = "runs/finetune/vqa",
    init: Annotated[str, typer.Option()] = "runs/finetune/rec",
    data: Annotated[str, typer.Option()] = "coco",
    threshold: Annotated[float, typer.Option()] = 0.3,
    questions: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    task = finetune_task("vqa")
    trained, tokenizer = load_model(workspace / checkpoint, "vqa")
    torch.manual_seed(0)
    begun = type(trained)(trained.config)
    apply_init(begun, load_init(str(workspace / init))[0], init)
    dataset = open_dataset(workspace / data)
    samples = task.split_samples(dataset, "val", None)[:questions]
    source = InputSource(
        FeatureStore(workspace / data / "features"),
        tokenizer,
        trained.config.max_text_tokens,
        trained.config.max_regions,
    )
    split = task.build_split(samples, source, blind=False)
    batch = to_device(split.inputs.batch(np.arange(len(samples))), torch.device("cpu"))
    valid = torch.cat([batch["attention_mask"].bool(), batch["region_mask"].bool()], dim=1)
    answers = {answer: number for number, answer in enumerate(trained.config.answers())}
    targets = torch.zeros(len(samples), len(answers))
    for row, scores in enumerate(split.targets):
        for answer, score in scores.items():
            if answer in answers:
                targets[row, answers[answer]] = score
    kinds = np.array([sample.answer_type for sample in samples])
    for name, model in (("as training begins", begun), ("trained", trained)):
        seen: list[Tensor] = []
        models.selective_attention = recorded(seen)  # type: ignore[assignment]
        model.train()
        answer_loss(model(**batch).vqa_logits, targets, "bce").backward()
        for layer, scores in enumerate(seen):
            found = shares(scores, valid, threshold, kinds)
            line = ", ".join(f"{what} {100 * share:.0f} %" for what, share in found.items())
            print(f"{name}, layer {layer}: {line}")


if __name__ == "__main__":
    typer.run(main)
