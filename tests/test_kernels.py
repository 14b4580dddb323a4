"""The kernels where there is no GPU: interpreted, and compiled for one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tbkin_core.modeling import kernel_checks, kernels

TESTS = Path(__file__).parent


def test_are_not_available_without_triton_or_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.available("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.available("cpu") == (importlib.util.find_spec("triton") is not None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not kernels.available("cpu")
    assert not kernels.available("cuda")


def test_self_check_tells_what_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tbkin_core.modeling.triton_kernels", None)  # as if it could not load
    problem = kernel_checks.attention_problem(torch.device("cpu"), torch.float32, length=17)
    assert "triton_kernels" in (problem or "")
    assert "triton_kernels" in (kernel_checks.transport_problem(torch.device("cpu")) or "")


def test_agree_with_plain_attention_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    file = TESTS / "interpreted_kernels.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS.parent)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import torch
from tbkin_core.modeling import kernels, triton_kernels

ATTENTION = {"DROPOUT": True, "WIDTH": 64, "BLOCK_D": 64}

def check(kernel, pointer, constants, options):
    constants = {**constants, "BLOCK_M": options["BLOCK_M"]} if "BLOCK_M" in options else constants
    floats = {"scale", "least", "dropout", "inverse", "minus_inverse_beta"}
    pointers = {"gradient", "query", "key", "value", "output", "cost", "plan"}
    pointers |= {"query_gradient", "key_gradient", "value_gradient"}

    def kind(name):
        if name in constants:
            return "constexpr"
        if name in pointers:
            return pointer
        return "*i1" if name.endswith("mask") else "fp32" if name in floats else "i32"

    signature = {parameter.name: kind(parameter.name) for parameter in kernel.params}
    source = ASTSource(kernel, signature, constexprs=constants)
    warps = {"num_warps": options["num_warps"]}
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=warps)
    assert compiled.asm["cubin"]
    # What a program may share on compute capability 8.0, less than on 9.0.
    assert compiled.metadata.shared <= 163 * 1024, (kernel, constants, compiled.metadata.shared)

for dtype, pointer, length, rule, scope, straight_through in (
    (torch.bfloat16, "*bf16", 128, "probability", "cross-modal", True),
    (torch.float32, "*fp32", 16, "score", "text-to-image", False),
):
    constants = {**ATTENTION, "RULE": rule, "SCOPE": scope, "BLOCK_L": length}
    tiling = kernels._tiling(dtype, length, 64, backward=False)
    check(triton_kernels.attention_forward, pointer, constants, tiling)
    constants |= {"STRAIGHT_THROUGH": straight_through, "QUERIES": length}
    tiling = kernels._tiling(dtype, length, 64, backward=True)
    check(triton_kernels.attention_backward, pointer, constants, tiling)
check(triton_kernels.transport, "*fp32", {"BLOCK_T": 32, "BLOCK_K": 64, "ITERATIONS": 50}, {"num_warps": 4})
"""


def test_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """The interpreter takes much that the compiler refuses."""
    triton = pytest.importorskip("triton", reason="the kernels need Triton")
    if not list((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("ptxas*")):
        pytest.skip("Triton came without the assembler for NVIDIA GPUs")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    (tmp_path / "compile_kernels.py").write_text(COMPILE)
    command = [sys.executable, str(tmp_path / "compile_kernels.py")]
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(TESTS.parent), os.environ.get("PYTHONPATH")))
    )
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
