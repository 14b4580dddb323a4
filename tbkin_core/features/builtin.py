"""The built-in extractor: region proposals and descriptors from NumPy, SciPy and scikit-image, no download.

Proposals follow the bottom-up grouping of selective search (Uijlings et al. 2013) on two segmentations of
a small working copy: colour classes against a background modelled from the image border, which is made for
drawings, charts and synthetic scenes, and the graph-based segmentation of Felzenszwalb and Huttenlocher
(2004), made for photographs. A candidate is a set of segments; everything the ranking needs (area,
boundary contrast, colour homogeneity, ...) is a sum over segments, so that all candidates are scored
together in a few matrix products.

Letters: H, W height and width of the working copy; N segments; C candidates; K regions; P patch side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import label as label_components
from skimage.segmentation import felzenszwalb, watershed

from tbkin_core.boxes import pairwise_iou
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.features.regions import ImageId, RegionFeatures

# Typical sRGB colours of each name; the names are words of the Visual Genome attribute vocabulary.
COLOUR_PROTOTYPES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((225, 35, 35), (180, 20, 30), (255, 0, 0)),
    "orange": ((255, 140, 0), (240, 120, 30), (250, 160, 60)),
    "yellow": ((255, 230, 30), (235, 205, 40), (250, 240, 110)),
    "green": ((40, 160, 60), (0, 128, 0), (60, 205, 80), (20, 90, 40), (150, 200, 60), (110, 130, 60)),
    "blue": ((40, 80, 210), (0, 0, 255), (30, 50, 130), (70, 150, 230), (130, 190, 235)),
    "purple": ((130, 50, 170), (90, 40, 120), (165, 100, 200)),
    "pink": ((245, 130, 180), (255, 190, 205), (235, 80, 150)),
    "brown": ((120, 75, 40), (85, 55, 35), (150, 95, 55)),
    "black": ((15, 15, 15), (40, 40, 40)),
    "white": ((250, 250, 250), (235, 235, 235)),
    "gray": ((128, 128, 128), (90, 90, 90), (165, 165, 165), (200, 200, 200)),
    "tan": ((210, 180, 140), (190, 165, 130)),
}

VERSION = 1  # of the features; raise it with any change of their meaning
FEATURE_SIZE = 312
PATCH = 48  # samples along a side of a region's box
MARGIN = 8  # further samples on each side, the surroundings
FRAME = PATCH + 2 * MARGIN
ANGLES = 24  # directions of the radial profile
ORIENTATIONS = 6  # of gradients
COLOUR_LEVELS = 16  # steps a channel of the colour table
HUES = 12
GRAYS = 6
GRAY_WEIGHT = 0.5  # of the share of gray in the choice of a colour name
REACH = 3  # pixels around a sure foreground pixel within which the raw colour decides
NECK = 0.7  # width of a neck relative to the narrower part, below which it divides
MAX_SEGMENTS = 200
MAX_CANDIDATES = 1500
FILLS = 0.5  # intersection over union above which a proposal gives a known box its shape
LARGEST_PART = 0.95  # share of the image above which a proposal is the image itself


@dataclass(slots=True)
class _Segmentation:
    """One partition of the working copy, and the sums over segments that candidates are scored with.

    Attributes:
        labels: (H, W) int32, the segment of every pixel.
        colours: (N,) int32, the colour class of every segment; -1 is background.
        parts: (N,) int32, the part of the foreground by shape alone; 0 where there is none.
        area: (N,) pixels.
        low, high: (N, 2) corners of the bounding box, xy, `high` exclusive.
        lab_mean: (N, 3) mean CIELAB colour.
        lab_square: (N,) mean squared CIELAB length.
        length: (N, N) pixels of shared boundary, symmetric.
        strength: (N, N) colour contrast summed along the shared boundary, symmetric.
        frame: (N,) pixels on the border of the image.
        near: (N, N) bool, segments that come within a few pixels of each other.
    """

    labels: NDArray[np.int32]
    colours: NDArray[np.int32]
    parts: NDArray[np.int32]
    area: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    lab_mean: NDArray[np.float32]
    lab_square: NDArray[np.float32]
    length: NDArray[np.float32]
    strength: NDArray[np.float32]
    frame: NDArray[np.float32]
    near: NDArray[np.bool_]


# ---------------------------------------------------------------------------------------- working copy


def _working_copy(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The image with its long side at most `side`, and no side under 16 pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(16, round(width * scale)), max(16, round(height * scale)))
    if size == (width, height):
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _lab(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIELAB (D65) of 8-bit sRGB, (H, W, 3) float32; a table and one matrix, much faster than skimage's."""
    xyz = _LINEAR[image] @ _TO_XYZ  # relative to the white point
    root = np.where(xyz > 0.008856, np.cbrt(xyz), xyz * np.float32(7.787) + np.float32(16 / 116))
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def _linear_light() -> NDArray[np.float32]:
    """Linear light of the 256 sRGB values (IEC 61966-2-1)."""
    value = np.arange(256) / 255.0
    return np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92).astype(np.float32)


_LINEAR = _linear_light()
_TO_XYZ = (
    np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    / np.array([[0.95047], [1.0], [1.08883]])
).T.astype(np.float32)


