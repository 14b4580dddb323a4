"""What the dataset of a checkpoint knows of an image that is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tbkin_core.boxes import scale_between, xywh_to_xyxy
from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.errors import DataError, TbkinError
from tbkin_core.features.pictures import load_image
from tbkin_core.features.regions import ImageId
from tbkin_core.graphs.joining import borrowed_labels
from tbkin_core.runs import datasets_of, settings_of
from tbkin_core.settings import VisualizeConfig
from tbkin_core.support.files import real_path
from tbkin_core.tasks.base import Task, finetune_task
from tbkin_core.training.splits import changed_since

PICTURE_SIDE = 800  # pixels; more than a figure shows


class DatasetOfImages:
    """What the dataset that a checkpoint was trained on, or another one asked for, knows of an image."""

    def __init__(self, config: VisualizeConfig, checkpoint: Path) -> None:
        self._checkpoint, self._settings = checkpoint, settings_of(checkpoint)
        self._asked = config.data is not None
        self.place = config.data or next(iter(datasets_of(checkpoint)), None)

    @cached_property
    def _dataset(self) -> Dataset | None:
        if self.place is None:
            return None
        try:
            return open_dataset(self.place)
        except TbkinError:
            if self._asked:
                raise
            return None  # the checkpoint has travelled; its dataset has not

    def image_id_of(self, path: Path) -> ImageId | None:
        """Key of an image file; None where it lies elsewhere."""
        if self.place is None or not real_path(path).is_relative_to(real_path(self.place)):
            return None
        for record in self._dataset.images() if self._dataset else ():
            if record.path is not None and record.path.name == path.name and record.path.samefile(path):
                return record.image_id
        return None

    def picture(self, image_id: ImageId, width: int, height: int) -> NDArray[np.uint8] | None:
        """The picture of an image of this size; None where no file of it is found."""
        try:
            record = self._dataset.image(image_id) if self._dataset else None
        except DataError:
            record = None
        if record is None or record.path is None:
            return None
        picture, *size = load_image(record.path, max_side=PICTURE_SIDE)
        return picture if size == [width, height] else None

    def target_boxes(
        self, task: Task, image_id: ImageId, text: str, size: tuple[int, int]
    ) -> list[tuple[float, float, float, float]]:
        """The true boxes that the dataset has for this text of this image."""
        if self._dataset is None:
            return []
        return task.target_boxes(self._dataset, image_id, text, self._settings.get("dataset"), size)

    @cached_property
    def changes(self) -> list[str]:
        """A note where the data are no longer those that the checkpoint's run speaks of."""
        if self._dataset is None or self._settings.get("task") is None:
            return []
        changed = changed_since(self._checkpoint, finetune_task(self._settings["task"]), self._dataset)
        what = f"{self.place}: {', '.join(changed)} changed since {self._checkpoint} was made"
        return [f"{what}; the target shown is that of now"] if changed else []

    def borrowed_names(
        self, image_id: ImageId | None, boxes: NDArray[np.float32], size: tuple[int, int]
    ) -> Sequence[str]:
        """Names of the annotated boxes that regions meet, as `build-graphs` gives them; "" where none is met.

        Of an image whose key was not looked up there are none.
        """
        annotated = self._dataset.boxes().get(image_id, []) if image_id is not None and self._dataset else []
        if not annotated or image_id is None or self._dataset is None:
            return [""] * len(boxes)
        record = self._dataset.image(image_id)
        scale = scale_between((record.width or 0, record.height or 0), size)
        if scale is None:
            return [""] * len(boxes)
        corners = xywh_to_xyxy([box.xywh for box in annotated]) * scale
        return borrowed_labels(boxes, corners, [box.label for box in annotated], 0.5)
