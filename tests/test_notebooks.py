"""The notebooks of examples/ run from beginning to end, as in a directory of a person's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")),
    reason="nbclient or ipykernel is missing",
)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of this Python, which finds tbkin in this repository."""
    from ipykernel.kernelspec import install

    install(prefix=str(tmp_path / "kernels"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "kernels/share/jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")


def outputs_of(book: Any) -> list[Any]:
    return [output for cell in book.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
@pytest.mark.usefixtures("kernel")
def test_a_notebook_runs(file: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(file, as_version=4)
    assert not outputs_of(book), "it is kept without outputs, which would go stale"
    (place := tmp_path / "place").mkdir()
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    pictures = [output for output in outputs_of(book) if "image/png" in output.get("data", {})]
    said = "".join(output.get("text", "") for output in outputs_of(book))
    assert len(pictures) >= 2
    assert "photo-answers" in said + str(book.cells) and "%" in said
    assert "Traceback" not in said and sys.executable not in said


def test_there_are_two() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["attention", "own_photos"]
