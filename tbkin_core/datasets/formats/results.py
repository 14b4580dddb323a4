"""Results of models, tbkin's own among them, as evaluation servers take them: no data to learn from."""

from __future__ import annotations

import json
import re

from tbkin_core.datasets.formats.base import Candidate, Format, Holds

# Keys of an entry, and what else may be in it: VQA, COCO's captions, REC of tbkin, detections.
_ENTRIES = (
    ({"question_id", "answer"}, {"score", "confidence", "probability"}),
    ({"image_id", "caption"}, set[str]()),
    ({"sent_id", "ref_id", "image_id", "box"}, set[str]()),
    ({"image_id", "category_id", "score"}, {"bbox", "segmentation", "keypoints", "area"}),
)


def _is_results(file: Candidate) -> bool:
    start = file.ends.lstrip()
    if start.startswith("{"):  # `results-SPLIT.json` of a fine-tuning run
        return re.match(r'\{"task": "\w+", "split": "[^"]*", "checkpoint": ', start) is not None
    first = re.match(r"\[\s*(?=\{)", start)
    if first is None:
        return False
    try:
        entry, _ = json.JSONDecoder(strict=False).raw_decode(start, first.end())
    except (ValueError, RecursionError):
        return False  # longer than what is looked at, or broken
    return any(must <= entry.keys() <= must | may for must, may in _ENTRIES)


RESULTS = Format(
    name="results",
    holds=Holds.NOTHING,
    content=_is_results,
    content_first=True,
    passed_over="results of a model",
)
