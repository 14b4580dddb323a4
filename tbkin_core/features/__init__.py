"""Region features: extractors, imports, and the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tbkin_core.features.regions import RegionFeatures
    from tbkin_core.features.store import FeatureStore

__all__ = ["FeatureStore", "RegionFeatures"]


def __getattr__(name: str) -> Any:
    # Only when asked for: `tbkin --help` reads the table of extractors in this package, and needs no numpy.
    if name in __all__:
        from tbkin_core.features import regions, store

        return getattr(regions if name == "RegionFeatures" else store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
