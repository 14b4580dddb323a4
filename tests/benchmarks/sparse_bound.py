"""What a sparse evaluation could save at most where a threshold drops most keys.

    python tests/benchmarks/sparse_bound.py [--regions 36,144,1024] [--sizes tiny,base] [--rounds 9]

Whoever drops keys by their scores has to compute the scores; what is left to save is the softmax and the
product with the values. Times the forward pass of the encoder, as it is (PyTorch's fused dense attention)
and under τ = 0.3, beside two that no evaluation can reach: one whose softmax and product with the values cost
nothing while the scores and each row's maximum are computed, and one whose attention costs nothing at all.
Ways take turns, medians of the rounds; on CUDA where there is one, else on the threads that torch uses.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from tbkin_core.modeling import TbkinConfig, models
from tbkin_core.modeling.configuration import SIZES
from tbkin_core.modeling.models import TbkinModel
from tbkin_core.selection import Selection

TOKENS, FEATURES = 20, 1400
ATTENTION = models.selective_attention


def values_free(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *rest: Any, **more: Any) -> Any:
    """Scores and their maxima, and nothing of what follows."""
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    return value + 0 * scores.amax(dim=-1, keepdim=True), None


def all_free(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *rest: Any, **more: Any) -> Any:
    return value, None


WAYS: dict[str, tuple[Callable[..., Any], float]] = {
    "dense": (ATTENTION, 0.0),
    "τ = 0.3": (ATTENTION, 0.3),
    "softmax and values free": (values_free, 0.0),
    "attention free": (all_free, 0.0),
}


def seconds(model: TbkinModel, inputs: dict[str, Tensor], way: str) -> float:
    """Of one forward pass."""
    attention, threshold = WAYS[way]
    models.selective_attention = attention  # type: ignore[attr-defined]
    model.selection = Selection(threshold=threshold)
    started = time.perf_counter()
    with torch.inference_mode():
        found = model(**inputs).pooled
    float(found.sum())  # waits for a device
    return time.perf_counter() - started


def main(
    regions: Annotated[str, typer.Option()] = "36,144,1024",
    sizes: Annotated[str, typer.Option()] = "tiny,base",
    rounds: Annotated[int, typer.Option(min=1)] = 9,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"device {device}, threads {torch.get_num_threads()}, medians of {rounds}")
    for size in sizes.split(","):
        for count in map(int, regions.split(",")):
            torch.manual_seed(0)
            given = {"vocab_size": 100, "region_feature_size": FEATURES, "max_regions": count}
            model = TbkinModel(TbkinConfig(**SIZES[size], **given)).eval()
            model = model.to(device)
            batch = max(1, 32 * 36 // count)
            inputs = {
                "input_ids": torch.randint(0, 100, (batch, TOKENS)),
                "attention_mask": torch.ones(batch, TOKENS, dtype=torch.bool),
                "region_features": torch.randn(batch, count, FEATURES),
                "region_geometry": torch.rand(batch, count, 5),
                "region_mask": torch.ones(batch, count, dtype=torch.bool),
            }
            inputs = {name: value.to(device) for name, value in inputs.items()}
            taken: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(rounds + 1):
                for way in WAYS:
                    spent = seconds(model, inputs, way)
                    if turn:
                        taken[way].append(spent)
            medians = {way: statistics.median(spent) for way, spent in taken.items()}
            ratios = ", ".join(f"{way} {medians['dense'] / each:.2f} ×" for way, each in medians.items())
            print(f"{size}, {count} regions: {1000 * medians['dense'] / batch:.1f} ms a sample; {ratios}")


if __name__ == "__main__":
    typer.run(main)
