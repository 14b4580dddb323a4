"""What an extraction with a model costs beside the model's forward passes, and images per second.

    python tests/benchmarks/detector_overhead.py                 # tiny models, on the processor
    python tests/benchmarks/detector_overhead.py --full-size     # RT-DETR v2 R50 and ViT-B/16, random weights

Draws pictures of 640 x 480, saves the models to a temporary directory, extracts into a store, prints one JSON
object a model. Of several devices the busiest one's forward time counts. Overhead is what is left of the wall
time; reading, preparing and writing hide behind the model as far as there are processors for them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tbkin_core.datasets import open_dataset
from tbkin_core.features import extract
from tbkin_core.features.extract import extract_dataset
from tbkin_core.features.extractors.backbone import BackboneExtractor
from tbkin_core.features.extractors.fixed_class import DetectorExtractor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_models import dinov2, grounding_dino, owlv2, rt_detr


def full_size_rt_detr(place: Path) -> None:
    """RT-DETR v2 with a ResNet-50, as transformers configures it by default, 640 x 640."""
    from transformers import RTDetrImageProcessor, RTDetrV2Config, RTDetrV2ForObjectDetection

    RTDetrV2ForObjectDetection(RTDetrV2Config()).save_pretrained(place)
    RTDetrImageProcessor().save_pretrained(place)


def full_size_vit(place: Path) -> None:
    """ViT-B/16, 224 x 224."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    ViTModel(ViTConfig()).save_pretrained(place)
    ViTImageProcessor().save_pretrained(place)


def draw(directory: Path, count: int) -> None:
    """Pictures that take as long to decode as photographs: smooth with some noise, as JPEG."""
    directory.mkdir()
    chance = np.random.default_rng(0)
    for number in range(count):
        blocks = Image.fromarray(chance.integers(0, 255, (12, 16, 3), np.uint8)).resize((640, 480))
        pixels = np.asarray(blocks, np.int16) + chance.integers(-12, 12, (480, 640, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(directory / f"{number}.jpg", quality=90)


def timed(model: torch.nn.Module, device: torch.device, spent: list[float]) -> None:
    """Note the seconds of each forward pass of a model; CUDA's own work included."""
    forward = model.forward

    def measured(*arguments: Any, **options: Any) -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        result = forward(*arguments, **options)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
        return result

    model.forward = measured


def measure(
    name: str, model: str, backbone: str | None, photos: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Extract once and say where the time went."""
    lanes: list[list[float]] = []
    marks: list[float] = []
    make, run = extract.open_extractor, extract.run_batches

    def made(*given: Any) -> Any:
        opened = make(*given)
        copies: Any = opened.extractor
        for one in copies:
            spent: list[float] = []
            lanes.append(spent)
            inner = one._boxes if isinstance(one, BackboneExtractor) else one
            if isinstance(one, BackboneExtractor):
                timed(one._backbone._vision, one._backbone._device, spent)
            if isinstance(inner, DetectorExtractor):
                # OWL is not run through its forward, but through its parts.
                parts = inner._model.owlv2.vision_model if hasattr(inner._model, "owlv2") else inner._model
                timed(parts, inner._device, spent)
        return opened

    def ran(*given: Any) -> Any:
        marks.append(time.perf_counter())
        yield from run(*given)

    extract.open_extractor, extract.run_batches = made, ran  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as place:
            result = extract_dataset(
                open_dataset(photos), Path(place) / "store", model, arguments.regions, arguments.workers,
                devices=arguments.devices, batch_size=arguments.batch_size, backbone=backbone,
            )  # fmt: skip
            wall = time.perf_counter() - marks[0]
    finally:
        extract.open_extractor, extract.run_batches = make, run  # type: ignore[assignment]
    forward = max(sum(spent) for spent in lanes)
    return {
        "model": name,
        "images": result.made,
        "images_a_second": round(result.made / wall, 1),
        "forward_ms_an_image": round(1000 * forward / result.made, 2),
        "overhead_ms_an_image": round(1000 * (wall - forward) / result.made, 2),
        "share_of_forward": round(forward / wall, 3),
    }


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--full-size", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        draw(root / "photos", arguments.images)
        if arguments.full_size:
            full_size_rt_detr(root / "detector")
            full_size_vit(root / "backbone")
            runs = [
                ("RT-DETR v2 R50", "detector", None),
                ("RT-DETR v2 R50 + ViT-B/16", "detector", "backbone"),
            ]
        else:
            for save in (rt_detr, owlv2, grounding_dino, dinov2):
                save(root / save.__name__)
            runs = [(name, name, None) for name in ("rt_detr", "owlv2", "grounding_dino")]
            runs.append(("rt_detr + dinov2", "rt_detr", "dinov2"))
        for name, model, backbone in runs:
            over = None if backbone is None else str(root / backbone)
            print(json.dumps(measure(name, str(root / model), over, root / "photos", arguments)), flush=True)


if __name__ == "__main__":
    main()
