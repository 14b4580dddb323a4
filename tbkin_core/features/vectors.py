"""Region vectors by row: a batch names the rows, and whoever runs the model fetches them.

So a step on a CUDA device need not move vectors at all where its device holds them, moves them in half
precision where it does not, and a task hides a region by naming no row for it. Letters: F width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

KEPT_SHARE = 0.4
"""Of the memory that is free on a device, what vectors may take there: the rest is for training."""


class VectorTable:
    """The region vectors of one or more feature stores, one row a region, in half precision on disk.

    Args:
        shards: Arrays (N, F) float16, in the order of the rows.
    """

    def __init__(self, shards: Sequence[NDArray[np.float16]]) -> None:
        self.shards = list(shards)
        self.ends = np.cumsum([len(shard) for shard in self.shards])
        self.width = int(self.shards[0].shape[1])
        self._kept: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, rows: NDArray[np.int64], half: bool = False) -> NDArray[Any]:
        """Vectors (..., K, F) float32 of rows (..., K), zeros for -1; with `half` float16, as they lie."""
        out = np.empty((*rows.shape, self.width), np.float16 if half else np.float32)
        if rows.size:
            self._take(rows.reshape(-1, rows.shape[-1]), out.reshape(-1, *out.shape[-2:]))
        return out

    def _take(self, lists: NDArray[np.int64], out: NDArray) -> None:
        """Into (B, K, F) the vectors of (B, K) rows."""
        shard = np.searchsorted(self.ends, lists, side="right")
        local = lists - np.concatenate([[0], self.ends])[shard]
        none = lists < 0
        column = np.arange(lists.shape[1])
        # Most are the regions of an image from its first one on, which lie side by side: they are read
        # together, and what differs, hidden or exchanged, is put right afterwards.
        first, count = local[:, :1], column[-1] + 1 - none[:, ::-1].argmin(axis=1)
        beside = (local == first + column) & (shard == shard[:, :1]) & ~none
        usual = (beside.sum(axis=1) > len(column) // 2) & ~none[:, 0]
        room = np.array([len(part) for part in self.shards])[shard[:, 0]] - first[:, 0]
        usual &= count <= room
        starts = (part.tolist() for part in (usual, shard[:, 0], first[:, 0], count))
        for number, (together, of_shard, row, length) in enumerate(zip(*starts, strict=True)):
            if together:
                _copy(self.shards[of_shard][row : row + length], out[number, :length])
        other = ~none & ~(usual[:, None] & beside)
        for of_shard in np.unique(shard[other]):
            own = other & (shard == of_shard)
            stored = self.shards[of_shard][local[own]]
            widened = np.empty(stored.shape, out.dtype)
            _copy(stored, widened)
            out[own] = widened
        out[none] = 0

    # ---- on a device ----

    def keep_on(self, device: torch.device, most: int | None = None) -> int:
        """Keep all vectors on a device from now on, if they take `most` bytes there or fewer.

        By default that is `KEPT_SHARE` of what is free on a CUDA device. Returns the bytes that they take, 0
        where they do not fit.
        """
        import torch

        needed = 2 * self.width * (len(self) + 1)
        if self._kept is not None and self._kept.device == device:
            return needed
        if most is None:
            most = int(KEPT_SHARE * torch.cuda.mem_get_info(device)[0])
        if needed > most:
            return 0
        try:
            # Row 0 is that of no region.
            kept = torch.zeros((len(self) + 1, self.width), dtype=torch.float16, device=device)
            for shard, end in zip(self.shards, self.ends.tolist(), strict=True):
                kept[1 + end - len(shard) : 1 + end].copy_(torch.from_numpy(np.array(shard)))
        except torch.OutOfMemoryError:
            return 0  # others use the device too
        _wait(device)  # batches are made on another stream
        self._kept = kept
        return needed

    def release(self) -> bool:
        """Keep them on no device any more; whether they were."""
        if self._kept is None:
            return False
        _wait(self._kept.device)
        self._kept = None
        return True

    def tensor(self, rows: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """Vectors (..., F) of rows (...) on a device: single precision on a CPU, else as they are stored."""
        import torch

        kept = self._kept  # another thread may release it meanwhile
        if kept is not None and kept.device == device:
            index = moved(torch.from_numpy(rows.reshape(-1) + 1), device)
            found = kept.index_select(0, index).view(*rows.shape, self.width)
            if device.type == "cuda":
                kept.record_stream(torch.cuda.current_stream(device))
            return found
        return moved(torch.from_numpy(self.take(rows, half=device.type != "cpu")), device)


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the device; towards CUDA without waiting, from memory that lets it be copied meanwhile."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Vectors (..., F) of a table by their rows, read when they are needed; np.asarray reads them here."""

    table: VectorTable
    rows: NDArray[np.int64]  # (...) rows of the table, -1 for zeros

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.rows.shape, self.table.width)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Vectors:
        """Some of them, by an index of their rows."""
        return Vectors(self.table, self.rows[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        return self.table.take(self.rows).astype(dtype or np.float32, copy=False)

    def to(self, device: torch.device) -> torch.Tensor:
        """On a device, see `VectorTable.tensor`."""
        return self.table.tensor(self.rows, device)


def _copy(half: NDArray[np.float16], out: NDArray) -> None:
    """Write half precision numbers as they are or as single ones: exactly, being finite.

    NumPy's own conversion takes fifteen times as long, and is all that a read would be. Both kinds have the
    sign, the exponent and the mantissa in this order; moved into place, the exponent lacks its larger bias.
    """
    if out.dtype == half.dtype:
        out[:] = half
        return
    bits = out.view(np.int32)
    np.copyto(bits, half.view(np.int16))  # spreads the sign over the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.array(0x8FFFE000, np.uint32).view(np.int32), out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)
