"""A sample of photos with questions made from their captions, to measure models with.

    python tests/benchmarks/caption_questions.py DATA OUT [--train-images 2000] [--val-images 400] [--seed 0]

DATA is a dataset of photos with captions in its publisher's layout (Flickr8k, say). A sample of its train
photos and one of its val photos (Flickr8k's dev) are linked from OUT, with their captions; test photos are
left alone. `tbkin build-graphs OUT --questions` then makes the questions, timed beside the graphs alone.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.datasets.records import ImageRecord
from tbkin_core.errors import DataError
from tbkin_core.settings import BuildGraphsConfig
from tbkin_core.stages.build_graphs import build_graphs


def sampled(data: Dataset, split: str, count: int, seed: int) -> list[tuple[ImageRecord, list[str]]]:
    """Photos of a split with their captions, as many as asked for or all that there are."""
    captions = defaultdict[Any, list[str]](list)
    for caption in data.captions(split):
        captions[caption.image_id].append(caption.text)
    images = [it for it in data.images(split) if it.path and it.split == split and it.image_id in captions]
    if not images:
        raise DataError(f"{data.path}: no photo of {split} has captions")
    images.sort(key=lambda it: str(it.image_id))
    drawn = np.random.default_rng((seed, len(split))).permutation(len(images))[:count]
    return [(images[place], captions[images[place].image_id]) for place in sorted(drawn)]


def link_photos(data: Path, out: Path, images: dict[str, int], seed: int = 0) -> None:
    """Link so many photos of each split from a directory, with their captions beside them."""
    dataset = open_dataset(data)
    (out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for split, count in images.items():
        for record, captions in sampled(dataset, split, count, seed):
            link = out / "images" / record.path.name
            if not link.is_symlink():
                link.symlink_to(record.path.resolve())
            lines += [{"image": link.name, "text": text, "split": split} for text in captions]
    (out / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def main(
    data: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Argument()],
    train_images: Annotated[int, typer.Option()] = 2000,
    val_images: Annotated[int, typer.Option()] = 400,
    seed: Annotated[int, typer.Option(help="Of the sample of images.")] = 0,
) -> None:
    """Link, make, time and count."""
    link_photos(data, out, {"train": train_images, "val": val_images}, seed)
    begun = time.perf_counter()
    build_graphs(BuildGraphsConfig(data=out, workers=0))
    graphs = time.perf_counter() - begun
    result = build_graphs(BuildGraphsConfig(data=out, workers=0, questions=True))
    questions = time.perf_counter() - begun - graphs
    captions = result.summary["captions"]
    print(f"{captions} captions: graphs {graphs:.1f} s, questions {questions:.1f} s on one core")
    for split, counts in result.summary["questions"].items():
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        images = result.summary["images_asked_about"][split]
        print(f"{split}: {sum(counts.values())} questions about {images} images ({kinds})")


if __name__ == "__main__":
    typer.run(main)
