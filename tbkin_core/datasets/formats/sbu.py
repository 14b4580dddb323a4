"""SBU captions (Ordonez et al. 2011): a list of captions and one of urls."""

from __future__ import annotations

import re

from tbkin_core.datasets.formats.base import Format, Holds
from tbkin_core.datasets.reading import Source
from tbkin_core.datasets.records import CaptionRow, Content


def read_sbu(source: Source) -> Content:
    """Captions with their row numbers, from 0."""
    content = source.json()
    captions, urls = source.items(content, "captions"), source.items(content, "image_urls", required=False)
    if not isinstance(content.get("image_urls"), list):
        source.problem("", "has no image_urls (captions kept)")
    elif len(urls) != len(captions):
        lacks = "url" if len(urls) < len(captions) else "caption"
        what = f"has no {lacks}: {len(captions)} captions and {len(urls)} urls (captions kept)"
        source.problem(f"row {min(len(urls), len(captions))}", what)
    content.clear()  # a million urls
    rows: list[CaptionRow] = []
    for row, value in enumerate(captions):
        text = source.sentence(f"row {row}", value)
        if text:
            rows.append(CaptionRow(row, text))
        else:
            has = "a caption that is no text" if text is None else "an empty caption"
            source.problem(f"row {row}", f"has {has} (skipped)")
    return Content(captions=rows)


SBU = Format(
    name="sbu",
    holds=Holds.CAPTIONS,
    read=read_sbu,
    looked_for="SBU JSON",
    names=re.compile(r"sbu[_-]?captions.*\.json"),
    content=lambda file: '"image_urls"' in file.ends and file.ends.lstrip().startswith("{"),
    noun="row",
    images_by_row=True,
)
