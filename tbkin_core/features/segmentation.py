"""Segmentations of a small working copy of an image, and the sums over segments that score proposals.

`segment_drawing` separates colour classes from a background modelled on the image border, which is made for
drawings, charts and synthetic scenes; `segment_photo` is the graph-based segmentation of Felzenszwalb and
Huttenlocher (2004), made for photographs.

Letters: H, W height and width of the working copy (`copy`, sRGB (H, W, 3); `lab`, its CIELAB); N segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.sparse.csgraph import connected_components
from skimage.measure import label as label_components
from skimage.segmentation import felzenszwalb, watershed

from tbkin_core.features.regions import Floats, Mask, Pixels

REACH = 3  # pixels around a sure foreground pixel within which the raw colour decides
NECK = 0.7  # width of a neck relative to the narrower part, below which it divides
MAX_SEGMENTS = 200


@dataclass(slots=True)
class Segmentation:
    """One partition of the working copy, and the sums over segments that candidates are scored with."""

    labels: NDArray[np.int32]  # (H, W) int32, the segment of every pixel
    colours: NDArray[np.int32]  # (N,) int32, the colour class of every segment; -1 is background
    parts: NDArray[np.int32]  # (N,) int32, the part of the foreground by shape alone; 0 where there is none
    area: Floats  # (N,) pixels
    # low, high: (N, 2) corners of the bounding box, xy, `high` exclusive
    low: Floats
    high: Floats
    lab_mean: Floats  # (N, 3) mean CIELAB colour
    lab_square: Floats  # (N,) mean squared CIELAB length
    length: Floats  # (N, N) pixels of shared boundary, symmetric
    strength: Floats  # (N, N) colour contrast summed along the shared boundary, symmetric
    frame: Floats  # (N,) pixels on the border of the image
    near: Mask  # (N, N) bool, segments that come within a few pixels of each other


def working_copy(image: Pixels, side: int) -> Pixels:
    """The image with its long side at most `side`, and no side under 16 pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(16, round(width * scale)), max(16, round(height * scale)))
    if size == (width, height):
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def to_lab(image: Pixels) -> Floats:
    """CIELAB (D65) of 8-bit sRGB, (H, W, 3) float32; a table and one matrix, much faster than skimage's."""
    xyz = _LINEAR[image] @ _TO_XYZ  # relative to the white point
    root = np.where(xyz > 0.008856, np.cbrt(xyz), xyz * np.float32(7.787) + np.float32(16 / 116))
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


# Linear light of the 256 sRGB values (IEC 61966-2-1).
_VALUES = np.arange(256) / 255.0
_LINEAR = np.where(_VALUES > 0.04045, ((_VALUES + 0.055) / 1.055) ** 2.4, _VALUES / 12.92).astype(np.float32)
_TO_XYZ = (
    np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    / np.array([[0.95047], [1.0], [1.08883]])
).T.astype(np.float32)


def _median3(image: Pixels) -> Pixels:
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


def _foreground(lab: Floats, raw: Floats) -> Mask:
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

    def stands_out(values: Floats) -> Mask:
        square = ((values - surface) ** 2).sum(axis=-1)
        for centre in centres:
            square = np.minimum(square, ((values - centre) ** 2).sum(axis=-1))
        noise = float(np.sqrt(np.median(square[ring])))
        return square > max(8.0, 3.0 * noise) ** 2

    sure = stands_out(lab)
    # Smoothing eats thin outlines and the tips of corners; next to a sure pixel the raw colour decides.
    return sure | (stands_out(raw) & ndimage.binary_dilation(sure, iterations=REACH))


def _sums(groups: NDArray[np.integer], values: NDArray, count: int) -> NDArray[np.float64]:
    """Sums (count, 3) of values (M, 3) by the group (M,) that each belongs to."""
    return np.stack([np.bincount(groups, values[:, c], count) for c in range(3)], axis=1)


def _colour_classes(
    pixels: Floats, limit: int, apart: float, least: float
) -> tuple[Floats, NDArray[np.int64]]:
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
    means = _sums(inverse, pixels, len(counts)) / counts[:, None]
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
        total = _sums(nearest, means * counts[:, None], len(centres))
        keep = weight >= least * len(pixels)
        if not keep.any():
            keep = weight == weight.max()
        centres = (total[keep] / weight[keep, None]).astype(np.float32)
    distance = ((means[:, None] - centres[None]) ** 2).sum(axis=-1)
    return centres, distance.argmin(axis=1)[inverse]


