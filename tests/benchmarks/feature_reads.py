"""Random reads from the feature store, beside what else features are kept in.

    OMP_NUM_THREADS=1 python tests/benchmarks/feature_reads.py --images 2000 --regions 36 --size 2048

draws features, writes them as a feature store, compressed npz files, a base64 TSV with an index of its
lines, a bare array and, where the package is installed (`pip install lmdb`), an LMDB; then reads the same
random images of each in batches, in turns. Prints a table: milliseconds per image (median over the rounds,
and the fastest round), and bytes an image over those of the bare fp16 vectors.
"""

from __future__ import annotations

import argparse
import base64
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.writing import write_feature_store

Read = Callable[[NDArray[np.int64]], Any]


def drawn(number: int, regions: int, size: int) -> RegionFeatures:
    """Features and boxes of one image; like a detector's, most numbers are small and positive."""
    chance = np.random.default_rng(number)
    corners = chance.random((regions, 2), np.float32) * 400
    boxes = np.concatenate([corners, corners + 20 + chance.random((regions, 2), np.float32) * 200], axis=1)
    features = np.maximum(chance.standard_normal((regions, size), np.float32), 0)
    return RegionFeatures(number, features.astype(np.float16), boxes.astype(np.float32), 640, 640)


def written(place: Path, images: int, regions: int, size: int) -> dict[str, tuple[Read, int]]:
    """Every way of keeping the features: how it reads a batch, and its bytes on disk."""
    ways: dict[str, tuple[Read, int]] = {}

    def each() -> Any:
        return (drawn(number, regions, size) for number in range(images))

    settings = {"extractor": "drawn", "feature_size": size, "object_names": [], "attribute_names": []}
    store: FeatureStore = write_feature_store(place / "store", settings, each())
    ways["feature store, gather"] = (store.gather, sum(f.stat().st_size for f in (place / "store").iterdir()))

    def one_by_one(rows: NDArray[np.int64]) -> NDArray:
        return np.stack([store[int(row)].features for row in rows])

    ways["feature store, store[id]"] = (one_by_one, ways["feature store, gather"][1])

    shape = (images, regions, size)
    whole = np.lib.format.open_memmap(place / "bare.npy", "w+", np.float16, shape)
    for image in each():
        whole[image.image_id] = image.features
    whole.flush()
    bare = np.load(place / "bare.npy", mmap_mode="r")
    ways["bare memmap"] = (lambda rows: bare[rows], (place / "bare.npy").stat().st_size)

    (place / "npz").mkdir()
    for image in each():
        np.savez_compressed(place / "npz" / str(image.image_id), x=image.features, boxes=image.boxes)

    def from_npz(rows: NDArray[np.int64]) -> NDArray:
        found = []
        for row in rows:
            with np.load(place / "npz" / f"{row}.npz") as archive:
                found.append((archive["x"], archive["boxes"]))
        return np.stack([features for features, _ in found])

    ways["compressed npz"] = (from_npz, sum(file.stat().st_size for file in (place / "npz").iterdir()))

    starts = []
    with (place / "features.tsv").open("wb") as table:
        for image in each():
            starts.append(table.tell())
            columns = [base64.b64encode(np.asarray(a, np.float32)) for a in (image.boxes, image.features)]
            table.write(b"\t".join([b"%d" % image.image_id, *columns]) + b"\n")
    opened = (place / "features.tsv").open("rb")

    def from_table(rows: NDArray[np.int64]) -> NDArray:
        found = []
        for row in rows:
            opened.seek(starts[row])
            features = base64.b64decode(opened.readline().split(b"\t")[2])
            found.append(np.frombuffer(features, np.float32).reshape(regions, size))
        return np.stack(found)

    ways["base64 TSV"] = (from_table, (place / "features.tsv").stat().st_size)

    try:
        import lmdb
    except ImportError:
        return ways
    database = lmdb.open(str(place / "lmdb"), map_size=4 * images * regions * size + 2**24)
    with database.begin(write=True) as transaction:
        for image in each():
            transaction.put(b"%09d" % image.image_id, image.features.tobytes() + image.boxes.tobytes())

    def from_lmdb(rows: NDArray[np.int64]) -> NDArray:
        with database.begin() as transaction:
            values = [transaction.get(b"%09d" % row) for row in rows]
        count = regions * size
        return np.stack([np.frombuffer(v, np.float16, count).reshape(regions, size) for v in values])

    ways["LMDB"] = (from_lmdb, (place / "lmdb" / "data.mdb").stat().st_size)
    return ways


def measured(
    ways: dict[str, tuple[Read, int]], images: int, batch: int, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds an image of each way, one number a round; slow ways read fewer batches."""
    chance = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, (read, _) in ways.items():
            batches = 20 if "store" in name or "bare" in name else 2
            wanted = [chance.integers(0, images, batch) for _ in range(batches)]
            start = time.perf_counter()
            for rows in wanted:
                read(rows)
            if turn:  # the first warms up
                seconds[name].append(1000 * (time.perf_counter() - start) / (batches * batch))
    return seconds


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--size", type=int, default=2048, help="numbers per region")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--place", type=Path, default=None, help="directory for the files; a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.place) as name:
        ways = written(Path(name), arguments.images, arguments.regions, arguments.size)
        seconds = measured(ways, arguments.images, arguments.batch, arguments.rounds)
    raw = arguments.regions * arguments.size * 2
    print(f"{arguments.images} images, {arguments.regions} x {arguments.size}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':26}{'ms an image':>12}{'fastest':>10}{'bytes / raw fp16':>18}")
    for way, values in seconds.items():
        share = ways[way][1] / arguments.images / raw
        print(f"{way:26}{statistics.median(values):12.3f}{min(values):10.3f}{share:18.3f}")


if __name__ == "__main__":
    main()
