"""Speed, scaling and memory of build-graphs, as ratios measured in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/graph_speed.py COCO_STYLE_DIR --captions 40000 --workers 1 2

repeats the captions of DIR, with words exchanged so that hardly any occurs twice, and joins them with drawn
regions. One JSON object per line: CPU microseconds per caption of the bare `nlp.pipe` of the same parser and
of each step of a build (`ratio` is what a build costs over the pipe, shard by shard in turn;
`ratio_to_tags_and_trees` over the pipe without the network that reads the graphs); then, for each
number of workers, the wall time of a whole build in a process of its own, captions per second once the
processes have started, and the largest resident memory of all processes together; then the efficiency, by
wall time (it needs idle processors) and by processor time (what the division itself costs, start included).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.datasets import open_dataset
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.writing import write_feature_store
from tbkin_core.graphs import build
from tbkin_core.graphs.joining import DatasetRegions
from tbkin_core.graphs.store import GraphStoreWriter
from tbkin_core.parsing.parser import CaptionParser

LABELS = ("person", "dog", "cat", "car", "chair", "cup", "bottle", "dining table", "bus", "tree")


def repeat_corpus(source: Path, target: Path, count: int) -> None:
    """Write `count` captions (JSON lines, five per image), made of those in `source`."""
    base = [caption.text.split() for caption in open_dataset(source).captions()]
    words = sorted({word for text in base for word in text})
    source_of_chance = random.Random(0)
    target.mkdir(parents=True)
    with (target / "captions.jsonl").open("w") as file:
        for number in range(count):
            text = list(base[number % len(base)])
            if number >= len(base) and text:
                for _ in range(2):
                    text[source_of_chance.randrange(len(text))] = source_of_chance.choice(words)
            file.write(json.dumps({"image": f"{number // 5:09d}.jpg", "text": " ".join(text)}) + "\n")


def drawn_features(path: Path, images: int) -> FeatureStore:
    """36 labelled regions per image."""
    chance = np.random.default_rng(0)

    def regions(image_id: ImageId) -> RegionFeatures:
        corners = chance.random((36, 2), np.float32) * 300
        boxes = np.concatenate([corners, corners + 20 + chance.random((36, 2), np.float32) * 200], axis=1)
        labels = chance.integers(0, len(LABELS), 36).astype(np.int32)
        return RegionFeatures(image_id, np.zeros((36, 1), np.float16), boxes, 640, 640, object_ids=labels)

    settings = {"extractor": "drawn", "feature_size": 1, "object_names": LABELS, "attribute_names": []}
    return write_feature_store(path, settings, (regions(number) for number in range(images)))


def measure_steps(data: Path, features: FeatureStore, out: Path, shards: int) -> dict[str, Any]:
    """CPU microseconds per caption of each step, over the first shards after one to warm up."""
    builder = build._ShardBuilder(build.Recipe(partial(CaptionParser, "builtin")), out)
    writer = GraphStoreWriter(out, {}, shards + 1)
    pipeline: Any = builder._parser._nlp  # type: ignore[attr-defined]
    dataset = open_dataset(data)
    corpus = build._Corpus(dataset.captions(), {}, DatasetRegions(dataset, features, 0.5))
    corpus.find_repeated()
    jobs = corpus.jobs(range(shards + 1))
    seconds = {"tags_and_trees": 0.0, "pipe": 0.0, "regions": 0.0, "build": 0.0}
    captions = 0
    for number in range(shards + 1):
        start = time.process_time()
        corpus.fingerprint(number)  # once more than `jobs` does, to see whether the shard is there
        job = next(jobs)
        read = time.process_time()
        with pipeline.select_pipes(disable=["scene_graph"]):
            for _ in pipeline.pipe(job.texts, batch_size=256):
                pass
        parsed = time.process_time()
        for _ in pipeline.pipe(job.texts, batch_size=256):
            pass
        piped = time.process_time()
        builder.build(job)
        built = time.process_time()
        if number:
            captions += len(job.texts)
            steps = (parsed - read, piped - parsed, read - start, built - piped)
            seconds = {name: seconds[name] + step for name, step in zip(seconds, steps, strict=True)}
    start = time.process_time()
    build._count(writer)
    seconds["count"] = (time.process_time() - start) * shards / (shards + 1)
    whole = seconds["regions"] + seconds["build"] + seconds["count"]
    return {
        "captions": captions,
        "microseconds": {name: round(1e6 * value / captions, 1) for name, value in seconds.items()},
        "captions_per_second": round(captions / whole),
        "ratio": round(whole / seconds["pipe"], 3),
        "ratio_to_tags_and_trees": round(whole / seconds["tags_and_trees"], 3),
    }


def measure_build(data: Path, features: Path, out: Path, workers: int) -> dict[str, Any]:
    """A build by the command, in a process of its own."""
    command = [sys.executable, "-m", "tbkin_cli", "build-graphs", str(data), "--features", str(features)]
    command += ["--out", str(out), "--workers", str(workers), "--quiet", "--json"]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peak, steady_since, first, shards = 0, 0.0, 0, 0
    while process.poll() is None:
        time.sleep(0.1)
        peak = max(peak, resident(process.pid))
        shards = len(list(out.glob("shard-*.safetensors"))) if out.exists() else 0
        if not steady_since and shards >= max(workers, 1):
            steady_since, first = time.perf_counter(), shards
        last = time.perf_counter()
    if process.returncode:
        raise SystemExit(process.returncode)
    assert process.stdout is not None
    captions = json.loads(process.stdout.read())["captions"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    steady = (
        (captions - first * build.SHARD_CAPTIONS) / (last - steady_since) if steady_since < last else None
    )
    return {
        "workers": workers,
        "captions": captions,
        "seconds": round(time.perf_counter() - start, 1),
        "captions_per_second": None if steady is None else round(steady),
        "cpu_microseconds": round(1e6 * seconds / captions, 1),
        "peak_rss_mib": round(peak / 2**20),
    }


def resident(pid: int) -> int:
    """Resident bytes of a process and all below it (Linux; elsewhere 0); shared pages count in each."""
    total, queue = 0, [pid]
    while queue:
        place = Path(f"/proc/{queue.pop()}")
        try:
            total += int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (place / "task").iterdir():
                queue += map(int, (task / "children").read_text().split())
        except (OSError, IndexError):
            continue  # it has ended in the meantime
    return total


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--captions", type=int, default=40_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--shards", type=int, default=4, help="measured step by step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        repeat_corpus(arguments.directory, place / "data", arguments.captions)
        shards = max(min(arguments.shards, arguments.captions // build.SHARD_CAPTIONS - 1), 1)
        features = drawn_features(place / "features", min(arguments.captions // 5, 20_000))
        print(json.dumps({"load": os.getloadavg(), "processors": os.cpu_count()}))
        print(json.dumps(measure_steps(place / "data", features, place / "steps", shards)), flush=True)
        rows = []
        for workers in arguments.workers:
            out = place / f"graphs{workers}"
            rows.append(measure_build(place / "data", place / "features", out, workers))
            print(json.dumps({**rows[-1], "load": os.getloadavg()}), flush=True)
        for row in rows[1:]:
            if row["captions_per_second"] and rows[0]["captions_per_second"]:
                scale = max(row["workers"], 1) / max(rows[0]["workers"], 1)
                efficiency = row["captions_per_second"] / rows[0]["captions_per_second"] / scale
                by_cpu = rows[0]["cpu_microseconds"] / row["cpu_microseconds"]
                result = {"efficiency": round(efficiency, 3), "efficiency_cpu": round(by_cpu, 3)}
                print(json.dumps({"workers": row["workers"], **result}))


if __name__ == "__main__":
    main()