def _fill_from_nearest(values: NDArray[np.int32], unknown: Mask) -> NDArray[np.int32]:
    """Give every unknown pixel the value of the nearest known one."""
    if not unknown.any() or unknown.all():
        return values
    rows, columns = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return values[rows, columns]


def _basins(foreground: Mask) -> NDArray[np.int32]:
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
    _, parts = connected_components(joined[1:, 1:], directed=False)
    return np.append(0, parts + 1).astype(np.int32)[basins]


def _colour_segments(
    lab: Floats, raw: Floats, min_area: int, max_segments: int
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


def _measured(
    labels: NDArray[np.int32], colours: NDArray[np.int32], parts: NDArray[np.int32], lab: Floats, gap: int
) -> Segmentation:
    count = len(colours)
    height, width = labels.shape
    flat = labels.ravel()
    area = np.bincount(flat, minlength=count).astype(np.float32)
    mean = _sums(flat, lab.reshape(-1, 3), count) / area[:, None]
    square = np.bincount(flat, (lab**2).sum(axis=-1).ravel(), minlength=count)
    slices = ndimage.find_objects(labels + 1, max_label=count)
    low = np.array([(s[1].start, s[0].start) for s in slices], np.float32)
    high = np.array([(s[1].stop, s[0].stop) for s in slices], np.float32)

    length = np.zeros((count, count), np.float32)
    strength = np.zeros((count, count), np.float32)
    near = np.zeros((count, count), bool)
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
        length += np.bincount(key, minlength=count * count).reshape(count, count)
        strength += np.bincount(key, contrast, minlength=count * count).reshape(count, count)
    for step_y, step_x in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for step in range(2, gap + 1, 2):
            dy, dx = step * step_y, step * step_x
            if dy >= height or abs(dx) >= width:
                continue
            first = labels[: height - dy, max(0, -dx) : width - max(0, dx)]
            second = labels[dy:, max(0, dx) : width - max(0, -dx)]
            near[first, second] = True
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return Segmentation(
        labels=labels,
        colours=colours,
        parts=parts,
        area=area,
        low=low,
        high=high,
        lab_mean=mean.astype(np.float32),
        lab_square=(square / area).astype(np.float32),
        length=length + length.T,
        strength=strength + strength.T,
        frame=np.bincount(border, minlength=count).astype(np.float32),
        near=(near | near.T) & ~np.eye(count, dtype=bool),
    )


def segment_drawing(copy: Pixels, lab: Floats) -> Segmentation:
    """Connected parts of one colour class each, before a background."""
    smooth = to_lab(_median3(_median3(copy)))
    least = max(6, int(2e-4 * copy.shape[0] * copy.shape[1]))
    labels, colours, parts = _colour_segments(smooth, lab, least, MAX_SEGMENTS)
    return _measured(labels, colours, parts, smooth, gap=6)


def segment_photo(copy: Pixels, side: int) -> Segmentation:
    """The graph-based segmentation of a copy with a long side of `side` pixels, all of it foreground."""
    small = working_copy(copy, side)
    lab = to_lab(small)
    labels = felzenszwalb(small, scale=60, sigma=0.8, min_size=20).astype(np.int32)
    nothing = np.zeros(int(labels.max()) + 1, np.int32)
    seg = _measured(labels, nothing, nothing, lab, gap=4)
    _, classes = _colour_classes(seg.lab_mean, limit=12, apart=12.0, least=0.004)
    seg.colours = classes.astype(np.int32)
    return seg


# ---- sets of segments ---------------------------------------------------------------------------


def bit_rows(matrix: Mask) -> list[int]:
    """Rows of a boolean matrix as integers, bit i for column i: sets that Python joins and compares fast."""
    return [int.from_bytes(row.tobytes(), "little") for row in np.packbits(matrix, axis=1, bitorder="little")]


def members_of(sets: list[int], count: int) -> Mask:
    """Bit sets as rows of a boolean matrix, (sets, count): the reverse of `bit_rows`."""
    size = (count + 7) // 8
    packed = np.frombuffer(b"".join(members.to_bytes(size, "little") for members in sets), np.uint8)
    return np.unpackbits(packed.reshape(-1, size), axis=1, count=count, bitorder="little").view(bool)


def connected_groups(neighbours: list[int], members: int) -> list[int]:
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
