"""A model made ready for its device: moved there, its layers compiled, its attention by one kernel."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
import torch._dynamo

from tbkin_core.modeling import kernels
from tbkin_core.modeling.kernel_checks import attention_problem

logger = logging.getLogger("tbkin")


def accelerate(
    model: Any, device: torch.device, *, kernel: torch.dtype | None = None, compiled: bool = False
) -> None:
    """Move a model to a device and choose how it computes there; its weights and their names stay.

    Args:
        kernel: Type of numbers in which attention under a threshold is computed in one kernel, where kernels
            run on the device and agree with plain PyTorch; None for PyTorch alone.
        compiled: Compile the encoder's layers, for any length of texts and number of regions.
    """
    model.to(device)
    if compiled and (problem := _compiler_problem(device)):
        logger.warning("torch.compile does not work here (%s): going on without it", problem)
        compiled = False
    if compiled:
        # Training, evaluation, what records attention, layers that do not select, batches of one: each is a
        # program of its own, and above the limit PyTorch would go on uncompiled.
        torch._dynamo.reset()
        torch._dynamo.config.cache_size_limit = 32
        logger.info("compiling the model's layers: the first steps take longer")
    if not _kernel_works(model, device, kernel):
        kernel = None
    model.tbkin.encoder.compiled = compiled
    for layer in model.tbkin.encoder.layers:
        layer.kernel = kernel
        if compiled:
            # One program serves all layers, as they differ in their weights alone.
            layer.compile(dynamic=True)


def _kernel_works(model: Any, device: torch.device, dtype: torch.dtype | None) -> bool:
    """Whether the model's selection can be computed in one kernel here; a warning where it should be."""
    chosen, config = model.tbkin.selection, model.config
    if dtype is None or not chosen.threshold or chosen.rule not in kernels.KERNEL_RULES:
        return False
    if not kernels.available(device):
        return False
    length = min(config.max_text_tokens + config.max_regions, kernels.MAX_LENGTH)
    width = config.hidden_size // config.num_attention_heads
    given = (device, dtype, chosen.rule, chosen.scope, chosen.straight_through, length, width)
    if problem := attention_problem(*given):
        logger.warning("the kernel for attention is not used: %s", problem)
    return not problem


@cache
def _compiler_problem(device: torch.device) -> str:
    """Why nothing can be compiled for a device, such as a compiler that is not installed; "" if it can."""
    try:
        # As in a layer: arithmetic on the device, with a threshold and a seed that are on the CPU.
        program = torch.compile(lambda x, tau: x.sin() + tau.log() + torch.randint(9, ()))
        program(torch.ones(8, device=device), torch.ones(()))
    except Exception as error:  # whatever a compiler's absence leads to
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""
