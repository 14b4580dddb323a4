"""What a threshold sweep costs, in evaluations of the dense model.

    OMP_NUM_THREADS=1 python tests/benchmarks/sweep_cost.py --size tiny --samples 1024

draws questions over drawn region features, makes an untrained model, and sweeps n thresholds as
`tbkin threshold-sweep` does, attention measured and rows summarised, in turns with plain evaluations of the
dense model. Prints for each rule the seconds of the sweep over n times those of a dense evaluation, as the
median over the rounds: 1.00 would be n dense evaluations exactly.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.datasets.records import Question
from tbkin_core.evaluation.sweep import Evaluation, summarise
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FeatureStore
from tbkin_core.features.writing import write_feature_store
from tbkin_core.modeling import TbkinConfig, TbkinForVqa
from tbkin_core.modeling.configuration import SIZES
from tbkin_core.selection import Selection
from tbkin_core.support.devices import resolve_devices, torch_device
from tbkin_core.tasks.vqa import VqaTask
from tbkin_core.texts.tokenizer import build_tokenizer

SWEEPS = {
    "relative": [step / 10 for step in range(10)],
    "probability": [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9],
    "score": [0, -2.0, -1.0, -0.5, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0],
    "topk": [0, 1, 2, 3, 4, 6, 8, 12, 16, 24],
    "sparsemax": [1],
    "entmax15": [1],
}


def drawn(number: int, regions: int, size: int) -> RegionFeatures:
    """Features and boxes of one image."""
    chance = np.random.default_rng(number)
    corners = chance.random((regions, 2), np.float32) * 400
    boxes = np.concatenate([corners, corners + 20 + chance.random((regions, 2), np.float32) * 200], axis=1)
    features = chance.standard_normal((regions, size), np.float32).astype(np.float16)
    return RegionFeatures(number, features, boxes.astype(np.float32), 640, 640)


def evaluation(place: Path, arguments: argparse.Namespace) -> Evaluation:
    """The evaluation of a sweep, over drawn questions of 6 to 14 words."""
    chance = np.random.default_rng(0)
    words = [f"word{chr(97 + number)}" for number in range(20)]
    kinds = ("yes/no", "number", "other")
    questions = [
        Question(
            number,
            number % arguments.images,
            " ".join(chance.choice(words, chance.integers(6, 15))),
            "val",
            (f"answer {number % 7}",),
            answer_type=kinds[number % 3],
        )
        for number in range(arguments.samples)
    ]
    settings = {
        "extractor": "drawn", "feature_size": arguments.features, "object_names": [], "attribute_names": [],
    }  # fmt: skip
    images = (drawn(number, arguments.regions, arguments.features) for number in range(arguments.images))
    store: FeatureStore = write_feature_store(place / "store", settings, images)
    tokenizer = build_tokenizer([question.question for question in questions])
    model: Any = TbkinForVqa(
        TbkinConfig(
            vocab_size=tokenizer.get_vocab_size(),
            **SIZES[arguments.size],
            region_feature_size=arguments.features,
            num_answers=7,
            id2label={number: f"answer {number}" for number in range(7)},
            initializer_range=0.05,
            max_regions=arguments.regions,
        )
    ).eval()
    evaluate = Evaluation(
        VqaTask(), {0: questions}, store, torch_device(resolve_devices(arguments.devices)), arguments.batch
    )
    evaluate.use_model(model, tokenizer, 0)
    return evaluate


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--features", type=int, default=312, help="numbers per region")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--selection", nargs="*", default=["relative"], choices=list(SWEEPS))
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {rule: [] for rule in arguments.selection}
    with tempfile.TemporaryDirectory() as name:
        evaluate = evaluation(Path(name), arguments)

        def dense() -> float:
            """Seconds of a plain evaluation, as training does it after an epoch."""
            evaluate.model.tbkin.selection = Selection()
            started = time.perf_counter()
            evaluate.task.predict(evaluate.model, evaluate.split.inputs, evaluate.device, arguments.batch)
            return time.perf_counter() - started

        dense()
        for _ in range(arguments.rounds):
            for rule in arguments.selection:
                # A dense evaluation beside each threshold: on a busy machine both meet the same load.
                seconds, plain, found = 0.0, [], []
                for threshold in SWEEPS[rule]:
                    plain.append(dense())
                    started = time.perf_counter()
                    found.append(evaluate(Selection(rule, threshold)))
                    seconds += time.perf_counter() - started
                if found[0].threshold == 0:
                    started = time.perf_counter()
                    summarise(found, evaluate.samples, [entry.key for entry in found])
                    seconds += time.perf_counter() - started
                ratios[rule].append(seconds / sum(plain))
    print(f"{arguments.size}, {arguments.samples} samples, load {os.getloadavg()[0]:.1f}")
    print(f"{'':14}{'thresholds':>12}{'sweep / (n x dense)':>22}{'least':>8}{'most':>8}")
    for rule, values in ratios.items():
        middle = statistics.median(values)
        print(f"{rule:14}{len(SWEEPS[rule]):12}{middle:22.3f}{min(values):8.3f}{max(values):8.3f}")


if __name__ == "__main__":
    main()
