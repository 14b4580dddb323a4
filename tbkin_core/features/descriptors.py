"""Descriptors of regions: colour, shape, texture and place in 312 numbers, sampled on a grid over each box.

Letters: H, W height and width of the working copy; K regions; P side of a patch, FRAME.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import moments_hu

from tbkin_core.boxes import box_area
from tbkin_core.features.regions import Floats, Mask, Pixels

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

FEATURE_SIZE = 312
PATCH = 48  # samples along a side of a region's box
MARGIN = 8  # further samples on each side, the surroundings
FRAME = PATCH + 2 * MARGIN
ANGLES = 24  # directions of the radial profile
ORIENTATIONS = 6  # of gradients
COLOUR_LEVELS = 16  # steps per channel of the colour table
HUES = 12
GRAYS = 6


def described(copy: Pixels, lab: Floats, boxes: Floats, masks: Mask, size: Floats) -> tuple[Floats, Floats]:
    """Descriptors of boxes, each with a mask on its grid.

    Args:
        copy: (H, W, 3) sRGB.
        lab: (H, W, 3) its CIELAB.
        boxes: (K, 4) xyxy as fractions of the image.
        masks: (K, P, P) the regions on the grids of their boxes, holes filled.
        size: (2,) width and height of the image in pixels.

    Returns:
        (K, FEATURE_SIZE) vectors within -8 and 8, and the (K, 12) shares of the colour names.
    """
    patches = _patches(copy, boxes, masks, size)
    colour, names = _colour_block(copy, lab, patches)
    sides = boxes[:, 2:] - boxes[:, :2]
    place = np.concatenate([boxes, sides, np.sqrt(box_area(boxes))[:, None]], axis=1)
    features = np.concatenate(
        [colour, _shape_block(patches), _texture_block(lab, patches), place], axis=1
    ).astype(np.float32)
    return np.clip(features, -8.0, 8.0), names


def colour_shares(copy: Pixels, lab: Floats, boxes: Floats, masks: Mask, size: Floats) -> Floats:
    """The shares of the colour names (K, 12) alone; arguments as for `described`."""
    return _colour_block(copy, lab, _patches(copy, boxes, masks, size))[1]


@dataclass(frozen=True, slots=True)
class _Patches:
    """K regions sampled on a grid: PATCH x PATCH points in the box, MARGIN more around it."""

    # rows, columns: (K, P) pixel indices of the grid
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    mask: Mask  # (K, P, P) bool, the region itself, holes filled
    valid: Mask  # (K, P, P) bool, within the image
    sides: Floats  # (K, 2) width and height of the boxes in pixels

    def sample(self, plane: NDArray) -> NDArray:
        """Values of an (H, W) or (H, W, C) array at the grid, (K, P, P) or (K, P, P, C)."""
        return plane[self.rows[:, :, None], self.columns[:, None, :]]


def _patches(copy: Pixels, boxes: Floats, masks: Mask, size: Floats) -> _Patches:
    height, width = copy.shape[:2]
    rows, columns, valid = grid(boxes * np.array([width, height, width, height], np.float32), height, width)
    return _Patches(rows, columns, masks & valid, valid, (boxes[:, 2:] - boxes[:, :2]) * size)


def grid(boxes: Floats, height: int, width: int) -> tuple[NDArray, NDArray, NDArray]:
    """Pixel rows (K, P), columns (K, P) and validity (K, P, P) of the grids of boxes in pixels."""
    steps = (np.arange(FRAME, dtype=np.float32) - MARGIN + 0.5) / PATCH
    columns = np.floor(boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])).astype(np.int64)
    rows = np.floor(boxes[:, 1:2] + steps * (boxes[:, 3:4] - boxes[:, 1:2])).astype(np.int64)
    valid = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1), valid


@functools.cache
def _colour_table() -> Floats:
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


def _mean_over(values: NDArray, mask: Mask) -> Floats:
    """Mean over the mask of each region: (K, P, P[, C]) and (K, P, P) to (K[, C])."""
    count = np.maximum(mask.sum(axis=(1, 2)), 1).astype(np.float32)
    if values.ndim == 3:
        return (values * mask).sum(axis=(1, 2), dtype=np.float32) / count
    return np.einsum("kyxc,kyx->kc", values, mask.astype(np.float32), optimize=True) / count[:, None]


def _histograms(codes: NDArray[np.int64], weights: NDArray, bins: int) -> NDArray[Any]:
    """The weights of each region summed by their codes: two of (K, P, P) to (K, bins)."""
    keys = np.arange(len(codes))[:, None, None] * bins + codes
    return np.bincount(keys.ravel(), weights.ravel(), len(codes) * bins).reshape(len(codes), bins)


def _colour_block(image: Pixels, lab: Floats, patches: _Patches) -> tuple[Floats, Floats]:
    """Colour of the region and of its surroundings, (K, 54), and the shares of the names, (K, 12)."""
    coarse = slice(None, None, 2)  # every other sample is plenty for a mean
    mask, valid = patches.mask[:, coarse, coarse], patches.valid[:, coarse, coarse]
    patches = _Patches(patches.rows[:, coarse], patches.columns[:, coarse], mask, valid, patches.sides)
    levels = (image.astype(np.int32) * COLOUR_LEVELS) >> 8
    codes = patches.sample((levels[..., 0] * COLOUR_LEVELS + levels[..., 1]) * COLOUR_LEVELS + levels[..., 2])
    table = _colour_table()

    def shares(mask: Mask) -> Floats:
        counts = _histograms(codes, mask, len(table))
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


def _shape_block(patches: _Patches) -> Floats:
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
    hu = np.array([moments_hu(own) for own in moments])  # (K, 7)
    log_hu = np.sign(hu) * np.log1p(np.abs(hu) * 1e4) / 4.0

    profile, farthest = _radial_profiles(inner, np.stack([centre_x, centre_y], axis=1), scale)
    solidity = np.clip(area / np.maximum(_hull_area(inner, y, scale), 1e-6), 0.0, 1.0)
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
        _angular_spectrum(profile),
        _angular_spectrum(farthest),
        log_hu,
        np.stack(scalars, axis=1),
    ]
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _radial_profiles(
    inner: Mask, centre: NDArray[np.floating], scale: Floats
) -> tuple[Floats, NDArray[np.floating]]:
    """Lengths of masks (K, PATCH, PATCH) along rays from their centres, and the ends: two of (K, ANGLES).

    `centre` (K, 2) xy is in units of `scale` (K, 2), the sides of the boxes, from the middle of the box.
    """
    angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)  # (A, 2)
    radii = ((np.arange(24) + 0.5) / 24).astype(np.float32)
    reach = 0.75 * np.linalg.norm(scale, axis=1)  # (K,), longer than any radius
    points = centre[:, None, None] + direction[None, :, None] * (radii * reach[:, None])[:, None, :, None]
    index = np.floor((points / scale[:, None, None] + 0.5) * PATCH).astype(np.int64)  # (K, A, R, 2)
    within = ((index >= 0) & (index < PATCH)).all(axis=-1)
    index = np.clip(index, 0, PATCH - 1)
    hit = within & inner[np.arange(len(inner))[:, None, None], index[..., 1], index[..., 0]]
    profile = hit.mean(axis=2, dtype=np.float32) * reach[:, None]  # (K, A), length of mask along each ray
    farthest = (hit * radii).max(axis=2) * reach[:, None]
    return profile, farthest


def _angular_spectrum(profile: NDArray[np.floating]) -> NDArray[np.floating]:
    """The first eight frequencies of radial profiles (K, ANGLES), whatever their size and turn, (K, 8)."""
    relative = profile / np.maximum(profile.mean(axis=1, keepdims=True), 1e-3)
    return np.abs(np.fft.rfft(relative, axis=1))[:, 1:9] / 4.0


def _hull_area(inner: Mask, y: Floats, scale: Floats) -> NDArray[np.floating]:
    """Areas (K,) of the convex hulls of masks (K, PATCH, PATCH), from their reach in 16 directions.

    `y` (K, PATCH) are the middles of their rows, `scale` (K, 2) the sides of the boxes.
    """
    first, last = inner.argmax(axis=2), PATCH - inner[:, :, ::-1].argmax(axis=2)
    filled = np.asarray(inner.any(axis=2))
    turn = 2 * np.pi * np.arange(16) / 16
    left = (first / PATCH - 0.5) * scale[:, :1]
    right = (last / PATCH - 0.5) * scale[:, :1]
    support = np.full((len(inner), 16), -np.inf, np.float32)
    for side_x in (left, right):
        for side_y in (y - 0.5 * scale[:, 1:] / PATCH, y + 0.5 * scale[:, 1:] / PATCH):
            reached = side_x[:, :, None] * np.cos(turn) + side_y[:, :, None] * np.sin(turn)
            support = np.maximum(support, np.where(filled[:, :, None], reached, -np.inf).max(axis=1))
    support = np.where(np.isfinite(support), support, 0.0)
    following = np.roll(support, -1, axis=1)
    step = 2 * np.pi / 16
    corner_x = (support * np.sin(turn + step) - following * np.sin(turn)) / np.sin(step)
    corner_y = (following * np.cos(turn) - support * np.cos(turn + step)) / np.sin(step)
    return 0.5 * np.abs(
        (corner_x * np.roll(corner_y, -1, 1) - corner_y * np.roll(corner_x, -1, 1)).sum(axis=1)
    )


def _texture_block(lab: Floats, patches: _Patches) -> Floats:
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
    hog = _histograms((cell[:, None] * 4 + cell) * ORIENTATIONS + bins, size, 16 * ORIENTATIONS)
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
    binary = np.sqrt(_histograms(codes, inside, 10) / total[:, None])
    strength = size * inside
    sum_strength = strength.sum(axis=(1, 2))
    double = np.maximum(magnitude, 1e-6)  # of the angle: cos 2a = (gx^2 - gy^2) / m^2
    tilt = np.stack([(grad_x**2 - grad_y**2) / double, 2 * grad_x * grad_y / double], axis=-1)
    tilt = _mean_over(patches.sample(tilt)[:, core, core], inside) * (total / (sum_strength + 1e-3))[:, None]
    along, across = tilt[:, 0], tilt[:, 1]
    turned = _histograms(bins, strength, ORIENTATIONS)
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


def _spectrum_bins() -> Floats:
    """Rings and wedges of the half spectrum of a patch, (PATCH * (PATCH // 2 + 1), 4 + 24)."""
    frequency_y = np.fft.fftfreq(PATCH, 1 / PATCH)[:, None]
    frequency_x = np.arange(PATCH // 2 + 1)[None]
    radius = np.hypot(frequency_y, frequency_x)
    ring = np.digitize(radius, [1.5, 3.5, 7.5])
    wedge = np.minimum(((np.arctan2(frequency_y, frequency_x) / np.pi + 0.5) * 8).astype(int), 7)
    rings = ring[..., None] == np.arange(4)
    wedges = (ring[..., None] == 1 + np.arange(24) // 8) & (wedge[..., None] == np.arange(24) % 8)
    bins = np.concatenate([rings, wedges], axis=-1).astype(np.float32)
    bins[0, 0] = 0
    return bins.reshape(-1, 28)


_PATTERNS = _uniform_patterns()
_SPECTRUM_BINS = _spectrum_bins()
