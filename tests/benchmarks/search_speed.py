"""How long a sentence takes to be searched for among many images.

    python tests/benchmarks/search_speed.py CHECKPOINT WORKSPACE [--images 100000] [--regions 36]

CHECKPOINT is a retrieval model. Writes a feature store of so many made-up images (random numbers of the size
that the model takes) into WORKSPACE, has their vectors made once, and then times five searches, the way
`tbkin visualize PHOTOS/ SENTENCE` does them: the sentence through its tower, all images compared, the best 50
ranked by the encoder. Prints seconds: of the vectors, the first time and read again; of a search, the median
and the most.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.writing import FeatureStoreWriter
from tbkin_core.modeling.checkpoint import load_model
from tbkin_core.tasks.inputs import Inputs
from tbkin_core.tasks.pairs import search_images, tower_vectors
from tbkin_core.texts.table import encode_texts

SENTENCES = (
    "a dog jumping into the water", "two children on a swing", "a man in a red shirt rides a bicycle",
    "people are sitting at a table", "snow on a mountain",
)  # fmt: skip


def write_store(place: Path, images: int, regions: int, settings: dict[str, object]) -> None:
    """A store of made-up images."""
    generator = np.random.default_rng(0)
    size = int(str(settings["feature_size"]))
    # Drawn once: what the numbers are makes no difference to the time.
    pool = generator.normal(size=(regions + 4096, size)).astype(np.float32)
    writer = FeatureStoreWriter(place, settings)
    for number in range(images):
        begin = number % 4096
        corners = generator.uniform(0, 100, (regions, 2)).astype(np.float32)
        boxes = np.concatenate([corners, corners + 50], axis=1)
        vectors = pool[begin : begin + regions]
        writer.add(RegionFeatures(number, vectors, boxes, 200, 200))
    writer.finish()


def main(
    checkpoint: Annotated[Path, typer.Argument()],
    workspace: Annotated[Path, typer.Argument()],
    images: Annotated[int, typer.Option(min=100)] = 100_000,
    regions: Annotated[int, typer.Option(min=1, help="Of an image.")] = 36,
) -> None:
    model, tokenizer = load_model(checkpoint, "retrieval")
    place = workspace / f"features-{images}"
    if not (place / "store.json").exists():
        write_store(place, images, regions, dict(model.config.extractor))
    store, device = FeatureStore(place), torch.device("cpu")
    vectors = np.zeros(0)
    for what in ("made", "read"):
        started = time.perf_counter()
        vectors = tower_vectors(model, 1, store, device)
        print(f"vectors of {len(vectors):,} images {what}: {time.perf_counter() - started:.2f} s")
    rows, seconds = np.arange(len(store)), []
    for sentence in SENTENCES:
        started = time.perf_counter()
        table = encode_texts(tokenizer, [sentence], model.config.max_text_tokens)
        inputs = Inputs(table, rows[:1], store, model.config.max_regions)
        search_images(model, inputs, rows, vectors, device)
        seconds.append(time.perf_counter() - started)
    print(f"a search: {np.median(seconds):.2f} s, the most {max(seconds):.2f} s")


if __name__ == "__main__":
    typer.run(main)
