"""JSON lines of an image's file name and a text."""

from __future__ import annotations

import re
import sys

from tbkin_core.datasets.formats.base import Format, Holds, named_images
from tbkin_core.datasets.formats.vqa import IMAGE_KEYS, first_of
from tbkin_core.datasets.reading import Source, as_id, as_text
from tbkin_core.datasets.records import CaptionRow, Content
from tbkin_core.datasets.splits import normalise_split


def read_image_texts(source: Source) -> Content:
    """Texts of the lines `{"image": ..., "text": ...}`, with the line's number and its `split`, if any."""
    rows: list[CaptionRow] = []
    for number, item in source.json_lines():
        subject = f"line {number}"
        if not isinstance(item, dict):
            source.problem(subject, "is no JSON object (skipped)")
            continue
        value = item.get("text", item.get("caption"))
        text = source.sentence(subject, value)
        if text is None:
            source.problem(subject, f"has {'no text' if value is None else 'a text that is none'} (skipped)")
        elif not text:
            source.problem(subject, "has an empty text (skipped)")
        else:
            image = first_of(item, IMAGE_KEYS)
            image_id = as_id(image)
            name = image_id if isinstance(image_id, str) else None
            if image is not None and image_id is None:
                source.problem(subject, "has an image that is no file name (text kept)")
            given = item.get("split")
            split = normalise_split(as_text(given) or "") or None
            if given is not None and split is None:
                source.problem(subject, "has a split that is no name (the file's counts)")
            name = name if name is None else sys.intern(name)
            if item.get("box", item.get("bbox")):
                source.problem(
                    subject, "has a box (not read: expressions have image, text and box in each line)"
                )
            number_of = image_id if isinstance(image_id, int) else None
            rows.append(CaptionRow(number, text, image_id=number_of, image_name=name, split=split))
    lacking = sum(row.image_id is None and row.image_name is None for row in rows)
    if 0 < lacking < len(rows):
        source.problem("", f"{lacking} of its {len(rows)} texts name no image (texts kept)")
    return Content(named=named_images(source, rows), captions=rows)


JSON_LINES = Format(
    name="jsonl",
    holds=Holds.IMAGES | Holds.CAPTIONS,
    read=read_image_texts,
    looked_for="JSON lines of image and text",
    suffixes=frozenset({".jsonl", ".ndjson"}),
    content=lambda file: re.search(r'"(text|caption)"\s*:', file.ends) is not None,
)
