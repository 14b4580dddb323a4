"""Datasets in their publishers' own layouts, as plain records."""

from tbkin_core.datasets.dataset import Dataset, open_dataset

__all__ = ["Dataset", "open_dataset"]
