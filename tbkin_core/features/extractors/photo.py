"""Photographs without a hub: the built-in proposals, to which a backbone gives vectors and names."""

from __future__ import annotations

from tbkin_core.features.extractors.base import PictureExtractor, Request
from tbkin_core.features.extractors.builtin import BuiltinExtractor


def open_extractor(request: Request) -> PictureExtractor:
    """For any image; its regions have no vectors before a backbone gives them."""
    return BuiltinExtractor(request.max_regions, photos=True)
