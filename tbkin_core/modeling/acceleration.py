"""A model made ready for its device: moved there, its layers compiled, its attention by one kernel."""

from __future__ import annotations

import logging
from functools import cache
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
    if compiled and (problem := _compiler_problem(device)):
        logger.warning("torch.compile does not work here (%s): going on without it", problem)
        compiled = False
    if compiled:
        logger.info("compiling the model's layers: the first steps take longer")
    model.tbkin.encoder.compiled = compiled
    for layer in model.tbkin.encoder.layers:
        if compiled:
            # One program serves all layers, as they differ in their weights alone.
            layer.compile(dynamic=True)


@cache
def _compiler_problem(device: torch.device) -> str:
    """Why nothing can be compiled for a device, such as a compiler that is not installed; "" if it can."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever a compiler's absence leads to
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""
