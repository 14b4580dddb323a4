"""A model made ready for its device: moved there, its layers compiled, its attention by one kernel."""

from __future__ import annotations

import logging
from typing import Any

import torch

logger = logging.getLogger("tbkin")


def accelerate(model: Any, device: torch.device, *, fused: bool = True, compiled: bool = False) -> None:
    """Move a model to a device and choose how it computes there; its weights and their names stay.

    Args:
        fused: On CUDA, compute attention under a threshold by one kernel where that is possible.
        compiled: Compile the encoder's layers, for any length of texts and number of regions.
    """
    model.to(device)
    for layer in model.tbkin.encoder.layers:
        if compiled:
            # One program serves all layers, as they differ in their weights alone.
            layer.compile(dynamic=True)
