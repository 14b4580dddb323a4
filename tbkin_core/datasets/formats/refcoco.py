"""RefCOCO, RefCOCO+ (Yu et al. 2016), RefCOCOg (Mao et al. 2016): pickled refs beside COCO instances."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tbkin_core.datasets.formats import coco
from tbkin_core.datasets.formats.base import Format, Holds, Version
from tbkin_core.datasets.reading import AnnotationFile, Source, as_id, as_text, type_name
from tbkin_core.datasets.records import Content, ImageId, RefRow
from tbkin_core.datasets.splits import normalise_split
from tbkin_core.datasets.unpickle import load_plain_pickle
from tbkin_core.errors import DataError


def read_refs(source: Source) -> Content:
    """Referred objects of a `refs(*).p`; the pickle cannot run code."""
    content = load_plain_pickle(source.file.path)
    if not isinstance(content, list):
        raise DataError(
            f"{source.file.path}: expected a list of refs, got {type_name(content)}",
            hint="the RefCOCO family's refs(unc).p, refs(umd).p and refs(google).p are lists of dicts",
        )
    rows: list[RefRow] = []
    seen: set[ImageId] = set()
    seen_sentences: set[ImageId] = set()
    for _, ref_id, subject, item in source.objects(content, "ref", "ref_id"):
        box_id, image_id = as_id(item.get("ann_id")), as_id(item.get("image_id"))
        if not isinstance(ref_id, int) or box_id is None or image_id is None:
            source.problem(subject, "lacks ref_id, ann_id or image_id (skipped)")
            continue
        if not source.admits(seen, ref_id, subject, "a ref_id"):
            continue
        sentences = []
        listed = item.get("sentences")
        for _, sent_id, _, sentence in source.objects(listed, f"sentence of {subject}", "sent_id"):
            sentence_subject = subject if sent_id is None else f"sentence {sent_id}"
            text = source.sentence(sentence_subject, as_text(sentence.get("sent")) or sentence.get("raw"))
            if not isinstance(sent_id, int) or not text:
                source.problem(subject, "has a sentence without sent_id or text (skipped)")
            elif source.admits(seen_sentences, sent_id, sentence_subject, "a sent_id"):
                sentences.append((sent_id, text))
        split = normalise_split(as_text(item.get("split")) or "all")
        if sentences:
            rows.append(RefRow(ref_id, box_id, image_id, split, tuple(sentences)))
        else:
            source.problem(subject, "has no sentences (skipped)")
    return Content(refs=rows)


def _version(file: AnnotationFile) -> Version:
    """Whose splits a refs file holds: "unc", "umd" or "google"; of another file what its name says."""
    stem = file.path.stem.lower()
    # What papers report comes first.
    order = "umd google unc" if "refcocog" in file.path.parent.name.lower() else "unc umd google"
    usual = order.split()
    named = (who for who in ("unc", "umd", "google") if who in stem)
    name = next(named, stem.removeprefix("refs").strip("()_-."))
    rank = usual.index(name) if name in usual else len(usual)
    return Version(name, rank, split_by_object=name == "google")


def _instances_of(file: AnnotationFile, files: Sequence[AnnotationFile]) -> list[AnnotationFile]:
    own = [each for each in files if each.format == INSTANCES.name and each.path.parent == file.path.parent]
    # Without its own file, the family's boxes are those of the COCO 2014 annotations under the same ids.
    return own or [each for each in files if each.format == coco.INSTANCES.name]


REFS = Format(
    name="refs",
    layout="refcoco",
    holds=Holds.EXPRESSIONS,
    read=read_refs,
    looked_for="RefCOCO refs(*).p",
    suffixes=frozenset({".p", ".pkl", ".pickle"}),
    names=re.compile(r"refs.*\.(p|pkl|pickle)"),
    listed_by=_instances_of,
    version=_version,
    noun="ref",
)
INSTANCES = replace(
    coco.INSTANCES, name="refcoco-instances", layout="refcoco", looked_for="", beside=REFS.names, content=None
)