def _median3(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """3 x 3 median of every channel, by a sorting network (Paeth 1990): far faster than a rank filter."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    values = [padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    for first, second in (
        (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
        (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
    ):  # fmt: skip
        low = np.minimum(values[first], values[second])
        values[second] = np.maximum(values[first], values[second])
        values[first] = low
    return values[4]


# --------------------------------------------------------------------------------------- segmentations


def _foreground(lab: NDArray[np.float32], raw: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels that stand out from a background modelled on the image border.

    The background is the nearer of a smooth surface (quadratic in x and y, fitted by iteratively
    reweighted least squares: plain and graded backgrounds) and the few colours that hold a good share
    of the border each (striped and tiled ones).

    Args:
        lab: (H, W, 3) CIELAB of the smoothed working copy.
        raw: (H, W, 3) CIELAB of the working copy itself.

    Returns:
        (H, W) bool.
    """
    height, width = lab.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)  # (H, W, 6)
    ring = np.zeros((height, width), bool)
    ring[:2] = ring[-2:] = ring[:, :2] = ring[:, -2:] = True
    border, design = lab[ring], terms[ring]  # (B, 3), (B, 6)
    coefficients = np.zeros((6, 3), np.float32)
    coefficients[0] = np.median(border, axis=0)
    for _ in range(6):
        residual = np.linalg.norm(border - design @ coefficients, axis=1)  # (B,)
        spread = max(2.5, 1.5 * float(np.median(residual)))
        weight = 1.0 / (1.0 + (residual / spread) ** 2) ** 2
        weighted = design * weight[:, None]
        ridge = 1e-3 * len(border) * np.diag([0, 1, 1, 1, 1, 1]).astype(np.float32)
        coefficients = np.linalg.solve(weighted.T @ design + ridge, weighted.T @ border).astype(np.float32)
    surface = terms @ coefficients  # (H, W, 3)
    centres, _ = _colour_classes(border, limit=6, apart=9.0, least=0.12)

    def stands_out(values: NDArray[np.float32]) -> NDArray[np.bool_]:
        square = ((values - surface) ** 2).sum(axis=-1)
        for centre in centres:
            square = np.minimum(square, ((values - centre) ** 2).sum(axis=-1))
        noise = float(np.sqrt(np.median(square[ring])))
        return square > max(8.0, 3.0 * noise) ** 2

    sure = stands_out(lab)
    # Smoothing eats thin outlines and the tips of corners; next to a sure pixel the raw colour decides.
    return sure | (stands_out(raw) & ndimage.binary_dilation(sure, iterations=REACH))


