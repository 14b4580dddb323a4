"""Datasets in their publishers' own layouts, as plain records."""

from tbkin_core.datasets.dataset import Dataset, open_dataset
from tbkin_core.datasets.records import (
    BoxAnnotation,
    Caption,
    Expression,
    GoldGraph,
    GoldObject,
    GoldRelation,
    ImageId,
    ImageRecord,
    Question,
)

__all__ = [
    "BoxAnnotation",
    "Caption",
    "Dataset",
    "Expression",
    "GoldGraph",
    "GoldObject",
    "GoldRelation",
    "ImageId",
    "ImageRecord",
    "Question",
    "open_dataset",
]
