"""Karpathy's splits of COCO, Flickr8k and Flickr30k (Karpathy and Fei-Fei 2015), with the captions."""

from __future__ import annotations

import re
from typing import Any

from tbkin_core.datasets.formats.base import Format, Holds
from tbkin_core.datasets.reading import Source, as_id, as_text
from tbkin_core.datasets.records import CaptionRow, Content, ImageId, ListedImage, NamedImage
from tbkin_core.datasets.splits import normalise_split


def read_karpathy(source: Source) -> Content:
    """Images and sentences of `dataset_coco.json`, `dataset_flickr8k.json` or `dataset_flickr30k.json`.

    "restval", the part of COCO's val2014 that everyone trains on, is "train".
    """

    def without_tokens(item: dict[str, Any]) -> dict[str, Any]:
        item.pop("tokens", None)  # half of the file, and a tokenisation that no one uses today
        return item

    images: dict[ImageId, ListedImage] = {}
    named: list[NamedImage] = []
    captions: list[CaptionRow] = []
    content = source.json(without_tokens)
    seen: set[ImageId] = set()
    seen_names: set[str] = set()
    seen_sentences: set[ImageId] = set()
    for position, _, _, item in source.objects(source.items(content, "images"), "image"):
        image_id, name = as_id(item.get("cocoid")), as_text(item.get("filename"))
        number = as_id(item.get("imgid")) if image_id is None else image_id
        subject = f"image {position if number is None else number}"
        if not name:
            source.problem(subject, "has no filename (skipped)")
            continue
        directory = as_text(item.get("filepath"))
        name = f"{directory}/{name}" if directory else name
        if name in seen_names or (number is not None and number in seen):
            source.problem(subject, "is listed twice (first kept)")
            continue
        seen_names.add(name)
        if number is not None:
            seen.add(number)
        split = normalise_split(as_text(item.get("split")) or "")
        if not split:
            source.problem(subject, "has no split (counted as train)")
        split = "train" if split in ("", "restval") else split
        before = len(captions)
        for _, text_id, place, sentence in source.objects(
            item.get("sentences"), f"{subject}: sentence", "sentid"
        ):
            sentence_subject = place if text_id is None else f"sentence {text_id}"
            text = source.sentence(sentence_subject, sentence.get("raw"))
            if not text:
                source.problem(sentence_subject, "has no text (skipped)")
            elif source.admits(seen_sentences, text_id, sentence_subject, "a sentid"):
                image_name = name if image_id is None else None
                number = f"{len(images) + len(named)}:{len(captions) - before}"
                captions.append(CaptionRow(number, text, text_id, image_id, image_name, split))
        if len(captions) == before:
            source.problem(subject, "has no sentences (kept without captions)")
        if image_id is None:
            named.append(NamedImage(name, source.file.directory, split))
        else:
            images[image_id] = ListedImage(image_id, name, split, None, None, source.file.name)
    return Content(images=images, named=named, captions=captions)


KARPATHY = Format(
    name="karpathy",
    holds=Holds.IMAGES | Holds.IMAGE_SPLITS | Holds.CAPTIONS,
    read=read_karpathy,
    looked_for="Karpathy's dataset_*.json",
    names=re.compile(r"dataset_(coco|flickr8k|flickr30k)([_.-].*)?\.json"),
    content=lambda file: all(key in file.ends for key in ('"sentences"', '"raw"', '"filename"')),
    noun="sentence",
    yields=True,
    claims=True,
)