def _colour_classes(
    pixels: NDArray[np.float32], limit: int, apart: float, least: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The peaks of the colour distribution.

    Args:
        pixels: (M, 3) CIELAB.
        limit: Most classes.
        apart: Least distance of two peaks.
        least: Least share of the pixels a peak's bin and its class must hold.

    Returns:
        (n, 3) centres and the (M,) class of every pixel.
    """
    bins = np.floor(pixels / 6.0).astype(np.int64) + 32
    keys = (bins[:, 0] * 64 + bins[:, 1]) * 64 + bins[:, 2]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(inverse, pixels[:, c]) for c in range(3)], axis=1) / counts[:, None]
    chosen: list[NDArray] = []
    for index in np.argsort(-counts, kind="stable")[:200]:
        if counts[index] < 0.25 * least * len(pixels):
            break
        if all(float(((means[index] - centre) ** 2).sum()) > apart**2 for centre in chosen):
            chosen.append(means[index])
            if len(chosen) == limit:
                break
    if not chosen:
        chosen.append(means[int(np.argmax(counts))])
    centres = np.array(chosen, np.float32)
    nearest = np.zeros(len(means), np.int64)
    for _ in range(2):  # Lloyd steps over the bins, which are far fewer than the pixels
        nearest = ((means[:, None] - centres[None]) ** 2).sum(axis=-1).argmin(axis=1)
        weight = np.bincount(nearest, counts, minlength=len(centres))
        total = np.stack(
            [np.bincount(nearest, means[:, c] * counts, minlength=len(centres)) for c in range(3)], axis=1
        )
        keep = weight >= least * len(pixels)
        if not keep.any():
            keep = weight == weight.max()
        centres = (total[keep] / weight[keep, None]).astype(np.float32)
    distance = ((means[:, None] - centres[None]) ** 2).sum(axis=-1)
    return centres, distance.argmin(axis=1)[inverse]


def _fill_from_nearest(values: NDArray[np.int32], unknown: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Give every unknown pixel the value of the nearest known one."""
    if not unknown.any() or unknown.all():
        return values
    rows, columns = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return values[rows, columns]


def _basins(foreground: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Parts of the foreground that only a narrow neck joins: watershed of the distance to the background.

    Two overlapping objects of the same colour have nothing else to tell them apart.

    Returns:
        (H, W) int32, the part of each foreground pixel; 0 elsewhere, and everywhere where the foreground is
        most of the image, as in photographs.
    """
    nothing = np.zeros(foreground.shape, np.int32)
    if not 0 < foreground.mean() < 0.5:
        return nothing
    depth = ndimage.distance_transform_edt(foreground).astype(np.float32)
    peaks, count = ndimage.label((depth == ndimage.maximum_filter(depth, size=7)) & (depth > 2.0))
    if count < 2:
        return nothing
    basins = watershed(-depth, peaks, mask=foreground).astype(np.int32)
    height = ndimage.maximum(depth, basins, np.arange(count + 1)).astype(np.float32)
    saddle = np.zeros((count + 1, count + 1), np.float32)
    for before, after, low in (
        (basins[1:], basins[:-1], np.minimum(depth[1:], depth[:-1])),
        (basins[:, 1:], basins[:, :-1], np.minimum(depth[:, 1:], depth[:, :-1])),
    ):
        edge = (before != after) & (before > 0) & (after > 0)
        np.maximum.at(saddle, (before[edge], after[edge]), low[edge])
    saddle = np.maximum(saddle, saddle.T)
    joined = saddle > NECK * np.minimum(height[:, None], height[None])
    part = np.zeros(count + 1, np.int32)
    groups = _groups(_bit_rows(joined), (1 << (count + 1)) - 2)
    for index, members in enumerate(_members(groups, count + 1)):
        part[members] = index + 1
    return part[basins]


def _colour_segments(
    lab: NDArray[np.float32], raw: NDArray[np.float32], min_area: int, max_segments: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Connected parts of one colour class each, apart from the background.

    Returns:
        (H, W) segments, the (N,) colour class of each (-1: background), and the (N,) part of the foreground
        that it lies in (0: none).
    """
    foreground = _foreground(lab, raw)
    classes = np.full(lab.shape[:2], -1, np.int32)
    if foreground.any():
        centres, assigned = _colour_classes(lab[foreground], limit=12, apart=12.0, least=0.004)
        classes[foreground] = assigned
        # Pixels on an edge have a mixture of two colours; they belong to whichever object is nearer.
        known = np.zeros_like(foreground)
        known[foreground] = ((lab[foreground] - centres[assigned]) ** 2).sum(axis=-1) <= 10.0**2
        classes = np.where(foreground, _fill_from_nearest(classes, ~known), -1).astype(np.int32)
    basins = _basins(classes >= 0)
    stride = int(basins.max()) + 1
    codes = np.where(classes >= 0, classes * stride + basins, -1).astype(np.int32)
    labels = label_components(codes, background=-2, connectivity=1).astype(np.int32) - 1
    for _ in range(4):  # filling can leave new scraps, though hardly twice
        counts = np.bincount(labels.ravel())
        least = min(min_area, int(counts.max()))
        if len(counts) > max_segments:
            least = max(least, int(np.sort(counts)[-max_segments]))
        small = counts < least
        if not small.any() and len(counts) > 2 * max_segments:  # a mosaic of equal tiles
            small[max_segments:] = True
        if not small.any():
            break
        codes = _fill_from_nearest(codes, small[labels])
        labels = label_components(codes, background=-2, connectivity=1).astype(np.int32) - 1
    first = np.zeros(int(labels.max()) + 1, np.int64)
    first[labels.ravel()] = np.arange(labels.size)
    codes = codes.ravel()[first]
    return labels, np.where(codes >= 0, codes // stride, -1), np.where(codes >= 0, codes % stride, 0)


def _measure(
    labels: NDArray[np.int32],
    colours: NDArray[np.int32],
    parts: NDArray[np.int32],
    lab: NDArray[np.float32],
    gap: int,
) -> _Segmentation:
    count = len(colours)
    height, width = labels.shape
    flat = labels.ravel()
    area = np.bincount(flat, minlength=count).astype(np.float32)
    mean = np.stack([np.bincount(flat, lab[..., c].ravel(), minlength=count) for c in range(3)], axis=1)
    square = np.bincount(flat, (lab**2).sum(axis=-1).ravel(), minlength=count)
    slices = ndimage.find_objects(labels + 1, max_label=count)
    low = np.array([(s[1].start, s[0].start) for s in slices], np.float32)
    high = np.array([(s[1].stop, s[0].stop) for s in slices], np.float32)

    length = np.zeros(count * count, np.float32)
    strength = np.zeros(count * count, np.float32)
    near = np.zeros(count * count, bool)
    for axis in (0, 1):
        size = labels.shape[axis]
        before = np.take(labels, np.arange(size - 1), axis=axis).ravel()
        after = np.take(labels, np.arange(1, size), axis=axis).ravel()
        edge = np.flatnonzero(before != after)
        # Anti-aliasing and smoothing spread an edge over some pixels: the contrast is taken across three.
        left = np.take(lab, np.clip(np.arange(size - 1) - 1, 0, None), axis=axis).reshape(-1, 3)[edge]
        right = np.take(lab, np.clip(np.arange(1, size) + 1, None, size - 1), axis=axis).reshape(-1, 3)[edge]
        contrast = np.minimum(np.sqrt(((left - right) ** 2).sum(axis=1)), 40.0)
        key = before[edge].astype(np.int64) * count + after[edge]
        length += np.bincount(key, minlength=count * count)
        strength += np.bincount(key, contrast, minlength=count * count)
    for step_y, step_x in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for step in range(2, gap + 1, 2):
            dy, dx = step * step_y, step * step_x
            if dy >= height or abs(dx) >= width:
                continue
            first = labels[: height - dy, max(0, -dx) : width - max(0, dx)]
            second = labels[dy:, max(0, dx) : width - max(0, -dx)]
            near[(first.astype(np.int64) * count + second).ravel()] = True
    length_2d, strength_2d = length.reshape(count, count), strength.reshape(count, count)
    near_2d = near.reshape(count, count)
    frame = np.bincount(
        np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]), minlength=count
    ).astype(np.float32)
    return _Segmentation(
        labels=labels,
        colours=colours,
        parts=parts,
        area=area,
        low=low,
        high=high,
        lab_mean=(mean / area[:, None]).astype(np.float32),
        lab_square=(square / area).astype(np.float32),
        length=length_2d + length_2d.T,
        strength=strength_2d + strength_2d.T,
        frame=frame,
        near=(near_2d | near_2d.T) & ~np.eye(count, dtype=bool),
    )


# ------------------------------------------------------------------------------------------ candidates


def _bit_rows(matrix: NDArray[np.bool_]) -> list[int]:
    """Rows of a boolean matrix as integers, bit i for column i: sets that Python joins and compares fast."""
    return [int.from_bytes(row.tobytes(), "little") for row in np.packbits(matrix, axis=1, bitorder="little")]


def _members(sets: list[int], count: int) -> NDArray[np.bool_]:
    """Bit sets as rows of a boolean matrix, (sets, count): the reverse of `_bit_rows`."""
    size = (count + 7) // 8
    packed = np.frombuffer(b"".join(members.to_bytes(size, "little") for members in sets), np.uint8)
    return np.unpackbits(packed.reshape(-1, size), axis=1, count=count, bitorder="little").view(bool)


def _groups(neighbours: list[int], members: int) -> list[int]:
    """Connected groups of the given segments; sets of segments are bit sets."""
    groups = []
    while members:
        frontier = members & -members
        group = 0
        while frontier:
            group |= frontier
            reached = 0
            while frontier:
                lowest = frontier & -frontier
                reached |= neighbours[lowest.bit_length() - 1]
                frontier ^= lowest
            frontier = reached & members & ~group
        groups.append(group)
        members &= ~group
    return groups


def _merge_tree(seg: _Segmentation, members: NDArray[np.int64]) -> list[int]:
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

    def similarity(row: int | None) -> NDArray[np.float32]:
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


def _texture_groups(seg: _Segmentation, foreground: NDArray[np.int64]) -> list[int]:
    """Groups of foreground segments that stripes, dots or overlaps have cut apart or joined."""
    adjacent = seg.length > 0
    touching = adjacent | seg.near
    same = seg.colours[:, None] == seg.colours[None]
    neighbours = _bit_rows(adjacent)
    everything = sum(1 << int(member) for member in foreground)
    blobs = _groups(neighbours, everything)
    # Stripes and dots in the colour of the background, or of the object behind.
    groups = (
        blobs + _groups(_bit_rows(touching & same), everything) + _groups(_bit_rows(touching), everything)
    )
    for part in np.unique(seg.parts[seg.parts > 0]):
        groups += _groups(neighbours, sum(1 << int(i) for i in np.flatnonzero(seg.parts == part)))
    # Stripes and dots in a colour of their own: two colours of one blob taken together, and what they leave.
    extent = np.bincount(seg.colours[foreground], seg.area[foreground])
    by_extent = [int(colour) for colour in np.argsort(-extent, kind="stable") if extent[colour] > 0]
    of_colour = {c: sum(1 << int(i) for i in np.flatnonzero(seg.colours == c)) for c in by_extent}
    for blob in blobs:
        parts = [part for c in by_extent if (part := of_colour[c] & blob)][:8]
        if blob.bit_count() < 3:
            continue
        for i in range(len(parts)):
            for j in range(i):
                for group in _groups(neighbours, parts[i] | parts[j]):
                    if group.bit_count() > 1:
                        groups.append(group)
                        groups += _groups(neighbours, blob & ~group)
    return groups


def _candidates(seg: _Segmentation, limit: int) -> NDArray[np.bool_]:
    """Sets of segments that may be an object, (C, N), no set twice.

    Where every segment is foreground (a photograph's), that is each segment and the merge tree; with a
    background also what undoes stripes, dots and overlaps within what stands before it.
    """
    count = len(seg.area)
    foreground = np.flatnonzero(seg.colours >= 0)
    groups = [1 << index for index in range(count)] + _merge_tree(seg, foreground)
    if len(foreground) < count:
        groups += _texture_groups(seg, foreground)
    distinct = list(dict.fromkeys(groups))[:limit]
    return _members(distinct, count)


def _boxes(seg: _Segmentation, rows: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Bounding boxes of candidates, (C, 4) xyxy in pixels of the segmentation."""
    far = np.float32(max(seg.labels.shape))
    low = [np.where(rows, seg.low[:, axis], far).min(axis=1) for axis in (0, 1)]
    high = [np.where(rows, seg.high[:, axis], 0).max(axis=1) for axis in (0, 1)]
    return np.stack(low + high, axis=1).astype(np.float32)


def _cues(seg: _Segmentation, rows: NDArray[np.bool_], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
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


def _suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], overlap: float, limit: int
) -> list[int]:
    """Greedy non-maximum suppression: indices of the boxes kept, best first."""
    order = np.argsort(-scores, kind="stable")
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for position, index in enumerate(order):
        if not alive[position]:
            continue
        kept.append(int(index))
        if len(kept) == limit:
            break
        alive &= pairwise_iou(boxes[index : index + 1], boxes[order])[0] <= overlap
    return kept


# ----------------------------------------------------------------------------------------- descriptors


@dataclass(slots=True)
class _Patches:
    """K regions sampled on a grid: PATCH x PATCH points in the box, MARGIN more around it.

    Attributes:
        rows, columns: (K, P) pixel indices of the grid.
        mask: (K, P, P) bool, the region itself, holes filled.
        valid: (K, P, P) bool, within the image.
        sides: (K, 2) width and height of the boxes in pixels.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    mask: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    sides: NDArray[np.float32]

    def sample(self, plane: NDArray) -> NDArray:
        """Values of an (H, W) or (H, W, C) array at the grid, (K, P, P) or (K, P, P, C)."""
        return plane[self.rows[:, :, None], self.columns[:, None, :]]


def _grid(boxes: NDArray[np.float32], height: int, width: int) -> tuple[NDArray, NDArray, NDArray]:
    """Pixel rows (K, P), columns (K, P) and validity (K, P, P) of the grids of boxes in pixels."""
    steps = (np.arange(FRAME, dtype=np.float32) - MARGIN + 0.5) / PATCH
    columns = np.floor(boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])).astype(np.int64)
    rows = np.floor(boxes[:, 1:2] + steps * (boxes[:, 3:4] - boxes[:, 1:2])).astype(np.int64)
    valid = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1), valid


