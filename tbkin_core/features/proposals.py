"""Region proposals: sets of segments that may be an object, scored together.

Candidates follow the bottom-up grouping of selective search (Uijlings et al. 2013) on two segmentations. A
candidate is a set of segments; everything the ranking needs (area, boundary contrast, colour homogeneity,
...) is a sum over segments, so that all candidates are scored in a few matrix products.

Letters: H, W height and width of the segmentation; N segments; C candidates; K regions; P side of a patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tbkin_core.boxes import box_area, non_maximum_suppression, pairwise_iou
from tbkin_core.features.descriptors import FRAME, grid
from tbkin_core.features.regions import Floats, Mask, Pixels
from tbkin_core.features.segmentation import (
    Segmentation,
    bit_rows,
    connected_groups,
    members_of,
    segment_drawing,
    segment_photo,
)

MAX_CANDIDATES = 1500
FILLS = 0.5  # intersection over union above which a proposal gives a known box its shape
LARGEST_PART = 0.95  # share of the image above which a proposal is the image itself


def propose(
    copy: Pixels, lab: Floats, photo_side: int, overlap: float, max_regions: int, drawings: bool = True
) -> tuple[Floats, Floats, Mask]:
    """Regions of an image that may be objects, best first, and the whole image last.

    Args:
        copy: (H, W, 3) sRGB, the working copy.
        lab: (H, W, 3) its CIELAB.
        photo_side: Long side in pixels of the smaller copy for the graph-based segmentation.
        overlap: Intersection over union above which the lesser of two proposals is dropped.
        max_regions: Most regions, the whole image included.
        drawings: Whether it may be a drawing. Of a photograph the segmentation for these finds nothing that
            the other one does not.

    Returns:
        Boxes (K, 4) xyxy as fractions of the image, objectness (K,), masks (K, P, P) on the boxes' grids.
    """
    whole = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)
    whole_mask = np.ones((1, FRAME, FRAME), bool)
    if max_regions == 1:
        return whole, np.ones(1, np.float32), whole_mask
    found = []  # of each segmentation itself, its candidates, their boxes and logits
    segmentations = _segmentations(copy, lab, photo_side, drawings)
    for seg, weights in zip(segmentations, _WEIGHTS if drawings else _WEIGHTS[1:], strict=True):
        rows = _candidates(seg)
        boxes = _boxes(seg, rows)
        logits = (_cues(seg, rows, boxes) @ weights[:-1] + weights[-1]).astype(np.float32)
        found.append((seg, rows, (boxes / _size(seg)).astype(np.float32), logits))
        if _is_explained(seg, rows, logits):
            break
    boxes, logits = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[2:])
    owner = np.concatenate([np.full(len(rows), number) for number, (_, rows, _, _) in enumerate(found)])
    offset = np.concatenate([np.arange(len(rows)) for _, rows, _, _ in found])
    part = np.flatnonzero(box_area(boxes) < LARGEST_PART)  # the whole image comes by itself
    part = part[np.argsort(-logits[part], kind="stable")]
    kept = part[non_maximum_suppression(boxes[part], overlap, max_regions - 1)]
    masks = np.zeros((len(kept), FRAME, FRAME), bool)
    for number, (seg, rows, _, _) in enumerate(found):
        mine = np.flatnonzero(owner[kept] == number)
        if len(mine):
            masks[mine] = _masks(seg, rows[offset[kept[mine]]], boxes[kept[mine]] * _size(seg))
    scores = 1.0 / (1.0 + np.exp(-logits[kept]))
    least = scores.min() if len(scores) else np.float32(1.0)
    scores = np.append(scores, least).astype(np.float32)
    return np.concatenate([boxes[kept], whole]), scores, np.concatenate([masks, whole_mask])


def masks_of_boxes(copy: Pixels, lab: Floats, photo_side: int, boxes: Floats) -> Mask:
    """Masks (K, P, P) of known boxes: of the proposal that fills a box, else the whole box.

    Args:
        copy, lab, photo_side: As for `propose`.
        boxes: (K, 4) xyxy as fractions of the image.
    """
    masks = np.ones((len(boxes), FRAME, FRAME), bool)
    best = np.full(len(boxes), FILLS, np.float32)
    for seg in _segmentations(copy, lab, photo_side):
        rows = _candidates(seg)
        overlap = pairwise_iou(boxes, _boxes(seg, rows) / _size(seg))  # (K, C)
        if overlap.shape[1]:
            found = np.flatnonzero(overlap.max(axis=1) > best)
            best[found] = overlap[found].max(axis=1)
            if len(found):
                masks[found] = _masks(seg, rows[overlap[found].argmax(axis=1)], boxes[found] * _size(seg))
        if (best > FILLS).all():
            break
    return masks


def _segmentations(
    copy: Pixels, lab: Floats, photo_side: int, drawings: bool = True
) -> Iterator[Segmentation]:
    """The two segmentations in the order of `_WEIGHTS`; the second is slow, and often not asked for."""
    if drawings:
        yield segment_drawing(copy, lab)
    yield segment_photo(copy, photo_side)


def _size(seg: Segmentation) -> Floats:
    """Width, height, width, height in pixels."""
    return np.array([seg.labels.shape[1], seg.labels.shape[0]] * 2, np.float32)


# ---- candidates ---------------------------------------------------------------------------------


def _merge_tree(seg: Segmentation, members: NDArray[np.int64]) -> list[int]:
    """Greedy bottom-up merging of neighbouring segments, every merged group once (Uijlings et al. 2013).

    Similarity: colour, weakness of the shared boundary, small size, and how well the two fill their
    common box.
    """
    count = len(members)
    if count < 3:
        return []
    total = float(seg.area.sum())
    area, lab_mean = seg.area[members].copy(), seg.lab_mean[members].copy()
    low, high = seg.low[members].copy(), seg.high[members].copy()
    length, strength = seg.length[np.ix_(members, members)], seg.strength[np.ix_(members, members)]
    groups = [1 << int(member) for member in members]
    merged: list[int] = []

    def similarity(row: int | None) -> Floats:
        rows: Any = slice(None) if row is None else slice(row, row + 1)
        colour = np.sqrt(((lab_mean[rows, None] - lab_mean[None]) ** 2).sum(axis=-1))
        edge = strength[rows] / np.maximum(length[rows], 1)
        joint = (np.maximum(high[rows, None], high[None]) - np.minimum(low[rows, None], low[None])).prod(
            axis=-1
        )
        together = area[rows, None] + area[None]
        value = (
            -colour / 50.0 - edge / 40.0 - 2.0 * together / total - (joint - together) / total * 2.0
            + 0.5 * length[rows] / np.sqrt(np.minimum(area[rows, None], area[None]))/4.0
        )  # fmt: skip
        return np.where(length[rows] > 0, value, -np.inf).astype(np.float32)

    table = similarity(None)
    for _ in range(count - 2):
        best = int(table.argmax())
        first, second = divmod(best, count)
        if not np.isfinite(table[first, second]):
            break
        share = area[second] / (area[first] + area[second])
        lab_mean[first] += share * (lab_mean[second] - lab_mean[first])
        area[first] += area[second]
        low[first] = np.minimum(low[first], low[second])
        high[first] = np.maximum(high[first], high[second])
        for matrix in (length, strength):
            matrix[first] += matrix[second]
            matrix[:, first] = matrix[first]
            matrix[second] = 0
            matrix[:, second] = 0
            matrix[first, first] = 0
        groups[first] |= groups[second]
        merged.append(groups[first])
        table[second] = -np.inf
        table[:, second] = -np.inf
        row = similarity(first)[0]
        table[first] = row
        table[:, first] = row
    return merged


def _texture_groups(seg: Segmentation, foreground: NDArray[np.int64]) -> list[int]:
    """Groups of foreground segments that stripes, dots or overlaps have cut apart or joined."""
    adjacent = seg.length > 0
    touching = adjacent | seg.near
    same = seg.colours[:, None] == seg.colours[None]
    neighbours = bit_rows(adjacent)
    (everything,) = bit_rows((seg.colours >= 0)[None])
    blobs = connected_groups(neighbours, everything)
    groups = list(blobs)
    # Stripes and dots in the colour of the background, or of the object behind.
    for joined in (touching & same, touching):
        groups += connected_groups(bit_rows(joined), everything)
    for part in bit_rows(seg.parts == np.unique(seg.parts[seg.parts > 0])[:, None]):
        groups += connected_groups(neighbours, part)
    # Stripes and dots in a colour of their own: two colours of one blob taken together, and what they leave.
    extent = np.bincount(seg.colours[foreground], seg.area[foreground])
    by_extent = np.argsort(-extent, kind="stable")
    of_colour = bit_rows(seg.colours == by_extent[extent[by_extent] > 0][:, None])
    for blob in blobs:
        parts = [part for colour in of_colour if (part := colour & blob)][:8]
        if blob.bit_count() < 3:
            continue
        for i in range(len(parts)):
            for j in range(i):
                for group in connected_groups(neighbours, parts[i] | parts[j]):
                    if group.bit_count() > 1:
                        groups.append(group)
                        groups += connected_groups(neighbours, blob & ~group)
    return groups


def _candidates(seg: Segmentation) -> Mask:
    """Sets of segments that may be an object, (C, N), no set twice.

    Where every segment is foreground (a photograph's), that is each segment and the merge tree; with a
    background also what undoes stripes, dots and overlaps within what stands before it.
    """
    count = len(seg.area)
    foreground = np.flatnonzero(seg.colours >= 0)
    groups = [1 << index for index in range(count)] + _merge_tree(seg, foreground)
    if len(foreground) < count:
        groups += _texture_groups(seg, foreground)
    return members_of(list(dict.fromkeys(groups))[:MAX_CANDIDATES], count)


def _boxes(seg: Segmentation, rows: Mask) -> Floats:
    """Bounding boxes of candidates, (C, 4) xyxy in pixels of the segmentation."""
    far = np.float32(max(seg.labels.shape))
    low = [np.where(rows, seg.low[:, axis], far).min(axis=1) for axis in (0, 1)]
    high = [np.where(rows, seg.high[:, axis], 0).max(axis=1) for axis in (0, 1)]
    return np.stack(low + high, axis=1).astype(np.float32)


def _cues(seg: Segmentation, rows: Mask, boxes: Floats) -> Floats:
    """What speaks for a candidate being a whole object, (C, 16), the columns of _WEIGHTS.

    See Alexe et al. 2012 for the cues: contrast with the surroundings, a closed boundary, one colour.
    """
    height, width = seg.labels.shape
    inside = rows.astype(np.float32)  # (C, N)
    length = inside @ seg.length  # (C, N), boundary that a segment shares with the candidate
    enclosed = ~rows & (length >= 0.999 * seg.length.sum(axis=1)) & (seg.frame == 0)
    full = inside + enclosed
    outside = 1.0 - full
    length = full @ seg.length
    boundary = (length * outside).sum(axis=1)
    frame = full @ seg.frame
    perimeter = np.maximum(boundary + frame, 1.0)
    strength = ((full @ seg.strength) * outside).sum(axis=1)
    contrast = strength / np.maximum(boundary, 1.0) / 40.0
    inner = (length * full).sum(axis=1) / 2
    inner_contrast = ((full @ seg.strength) * full).sum(axis=1) / 2 / np.maximum(inner, 1.0) / 40.0
    area = np.maximum(full @ seg.area, 1.0)
    background = (seg.colours < 0).astype(np.float32)
    on_background = (length * outside) @ background / np.maximum(boundary, 1.0)
    background_share = (full * seg.area) @ background / area
    weight = inside * seg.area
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1.0)
    mean = weight @ seg.lab_mean
    spread = np.sqrt(np.maximum(weight @ seg.lab_square - (mean**2).sum(axis=1), 0.0)) / 50.0
    # Segments of the same colour close by but left out: the candidate is likely a part of something.
    same = (seg.colours[:, None] == seg.colours[None]) & (seg.colours[:, None] >= 0) & seg.near
    same &= seg.parts[:, None] == seg.parts[None]
    left_out = (((inside @ same.astype(np.float32)) > 0) * outside) @ seg.area / area
    side = boxes[:, 2:] - boxes[:, :2]
    box_area = side.prod(axis=1)
    log_size = np.log(box_area / (height * width) + 1e-6)
    aspect = np.abs(np.log(side[:, 0] / side[:, 1]))
    return np.stack(
        [
            contrast,
            contrast * on_background,
            boundary / perimeter,
            on_background,
            background_share,
            np.minimum(inner / area, 2.0),
            inner_contrast,
            spread,
            np.minimum(left_out, 2.0),
            log_size,
            log_size**2 / 4.0,
            aspect,
            area / box_area,
            np.minimum(box_area / (perimeter / 4.0) ** 2, 3.0),
            (background.sum() > 0) * np.minimum(np.sqrt(area) / 20.0, 1.0),
            np.log1p(rows.sum(axis=1)) / 4.0,
        ],
        axis=1,
    ).astype(np.float32)


# Logistic regression of the overlap with a labelled object on the cues and a constant, one row for the colour
# segments and one for the graph-based ones; fitted to drawn scenes and to COCO train2017 in equal parts.
# fmt: off
_WEIGHTS = np.array(
    [
        [1.58, 0.7, -0.28, 0.49, -0.64, 0.01, 1.01, -0.78, -1.23, -1.37, -1.17, -2.73, 2.39, -0.62, -0.26,
         -0.51, -1.8],
        [0.62, 0, 0.49, 0, 0, 0.35, 0.75, 2.11, -0.38, -1.42, -1.14, -2.7, 0.41, -1.39, 0, -0.78, -1.9],
    ],
    np.float32,
)
# fmt: on


def _is_explained(seg: Segmentation, rows: Mask, logits: Floats) -> bool:
    """Whether likely objects on a clear background make up the picture, as in a drawing.

    The graph-based segmentation would find little more then, and takes as long as all the rest.
    """
    foreground = seg.colours >= 0
    between = seg.length[~foreground][:, foreground].sum()
    if between == 0:
        return False
    contrast = seg.strength[~foreground][:, foreground].sum() / between
    at_frame = seg.frame[foreground].sum() / between
    covered = seg.area[foreground & rows[logits > 0].any(axis=0)].sum() / seg.area[foreground].sum()
    return bool(contrast > 20.0 and at_frame < 0.02 and covered > 0.8)


# ---- masks --------------------------------------------------------------------------------------


def _masks(seg: Segmentation, members: Mask, boxes: Floats) -> Mask:
    """Masks of candidates on their grids, gaps closed and holes filled, (K, P, P)."""
    height, width = seg.labels.shape
    rows, columns, valid = grid(boxes, height, width)
    ids = seg.labels[rows[:, :, None], columns[:, None, :]]  # (K, P, P)
    mask = np.take_along_axis(members, ids.reshape(len(ids), -1), axis=1).reshape(ids.shape) & valid
    # Stripes in the colour of what lies behind leave the object in pieces: join them.
    apart = np.zeros((3, 3, 3), bool)
    apart[1] = True  # the first axis counts regions: nothing may connect across it
    pieces, _ = ndimage.label(mask, structure=apart)
    last = np.maximum.accumulate(pieces.max(axis=(1, 2)))  # labels are given out in order
    broken = np.diff(last, prepend=0) > 1
    if broken.any():
        grown = ndimage.maximum_filter(mask[broken].view(np.uint8), size=(1, 9, 9))
        mask[broken] |= ndimage.minimum_filter(grown, size=(1, 9, 9)).view(bool)
    outside, _ = ndimage.label(~mask, structure=ndimage.generate_binary_structure(3, 1) & apart)
    border = np.zeros(int(outside.max()) + 1, bool)
    for edge in (outside[:, 0], outside[:, -1], outside[:, :, 0], outside[:, :, -1]):
        border[edge] = True
    return mask | ~border[outside]
