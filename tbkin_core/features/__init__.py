"""Region features: extractors, imports, and the store."""

from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FeatureStore

__all__ = ["FeatureStore", "RegionFeatures"]
