"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import succeeds

if TYPE_CHECKING:
    from playwright.sync_api import Page

REPOSITORY = Path(__file__).resolve().parents[1]
_BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One tab of a browser for all tests: a new one takes longer than most of them.

    They belong to the `xdist_group` "browser", of which one worker has all tests.
    """
    from playwright.sync_api import expect, sync_playwright

    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program = next((name for name in found if name), None)
    if program is None:
        pytest.skip("no browser: none of chromium, chromium-browser, google-chrome is installed")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=program, args=_BROWSER_FLAGS.split()
        )
        # Long, for machines that do much else; what is right is seen at once.
        context.set_default_timeout(60_000)
        expect.set_options(timeout=30_000)
        yield context.pages[0]
        context.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of real inputs, `TBKIN_SHARED_DATA` or ../shared/data beside the checkout."""
    directory = Path(os.environ.get("TBKIN_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not directory.is_dir():
        pytest.skip(f"no real input at {directory}; set TBKIN_SHARED_DATA to run this test")
    return directory


def _world(base: Path) -> Path:
    from examples.scenes import generate

    place = base / "world"
    if not place.exists():
        generate(place / "coco", 12, 4, 4, 0, (128, 96))
        shutil.copy(sorted((place / "coco" / "val").glob("*.jpg"))[0], place / "img.jpg")
    return place


def _trained(base: Path) -> Path:
    place = base / "trained"
    if not place.exists():
        shutil.copytree(_world(base), place)
        for line in (
            "extract-features coco --workers 0",
            "build-graphs coco",
            "pretrain coco --epochs 1 --devices cpu",
            "finetune --task vqa --data coco --threshold 0.3 --epochs 1 --devices cpu",
            "finetune --task rec --data coco --epochs 1 --devices cpu",
        ):
            succeeds(*line.split(), cwd=place)
    return place


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with `coco/` (drawn scenes) and `img.jpg`; not to be written to."""
    return _world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after five commands: features, graphs, a pretrained and two fine-tuned models; read only."""
    return _trained(tmp_path_factory.getbasetemp())


@pytest.fixture
def workspace(world: Path, tmp_path: Path) -> Path:
    """A copy of `world` to write to."""
    return Path(shutil.copytree(world, tmp_path / "workspace"))


@pytest.fixture
def trained_workspace(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` to write to."""
    return Path(shutil.copytree(trained, tmp_path / "workspace"))
