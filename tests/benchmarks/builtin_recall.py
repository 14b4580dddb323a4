"""Recall of the built-in extractor's proposals against labelled boxes, by number of regions.

    python tests/benchmarks/builtin_recall.py COCO_STYLE_DIR --split val2017 --regions 36 100

reads DIR/annotations/instances_SPLIT.json and DIR/SPLIT/; crowd boxes are left out. One JSON object a line:
recall at IoU 0.5 and 0.7, mean best IoU, CPU milliseconds per image (one process; set OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tbkin_core.boxes import pairwise_iou
from tbkin_core.features.extractors.builtin import BuiltinExtractor
from tbkin_core.features.pictures import load_image

LARGE_SIDE = 96  # pixels; COCO calls an object large from 96 x 96 on


def labelled_boxes(directory: Path, split: str) -> list[tuple[Path, NDArray[np.float32]]]:
    """Images that have objects, with the boxes (G, 4) xyxy of those that are not crowds."""
    instances = json.loads((directory / "annotations" / f"instances_{split}.json").read_text())
    boxes: dict[int, list[list[float]]] = {}
    for annotation in instances["annotations"]:
        if not annotation.get("iscrowd"):
            x, y, width, height = annotation["bbox"]
            boxes.setdefault(annotation["image_id"], []).append([x, y, x + width, y + height])
    return [
        (directory / split / image["file_name"], np.array(boxes[image["id"]], np.float32))
        for image in instances["images"]
        if image["id"] in boxes
    ]


def measure(images: list[tuple[Path, NDArray[np.float32]]], regions: int) -> dict[str, float | None]:
    """Recall of `regions` proposals an image over all labelled boxes."""
    extractor = BuiltinExtractor(max_regions=regions)
    best: list[NDArray[np.float32]] = []
    large: list[NDArray[np.bool_]] = []
    seconds, proposals = [], []
    for path, truth in images:
        image, width, height = load_image(path)
        start = time.process_time()
        found = extractor.extract(path.stem, image, width, height)
        seconds.append(time.process_time() - start)
        proposals.append(len(found))
        best.append(pairwise_iou(truth, found.boxes).max(axis=1))
        large.append((truth[:, 2:] - truth[:, :2]).prod(axis=1) >= LARGE_SIDE**2)
    overlap, is_large = np.concatenate(best), np.concatenate(large)
    return {
        "regions": regions,
        "images": len(images),
        "boxes": len(overlap),
        "recall_50": round(float((overlap >= 0.5).mean()), 4),
        "recall_70": round(float((overlap >= 0.7).mean()), 4),
        "recall_50_large": round(float((overlap[is_large] >= 0.5).mean()), 4) if is_large.any() else None,
        "mean_iou": round(float(overlap.mean()), 4),
        "mean_regions": round(float(np.mean(proposals)), 1),
        "cpu_ms_median": round(1000 * float(np.median(seconds)), 1),
    }


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--regions", type=int, nargs="+", default=[36, 100])
    parser.add_argument("--limit", type=int, default=None, help="only the first N images")
    arguments = parser.parse_args()
    images = labelled_boxes(arguments.directory, arguments.split)[: arguments.limit]
    for regions in arguments.regions:
        print(json.dumps(measure(images, regions)))


if __name__ == "__main__":
    main()
