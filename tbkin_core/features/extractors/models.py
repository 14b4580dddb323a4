"""Loading models with transformers, telling their weights apart, and computing with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tbkin_core.errors import MissingDependencyError, TbkinError
from tbkin_core.support.pretrained import load_pretrained


def weights_digest(model: torch.nn.Module) -> str:
    """Tells two models apart: of the names, shapes and sums of all weights, and of some of each."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().cpu().reshape(-1)
        some = flat[:: max(len(flat) // 1024, 1)].double().numpy()
        digest.update(json.dumps([name, tuple(value.shape), round(float(flat.double().sum()), 3)]).encode())
        digest.update(some.tobytes())
    return digest.hexdigest()


_PREPARATION = (
    "size", "do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "do_pad", "pad_size",
)  # fmt: skip


def preparation_digest(processor: Any) -> str:
    """Tells apart two ways to prepare a picture, by an image processor's settings."""
    settings = processor.to_dict()
    relevant = {name: settings.get(name) for name in _PREPARATION}
    return hashlib.blake2b(
        json.dumps(relevant, sort_keys=True, default=str).encode(), digest_size=4
    ).hexdigest()


def compute_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """What a model computes in: "fp32", "bf16", or "auto" for bf16 on CUDA devices that have it."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


@contextlib.contextmanager
def computing(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """In it a model with float32 weights on `device` computes in `dtype`."""
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))  # kernels of its own go to the current one
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16))
        yield


def prompt_vectors(
    tokenizer: Any, prompts: Sequence[str], length: int, device: torch.device, tower: Callable[[Any], Any]
) -> torch.Tensor:
    """Vectors (N, D) of length 1 of N prompts, a hundred at a time.

    Args:
        tokenizer, length: Of the text tower, and the tokens that it takes.
        prompts: N texts.
        device: Where the tower is.
        tower: From tokens to vectors.
    """
    parts = []
    for begin in range(0, len(prompts), 100):
        some = list(prompts[begin : begin + 100])
        tokens = tokenizer(
            some, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        parts.append(tower(tokens.to(device)))
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def pretrained(kind: Any, model: str, revision: str | None) -> tuple[Any, Any]:
    """A model's image processor, and itself in float32, loaded by one of the Auto classes."""
    from transformers import AutoImageProcessor

    revision = revision or "main"
    processor = load_pretrained(AutoImageProcessor, model, revision=revision)
    return processor, load_pretrained(kind, model, revision=revision, dtype=torch.float32)


@contextlib.contextmanager
def loading(kind: str, model: str) -> Iterator[None]:
    """Turns what transformers and the hub raise for a model that cannot be had into one message."""
    try:
        yield
    except TbkinError:
        raise
    # Damaged files make the libraries below raise anything: SafetensorError, UnpicklingError, AssertionError.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        place = "directory" if Path(model).exists() else "hub id or directory"
        raise MissingDependencyError(
            f"{kind} {model!r} cannot be loaded from this {place}: {reason}",
            hint="--extractor builtin needs no model; a directory with config.json,"
            " preprocessor_config.json and model.safetensors works without a network",
        ) from error