def _masks(seg: _Segmentation, members: NDArray[np.bool_], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Masks of candidates on their grids, gaps closed and holes filled, (K, P, P)."""
    height, width = seg.labels.shape
    rows, columns, valid = _grid(boxes, height, width)
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


def _colour_table() -> NDArray[np.float32]:
    """Soft colour codes of COLOUR_LEVELS ** 3 colours: names, hues, grays; (levels ** 3, 12 + 12 + 6)."""
    levels = (np.arange(COLOUR_LEVELS) + 0.5) / COLOUR_LEVELS
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = rgb2lab(rgb)
    near = []
    for prototypes in COLOUR_PROTOTYPES.values():
        known = rgb2lab(np.array(prototypes, np.float64) / 255.0)
        near.append(((lab[:, None] - known[None]) ** 2).sum(axis=-1).min(axis=1))
    square = np.stack(near, axis=1)
    names = np.exp(-(square - square.min(axis=1, keepdims=True)) / (2 * 8.0**2))
    names /= names.sum(axis=1, keepdims=True)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    coloured = np.clip((chroma - 8.0) / 12.0, 0.0, 1.0)[:, None]
    hue = (np.arctan2(lab[:, 2], lab[:, 1]) / (2 * np.pi) * HUES)[:, None] - np.arange(HUES)
    hues = np.clip(1.0 - np.abs((hue + HUES / 2) % HUES - HUES / 2), 0.0, 1.0) * coloured
    gray = lab[:, :1] / 100.0 * (GRAYS - 1) - np.arange(GRAYS)
    grays = np.clip(1.0 - np.abs(gray), 0.0, 1.0) * (1.0 - coloured)
    return np.concatenate([names, hues, grays], axis=1).astype(np.float32)


def _mean_over(values: NDArray, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean over the mask of each region: (K, P, P[, C]) and (K, P, P) to (K[, C])."""
    count = np.maximum(mask.sum(axis=(1, 2)), 1).astype(np.float32)
    if values.ndim == 3:
        return (values * mask).sum(axis=(1, 2), dtype=np.float32) / count
    return np.einsum("kyxc,kyx->kc", values, mask.astype(np.float32), optimize=True) / count[:, None]


def _colour_block(
    image: NDArray[np.uint8], lab: NDArray[np.float32], patches: _Patches, table: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colour of the region and of its surroundings, (K, 54), and the shares of the names, (K, 12)."""
    coarse = slice(None, None, 2)  # every other sample is plenty for a mean
    patches = _Patches(
        patches.rows[:, coarse],
        patches.columns[:, coarse],
        patches.mask[:, coarse, coarse],
        patches.valid[:, coarse, coarse],
        patches.sides,
    )
    levels = (image.astype(np.int32) * COLOUR_LEVELS) >> 8
    codes = patches.sample((levels[..., 0] * COLOUR_LEVELS + levels[..., 1]) * COLOUR_LEVELS + levels[..., 2])
    size = len(table)
    regions = np.arange(len(codes))[:, None, None] * size

    def shares(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        counts = np.bincount((codes + regions)[mask], minlength=len(codes) * size).reshape(len(codes), size)
        return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32) @ table

    around = patches.valid & ~patches.mask
    inner, outer = shares(patches.mask), shares(around)
    values = patches.sample(lab / np.float32(100.0))  # (K, P, P, 3)
    mean = _mean_over(values, patches.mask)
    square = _mean_over(values**2, patches.mask)
    spread = np.sqrt(np.maximum(square - mean**2, 0.0))
    mean_around = _mean_over(values, around)
    names = len(COLOUR_PROTOTYPES)
    block = [np.sqrt(inner), mean, 4.0 * spread, np.sqrt(outer[:, :names]), mean_around, mean - mean_around]
    return np.concatenate(block, axis=1), inner[:, :names]


def _shape_block(patches: _Patches) -> NDArray[np.float32]:
    """Silhouette grid, radial profile and its spectrum, Hu moments, and scalar shape measures, (K, 120)."""
    inner = patches.mask[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    count = len(inner)
    cell = PATCH // 8
    silhouette = inner.reshape(count, 8, cell, 8, cell).mean(axis=(2, 4), dtype=np.float32)
    grid = ((np.arange(PATCH) + 0.5) / PATCH - 0.5).astype(np.float32)
    # Unit of length: the geometric mean of the sides, so that a tall box is not seen as a square one.
    scale = patches.sides / np.sqrt(patches.sides.prod(axis=1, keepdims=True))  # (K, 2)
    x, y = grid[None] * scale[:, :1], grid[None] * scale[:, 1:]  # (K, PATCH)
    weight = inner.astype(np.float32)
    total = np.maximum(weight.sum(axis=(1, 2)), 1.0)
    area = total / PATCH**2
    centre_x = np.einsum("kyx,kx->k", weight, x) / total
    centre_y = np.einsum("kyx,ky->k", weight, y) / total
    dx, dy = x - centre_x[:, None], y - centre_y[:, None]
    powers_x = np.stack([dx**p for p in range(4)], axis=1)  # (K, 4, PATCH)
    powers_y = np.stack([dy**p for p in range(4)], axis=1)
    moments = np.einsum("kyx,kpx,kqy->kpq", weight, powers_x, powers_y, optimize=True)
    moments = moments / (PATCH**2 * area[:, None, None] ** ((np.add.outer(range(4), range(4))) / 2 + 1))
    hu = _hu_moments(moments)
    log_hu = np.sign(hu) * np.log1p(np.abs(hu) * 1e4) / 4.0

    angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)  # (A, 2)
    radii = ((np.arange(24) + 0.5) / 24).astype(np.float32)
    reach = 0.75 * np.linalg.norm(scale, axis=1)  # (K,), longer than any radius
    centre = np.stack([centre_x, centre_y], axis=1)
    points = centre[:, None, None] + direction[None, :, None] * (radii * reach[:, None])[:, None, :, None]
    index = np.floor((points / scale[:, None, None] + 0.5) * PATCH).astype(np.int64)  # (K, A, R, 2)
    within = ((index >= 0) & (index < PATCH)).all(axis=-1)
    index = np.clip(index, 0, PATCH - 1)
    hit = within & inner[np.arange(count)[:, None, None], index[..., 1], index[..., 0]]
    profile = hit.mean(axis=2, dtype=np.float32) * reach[:, None]  # (K, A), length of mask along each ray
    farthest = (hit * radii).max(axis=2) * reach[:, None]
    spectrum = np.abs(np.fft.rfft(profile / np.maximum(profile.mean(axis=1, keepdims=True), 1e-3), axis=1))
    far_spectrum = np.abs(
        np.fft.rfft(farthest / np.maximum(farthest.mean(axis=1, keepdims=True), 1e-3), axis=1)
    )

    # Area of the convex hull, from the reach of the mask in 16 directions; rows give all extreme points.
    first, last = inner.argmax(axis=2), PATCH - inner[:, :, ::-1].argmax(axis=2)
    filled = np.asarray(inner.any(axis=2))
    turn = 2 * np.pi * np.arange(16) / 16
    left = (first / PATCH - 0.5) * scale[:, :1]
    right = (last / PATCH - 0.5) * scale[:, :1]
    support = np.full((count, 16), -np.inf, np.float32)
    for side_x in (left, right):
        for side_y in (y - 0.5 * scale[:, 1:] / PATCH, y + 0.5 * scale[:, 1:] / PATCH):
            reached = side_x[:, :, None] * np.cos(turn) + side_y[:, :, None] * np.sin(turn)
            support = np.maximum(support, np.where(filled[:, :, None], reached, -np.inf).max(axis=1))
    support = np.where(np.isfinite(support), support, 0.0)
    following = np.roll(support, -1, axis=1)
    step = 2 * np.pi / 16
    corner_x = (support * np.sin(turn + step) - following * np.sin(turn)) / np.sin(step)
    corner_y = (following * np.cos(turn) - support * np.cos(turn + step)) / np.sin(step)
    hull = 0.5 * np.abs(
        (corner_x * np.roll(corner_y, -1, 1) - corner_y * np.roll(corner_x, -1, 1)).sum(axis=1)
    )
    solidity = np.clip(area / np.maximum(hull, 1e-6), 0.0, 1.0)
    edge_x = (inner[:, :, 1:] != inner[:, :, :-1]).sum(axis=(1, 2)) + inner[:, :, [0, -1]].sum(axis=(1, 2))
    edge_y = (inner[:, 1:] != inner[:, :-1]).sum(axis=(1, 2)) + inner[:, [0, -1]].sum(axis=(1, 2))
    perimeter = (edge_x * scale[:, 1] + edge_y * scale[:, 0]) / PATCH  # city-block length
    xx, yy, xy = moments[:, 2, 0], moments[:, 0, 2], moments[:, 1, 1]
    root = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    small, large = np.maximum((xx + yy - root) / 2, 0), np.maximum((xx + yy + root) / 2, 1e-9)
    scalars = [
        area,
        solidity,
        np.sqrt(1.0 - np.minimum(small / large, 1.0)),
        np.log(patches.sides[:, 0] / patches.sides[:, 1]),
        np.log(perimeter**2 / np.maximum(area, 1e-3) / 16.0),
        centre_x / scale[:, 0] * 4,
        centre_y / scale[:, 1] * 4,
        (xx - yy) / (xx + yy + 1e-9),
        2 * xy / (xx + yy + 1e-9),
    ]
    blocks = [
        silhouette.reshape(count, 64),
        profile * 2.0,
        spectrum[:, 1:9] / 4.0,
        far_spectrum[:, 1:9] / 4.0,
        log_hu,
        np.stack(scalars, axis=1),
    ]
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _hu_moments(moments: NDArray[np.floating]) -> NDArray[np.floating]:
    """The seven invariants of Hu (1962) from normalised central moments (K, 4, 4), (K, 7)."""
    n20, n02, n11 = moments[:, 2, 0], moments[:, 0, 2], moments[:, 1, 1]
    n30, n03, n21, n12 = moments[:, 3, 0], moments[:, 0, 3], moments[:, 2, 1], moments[:, 1, 2]
    a, b = n30 + n12, n21 + n03
    c, d = n30 - 3 * n12, 3 * n21 - n03
    return np.stack(
        [
            n20 + n02,
            (n20 - n02) ** 2 + 4 * n11**2,
            c**2 + d**2,
            a**2 + b**2,
            c * a * (a**2 - 3 * b**2) + d * b * (3 * a**2 - b**2),
            (n20 - n02) * (a**2 - b**2) + 4 * n11 * a * b,
            d * a * (a**2 - 3 * b**2) - c * b * (3 * a**2 - b**2),
        ],
        axis=1,
    )


def _texture_block(lab: NDArray[np.float32], patches: _Patches) -> NDArray[np.float32]:
    """Gradient histograms, local binary patterns and the spectrum of the inside, (K, 131)."""
    light = np.ascontiguousarray(lab[..., 0]) / np.float32(100.0)
    grad_y, grad_x = np.gradient(light)
    magnitude = np.hypot(grad_x, grad_y)
    angle = np.arctan2(grad_y, grad_x) % np.float32(np.pi)
    orientation = np.minimum((angle / np.pi * ORIENTATIONS).astype(np.int64), ORIENTATIONS - 1)
    count = len(patches.mask)
    core = slice(MARGIN, -MARGIN)
    mask = patches.mask[:, core, core]
    size = patches.sample(magnitude)[:, core, core] * patches.valid[:, core, core]
    bins = patches.sample(orientation)[:, core, core]
    cell = np.arange(PATCH) // (PATCH // 4)
    key = (
        (np.arange(count)[:, None, None] * 16 + cell[:, None] * 4 + cell[None]) * ORIENTATIONS + bins
    ).ravel()
    hog = np.bincount(key, size.ravel(), minlength=count * 16 * ORIENTATIONS).reshape(count, -1)
    hog = np.sqrt(hog / (hog.sum(axis=1, keepdims=True) + 1e-3)).astype(np.float32) * 2.0

    # The outline must not count as texture: the inside is the mask without its rim.
    inside = ndimage.minimum_filter(mask.view(np.uint8), size=(1, 9, 9), mode="constant").view(bool)
    empty = ~inside.any(axis=(1, 2))
    inside[empty] = mask[empty]
    total = np.maximum(inside.sum(axis=(1, 2)), 1).astype(np.float32)
    padded = np.pad(light, 1, mode="edge")
    height, width = light.shape
    pattern = np.zeros(light.shape, np.int64)
    around = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    for bit, (dy, dx) in enumerate(around):
        pattern |= (padded[dy : dy + height, dx : dx + width] > light + np.float32(0.03)).astype(
            np.int64
        ) << bit
    codes = patches.sample(_PATTERNS[pattern])[:, core, core]
    key = (np.arange(count)[:, None, None] * 10 + codes)[inside]
    binary = np.sqrt(np.bincount(key, minlength=count * 10).reshape(count, 10) / total[:, None])
    strength = size * inside
    sum_strength = strength.sum(axis=(1, 2))
    double = np.maximum(magnitude, 1e-6)  # of the angle: cos 2a = (gx^2 - gy^2) / m^2
    tilt = np.stack([(grad_x**2 - grad_y**2) / double, 2 * grad_x * grad_y / double], axis=-1)
    tilt = _mean_over(patches.sample(tilt)[:, core, core], inside) * (total / (sum_strength + 1e-3))[:, None]
    along, across = tilt[:, 0], tilt[:, 1]
    key = (np.arange(count)[:, None, None] * ORIENTATIONS + bins).ravel()
    turned = np.bincount(key, strength.ravel(), minlength=count * ORIENTATIONS).reshape(count, -1)
    turned = np.sort(turned / (turned.sum(axis=1, keepdims=True) + 1e-3), axis=1)
    density = ((strength > 0.06).sum(axis=(1, 2))) / total

    # Stripes and dots as energy by frequency and direction, of the light inside (Haralick's wedge and ring).
    values = patches.sample(light)[:, core, core]
    mean = (values * inside).sum(axis=(1, 2)) / total
    centred = (values - mean[:, None, None]) * inside
    square = centred**2
    variance = square.sum(axis=(1, 2)) / total
    transform = np.fft.rfft2(centred)
    power = transform.real**2 + transform.imag**2  # (K, PATCH, PATCH // 2 + 1)
    wedges = power.reshape(count, -1) @ _SPECTRUM_BINS
    wedges = wedges / (wedges.sum(axis=1, keepdims=True) + 1e-2)
    sorted_wedges = np.sort(wedges[:, 4:].reshape(count, 3, 8), axis=2).mean(axis=1)
    third = (square * centred).sum(axis=(1, 2)) / total / np.maximum(variance, 1e-4) ** 1.5
    fourth = (square**2).sum(axis=(1, 2)) / total / np.maximum(variance, 1e-4) ** 2
    scalars = [
        density * 2,
        np.hypot(along, across),
        along,
        across,
        np.sqrt(variance) * 4,
        np.arcsinh(third),
        np.log1p(fourth) / 2,
    ]
    blocks = [hog, binary, np.stack(scalars, axis=1), turned * 2, np.sqrt(wedges[:, :4]), sorted_wedges * 2]
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _uniform_patterns() -> NDArray[np.int64]:
    """Rotation-invariant uniform class of each of the 256 binary patterns (Ojala et al. 2002)."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9).astype(np.int64)


def _spectrum_bins() -> NDArray[np.float32]:
    """Rings and wedges of the half spectrum of a patch, (PATCH * (PATCH // 2 + 1), 4 + 24)."""
    frequency_y = np.fft.fftfreq(PATCH, 1 / PATCH)[:, None]
    frequency_x = np.arange(PATCH // 2 + 1)[None]
    radius = np.hypot(frequency_y, frequency_x)
    ring = np.digitize(radius, [1.5, 3.5, 7.5])
    wedge = np.minimum(((np.arctan2(frequency_y, frequency_x) / np.pi + 0.5) * 8).astype(int), 7)
    bins = np.zeros((*radius.shape, 28), np.float32)
    for index in range(4):
        bins[..., index] = ring == index
    for index in range(24):
        bins[..., 4 + index] = (ring == 1 + index // 8) & (wedge == index % 8)
    bins[0, 0] = 0
    return bins.reshape(-1, 28)


_PATTERNS = _uniform_patterns()
_SPECTRUM_BINS = _spectrum_bins()


# ------------------------------------------------------------------------------------------- extractor


class BuiltinExtractor:
    """Regions and descriptors of one image; deterministic, without state, fit for worker processes.

    Args:
        max_regions: Most regions of an image, the whole image included.
        working_side: Long side of the working copy in pixels.
        photo_side: Long side of the smaller copy for the graph-based segmentation.
        overlap: Intersection over union from which the lesser of two proposals is dropped.

    Raises:
        ConfigError: A setting is out of range.
    """

    def __init__(
        self,
        max_regions: int = 36,
        working_side: int = 256,
        photo_side: int = 160,
        overlap: float = 0.7,
    ) -> None:
        if max_regions < 1:
            raise ConfigError(
                f"max_regions must be at least 1, got {max_regions}", hint="36 is the usual choice"
            )
        if not 64 <= working_side <= 1024 or not 32 <= photo_side <= working_side:
            raise ConfigError(
                f"working_side must be 64 to 1024 and photo_side 32 to working_side, "
                f"got {working_side} and {photo_side}"
            )
        if not 0.0 < overlap <= 1.0:
            raise ConfigError(f"overlap must be above 0 and at most 1, got {overlap}")
        self.max_regions = max_regions
        self.working_side = working_side
        self.photo_side = photo_side
        self.overlap = overlap
        self._table = _colour_table()

    @property
    def feature_size(self) -> int:
        """D, the length of a region's vector."""
        return FEATURE_SIZE

    @property
    def object_names(self) -> list[str]:
        """Names that `object_ids` index: none, for the proposals have no class."""
        return []

    @property
    def attribute_names(self) -> list[str]:
        """Names that `attribute_ids` index: colours, words of the Visual Genome attribute vocabulary."""
        return list(COLOUR_PROTOTYPES)

    def settings(self) -> dict[str, Any]:
        """What made the features, for the store's provenance; plain JSON values."""
        return {
            "extractor": "builtin",
            "version": VERSION,
            "max_regions": self.max_regions,
            "working_side": self.working_side,
            "photo_side": self.photo_side,
            "overlap": self.overlap,
        }

    def extract(
        self, image_id: ImageId, image: NDArray[np.uint8], original_width: int, original_height: int
    ) -> RegionFeatures:
        """Propose regions and describe them.

        Args:
            image_id: Key of the image, passed through.
            image: (H, W, 3) uint8 RGB, at any scale.
            original_width: Width in pixels that the boxes refer to.
            original_height: Likewise the height.

        Returns:
            1 to `max_regions` regions, best first, the whole image last. `object_ids` are -1 and
            `object_scores` the objectness; `attribute_ids` and `attribute_scores` the dominant colour name
            and its share of the region.

        Raises:
            DataError: The array is not an 8-bit RGB image or has no pixels.
        """
        copy, lab = self._prepared(image_id, image, original_width, original_height)
        boxes, scores, masks = self._propose(copy, lab)  # boxes relative to the image
        return self._described(image_id, copy, lab, boxes, scores, masks, original_width, original_height)

    def describe(
        self,
        image_id: ImageId,
        image: NDArray[np.uint8],
        original_width: int,
        original_height: int,
        boxes: NDArray[np.float32],
    ) -> RegionFeatures:
        """Describe regions whose boxes are known, as `extract` describes its own.

        A box takes the shape of the proposal that fills it, where one does; else it is described as a whole.

        Args:
            image_id, image, original_width, original_height: As for `extract`.
            boxes: (K, 4) xyxy in pixels of the full image, K > 0, each within the image and with an area.

        Returns:
            The K regions in the order given; `object_scores` are 1.

        Raises:
            DataError: As `extract`.
        """
        copy, lab = self._prepared(image_id, image, original_width, original_height)
        relative = (boxes / np.array([original_width, original_height] * 2, np.float32)).astype(np.float32)
        masks = np.ones((len(boxes), FRAME, FRAME), bool)
        best = np.full(len(boxes), FILLS, np.float32)
        for segment in (self._segment_drawing, self._segment_photo):
            seg = segment(copy, lab)
            rows = _candidates(seg, MAX_CANDIDATES)
            size = np.array([seg.labels.shape[1], seg.labels.shape[0]] * 2, np.float32)
            overlap = pairwise_iou(relative, _boxes(seg, rows) / size)  # (K, C)
            if overlap.shape[1]:
                found = np.flatnonzero(overlap.max(axis=1) > best)
                best[found] = overlap[found].max(axis=1)
                if len(found):
                    masks[found] = _masks(seg, rows[overlap[found].argmax(axis=1)], relative[found] * size)
            if (best > FILLS).all():
                break
        scores = np.ones(len(boxes), np.float32)
        return self._described(image_id, copy, lab, relative, scores, masks, original_width, original_height)

    def _prepared(
        self, image_id: ImageId, image: NDArray[np.uint8], original_width: int, original_height: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The working copy of a picture and its colours in CIELAB."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise DataError(
                f"image {image_id}: expected a uint8 array (H, W, 3), got {image.dtype} {image.shape}",
                hint="read the file with tbkin_core.features.pictures.load_image",
            )
        if original_width < 1 or original_height < 1:
            raise DataError(
                f"image {image_id}: expected a positive size, got {original_width} x {original_height}"
            )
        copy = _working_copy(image, self.working_side)
        return copy, _lab(copy)

    def _described(
        self,
        image_id: ImageId,
        copy: NDArray[np.uint8],
        lab: NDArray[np.float32],
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        masks: NDArray[np.bool_],
        original_width: int,
        original_height: int,
    ) -> RegionFeatures:
        """The descriptors of boxes (K, 4) relative to the image, each with a mask on its grid."""
        height, width = copy.shape[:2]
        scale = np.array([width, height, width, height], np.float32)
        rows, columns, valid = _grid(boxes * scale, height, width)
        sides = (boxes[:, 2:] - boxes[:, :2]) * np.array([original_width, original_height], np.float32)
        patches = _Patches(rows, columns, masks & valid, valid, sides)
        colour, names = _colour_block(copy, lab, patches, self._table)
        where = np.concatenate([boxes, (boxes[:, 2:] - boxes[:, :2]), np.sqrt(_area(boxes))[:, None]], axis=1)
        features = np.concatenate(
            [colour, _shape_block(patches), _texture_block(lab, patches), where], axis=1
        ).astype(np.float32)
        limit = np.array([original_width, original_height] * 2, np.float32)
        # Where black meets white the blend is gray: gray must win clearly to be the name.
        named = np.where(np.array(self.attribute_names) == "gray", GRAY_WEIGHT * names, names).argmax(axis=1)
        return RegionFeatures(
            image_id=image_id,
            features=np.clip(features, -8.0, 8.0),
            boxes=np.clip(boxes * limit, 0, limit).astype(np.float32),
            image_width=original_width,
            image_height=original_height,
            object_ids=np.full(len(boxes), -1, np.int32),
            object_scores=scores.astype(np.float32),
            attribute_ids=named.astype(np.int32),
            attribute_scores=np.clip(names[np.arange(len(names)), named], 0.0, 1.0).astype(np.float32),
        )

    def _propose(
        self, copy: NDArray[np.uint8], lab: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Boxes (K, 4) relative to the image, objectness (K,), masks on the boxes' grids (K, P, P)."""
        segmentations: list[_Segmentation] = []
        found: list[tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]] = []
        for segment in (self._segment_drawing, self._segment_photo) if self.max_regions > 1 else ():
            seg = segment(copy, lab)
            rows = _candidates(seg, MAX_CANDIDATES)
            boxes = _boxes(seg, rows)
            weights = _WEIGHTS[len(found)]
            logits = (_cues(seg, rows, boxes) @ weights[:-1] + weights[-1]).astype(np.float32)
            height, width = seg.labels.shape
            relative = (boxes / np.array([width, height] * 2, np.float32)).astype(np.float32)
            segmentations.append(seg)
            found.append((rows, relative, logits))
            if _is_explained(seg, rows, logits):
                break
        whole = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)
        whole_mask = np.ones((1, FRAME, FRAME), bool)
        if not found:
            return whole, np.ones(1, np.float32), whole_mask
        boxes = np.concatenate([f[1] for f in found])
        logits = np.concatenate([f[2] for f in found])
        owner = np.concatenate([np.full(len(f[0]), source) for source, f in enumerate(found)])
        offset = np.concatenate([np.arange(len(f[0])) for f in found])
        part = np.flatnonzero(_area(boxes) < LARGEST_PART)  # the whole image comes by itself
        order = _suppress(boxes[part], logits[part], self.overlap, self.max_regions - 1)
        kept = part[order]
        masks = np.zeros((len(kept), FRAME, FRAME), bool)
        for source, (rows, _, _) in enumerate(found):
            mine = np.flatnonzero(owner[kept] == source)
            if len(mine):
                seg = segmentations[source]
                size = np.array([seg.labels.shape[1], seg.labels.shape[0]] * 2, np.float32)
                masks[mine] = _masks(seg, rows[offset[kept[mine]]], boxes[kept[mine]] * size)
        scores = 1.0 / (1.0 + np.exp(-logits[kept]))
        least = scores.min() if len(scores) else np.float32(1.0)
        return (
            np.concatenate([boxes[kept], whole]),
            np.append(scores, least).astype(np.float32),
            np.concatenate([masks, whole_mask]),
        )

    def _segment_drawing(self, copy: NDArray[np.uint8], lab: NDArray[np.float32]) -> _Segmentation:
        smooth = _lab(_median3(_median3(copy)))
        least = max(6, int(2e-4 * copy.shape[0] * copy.shape[1]))
        labels, colours, parts = _colour_segments(smooth, lab, least, MAX_SEGMENTS)
        return _measure(labels, colours, parts, smooth, gap=6)

    def _segment_photo(self, copy: NDArray[np.uint8], _: NDArray[np.float32]) -> _Segmentation:
        small = _working_copy(copy, self.photo_side)
        lab = _lab(small)
        labels = felzenszwalb(small, scale=60, sigma=0.8, min_size=20).astype(np.int32)
        count = np.bincount(labels.ravel())
        mean = np.stack([np.bincount(labels.ravel(), lab[..., c].ravel()) for c in range(3)], axis=1)
        _, classes = _colour_classes((mean / count[:, None]).astype(np.float32), 12, 12.0, 0.004)
        parts = np.zeros(len(classes), np.int32)
        return _measure(labels, classes.astype(np.int32), parts, lab, gap=4)


def _is_explained(seg: _Segmentation, rows: NDArray[np.bool_], logits: NDArray[np.float32]) -> bool:
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


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float32)
