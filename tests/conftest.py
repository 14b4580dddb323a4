"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of real inputs, `TBKIN_SHARED_DATA` or ../shared/data beside the checkout."""
    directory = Path(os.environ.get("TBKIN_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not directory.is_dir():
        pytest.skip(f"no real input at {directory}; set TBKIN_SHARED_DATA to run this test")
    return directory
