"""RefCOCO, RefCOCO+ (Yu et al. 2016), RefCOCOg (Mao et al. 2016), gRefCOCO (Liu et al. 2023).

Refs, pickled or as JSON, beside COCO instances; or one file in COCO's form, as MDETR has it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tbkin_core.datasets.formats import coco
from tbkin_core.datasets.formats.base import Candidate, Format, Holds, Version, set_named
from tbkin_core.datasets.formats.own_expressions import note_left_out
from tbkin_core.datasets.reading import AnnotationFile, Source, as_box, as_id, as_pixels, as_text, type_name
from tbkin_core.datasets.records import Content, ImageId, NamedImage, RefRow, Target
from tbkin_core.datasets.splits import normalise_split
from tbkin_core.datasets.unpickle import load_plain_pickle
from tbkin_core.errors import DataError


def read_refs(source: Source) -> Content:
    """Referred objects of a `refs(*).p` or `refs(*).json`; the pickle cannot run code.

    Of gRefCOCO's those with one target; the others are counted.
    """
    is_json = source.file.path.suffix.lower() == ".json"
    content = source.json() if is_json else load_plain_pickle(source.file.path)
    if not isinstance(content, list):
        raise DataError(
            f"{source.file.path}: expected a list of refs, got {type_name(content)}",
            hint="the RefCOCO family's refs(unc).p, refs(umd).p and refs(google).p are lists of dicts",
        )
    rows: list[RefRow] = []
    seen: set[ImageId] = set()
    seen_sentences: set[ImageId] = set()
    counts = {"several": 0, "none": 0}
    for _, ref_id, subject, item in source.objects(content, "ref", "ref_id"):
        targets, image_id = _targets(item), as_id(item.get("image_id"))
        if not isinstance(ref_id, int) or targets is None or image_id is None:
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
        if not sentences:
            source.problem(subject, "has no sentences (skipped)")
        elif len(targets) != 1:
            counts["several" if targets else "none"] += len(sentences)
        else:
            rows.append(RefRow(ref_id, None, image_id, split, tuple(sentences), targets[0]))
    note_left_out(source, **counts)
    return Content(refs=rows)


def _targets(item: dict[str, Any]) -> list[ImageId] | None:
    """Annotations that a ref is about; None where it does not say. gRefCOCO has a list, -1 for none."""
    given = item.get("ann_id")
    ids = [as_id(each) for each in (given if isinstance(given, list) else [given])]
    if None in ids:
        return None
    return [
        each for each in dict.fromkeys(ids) if each is not None and each != -1 and not item.get("no_target")
    ]


def read_mdetr(source: Source) -> Content:
    """Expressions of MDETR's `finetune_refcoco_train.json`: an image of COCO's form for each expression.

    Its caption is the expression, its annotations are the targets (one, but for gRefCOCO).
    """
    content = source.json()
    targets: dict[ImageId, list[dict[str, Any]]] = {}
    listed = source.items(content, "annotations")
    for _, _, subject, item in source.objects(listed, "annotation", "id"):
        sent_id = as_id(item.get("image_id"))
        if sent_id is None:
            source.problem(subject, "has no image_id (skipped)")
        else:
            targets.setdefault(sent_id, []).append(item)
    rows: list[RefRow] = []
    named: dict[str, NamedImage] = {}
    seen: set[ImageId] = set()
    counts = {"several": 0, "none": 0}
    for _, sent_id, subject, item in source.objects(source.items(content, "images"), "image", "id"):
        name, text = as_text(item.get("file_name")), source.sentence(subject, item.get("caption"))
        source_name = as_text(item.get("dataset_name")) or "ref"
        if sent_id is None or not name or not text:
            source.problem(subject, "lacks id, file_name or caption (skipped)")
        elif "ref" not in source_name.lower():
            source.problem(subject, f"is of {source_name!r}, whose captions are no expressions (skipped)")
        elif source.admits(seen, sent_id, subject):
            width, height = as_pixels(item.get("width")), as_pixels(item.get("height"))
            named.setdefault(name, NamedImage(name, source.file.directory, None))
            boxes = [box for box in targets.get(sent_id, ()) if not box.get("empty")]
            if len(boxes) != 1:
                counts["several" if boxes else "none"] += 1
                continue
            xywh, what = as_box(boxes[0].get("bbox"), width, height)
            if what:
                source.problem(subject, what)
            ref_id = as_id(boxes[0].get("original_id"))
            if xywh is not None:
                sentences = ((sent_id, text),)
                ref_id = sent_id if ref_id is None else ref_id
                target = Target(xywh, width or 0, height or 0)
                rows.append(RefRow(ref_id, target, name, source.file.split or "all", sentences))
    note_left_out(source, **counts)
    return Content(refs=rows, named=list(named.values()))


def _version(file: AnnotationFile) -> Version:
    """Whose splits a refs file holds: "unc", "umd" or "google"; of another file what its name says."""
    stem = file.path.stem.lower()
    # What papers report comes first.
    order = "umd google unc" if "refcocog" in file.path.parent.name.lower() else "unc umd google"
    usual = order.split()
    named = (who for who in ("unc", "umd", "google") if who in stem)
    name = next(named, stem.removeprefix("refs").strip("()_-."))
    rank = usual.index(name) if name in usual else len(usual)
    of_generalised = "grefcoco" if stem.startswith("gref") else ""
    return Version(name, rank, name == "google", of_generalised)


def _pickles_first(files: list[AnnotationFile]) -> list[AnnotationFile]:
    """Without the JSON that somebody made of a pickle beside it."""
    pickled = {file.path.with_suffix("") for file in files if file.path.suffix.lower() != ".json"}
    return [
        file
        for file in files
        if file.path.suffix.lower() != ".json" or file.path.with_suffix("") not in pickled
    ]


def _is_refs(file: Candidate) -> bool:
    return file.suffix == ".json" and all(key in file.ends for key in ('"ref_id"', '"ann_id"', '"sentences"'))


def _is_mdetr(file: Candidate) -> bool:
    return '"caption"' in file.ends and ('"tokens_negative"' in file.ends or '"tokens_positive"' in file.ends)


def _has_ids_alone(file: Candidate) -> bool:
    if not file.ends.lstrip().startswith("["):
        return False
    return all(f'"{key}"' in file.ends for key in ("image", "text", "ref_id")) and '"bbox"' not in file.ends


def _instances_of(file: AnnotationFile, files: Sequence[AnnotationFile]) -> list[AnnotationFile]:
    own = [each for each in files if each.format == INSTANCES.name and each.path.parent == file.path.parent]
    # Without its own file, the family's boxes are those of the COCO 2014 annotations under the same ids.
    return own or [each for each in files if each.format == coco.INSTANCES.name]


REFS = Format(
    name="refs",
    layout="refcoco",
    holds=Holds.EXPRESSIONS,
    read=read_refs,
    looked_for="RefCOCO refs(*).p or refs(*).json",
    suffixes=frozenset({".p", ".pkl", ".pickle", ".json"}),
    names=re.compile(r"g?refs(.*\.(p|pkl|pickle)|([(_.-].*)?\.json)"),
    content=_is_refs,
    prefer=_pickles_first,
    listed_by=_instances_of,
    version=_version,
    noun="ref",
)
INSTANCES = replace(
    coco.INSTANCES, name="refcoco-instances", layout="refcoco", looked_for="", beside=REFS.names, content=None
)
MDETR = Format(
    name="refs-of-mdetr",
    layout="refcoco",
    holds=Holds.IMAGES | Holds.EXPRESSIONS,
    read=read_mdetr,
    content=_is_mdetr,
    version=lambda file: set_named(file, is_part=True),
    noun="image",
)
GOOGLE = Format(
    name="google-refexp",
    holds=Holds.NOTHING,
    names=re.compile(r"google_refexp.*\.json"),
    passed_over="RefCOCOg in Google's first form: refs(google).p, refs(umd).p are read, with instances.json",
)
WITHOUT_BOXES = Format(
    name="refs-without-boxes",
    holds=Holds.NOTHING,
    content=_has_ids_alone,
    passed_over="expressions without boxes: their ref_ids are those of refs(unc).p, which is read with"
    " instances.json beside it",
)
