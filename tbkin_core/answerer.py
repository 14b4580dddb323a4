"""Ask a model about images from Python; it is loaded once::

    from tbkin_core import Answerer

    model = Answerer()  # your own model for questions, else the one that comes with tbkin
    found = model.ask("photo.jpg", "what color is the dog?")
    found.answer, found.probability
    found.boxes[found.region_attention.argmax()]

In a notebook an answer shows itself as the picture that `tbkin visualize` draws.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tbkin_core.figures.trace import Trace
from tbkin_core.figures.views import attention_views
from tbkin_core.settings import VisualizeConfig
from tbkin_core.stages.answering import ANSWERS, LoadedModel
from tbkin_core.stages.choosing import model_for

ARRAY = "image"
"""Called so in messages: an image that is no file."""
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What a model answers about an image, and what it looked at.

    Letters: K regions, T words of the question.
    """

    question: str
    answers: list[tuple[str, float]]
    """The likeliest first, each with its probability."""
    boxes: NDArray[np.float32]
    """(K, 4) the regions, x1, y1, x2, y2 in pixels of the image."""
    labels: list[str]
    """Names of the K regions, "" where unknown."""
    words: list[str]
    """The T words that the model read."""
    region_attention: NDArray[np.float32]
    """(K,) attention by which the answer was read, as the figure shows it; the words', and that of the marks
    at the ends of the question, make up the rest to 1."""
    word_attention: NDArray[np.float32]
    """(T,) likewise."""
    box: tuple[float, float, float, float] | None
    """What an expression means, x1, y1, x2, y2 in pixels; None for questions."""
    trace: Trace
    """Both passes, dense and thresholded, with the scores of every layer and head."""

    @property
    def answer(self) -> str:
        """The likeliest answer."""
        return self.answers[0][0]

    @property
    def probability(self) -> float:
        """Of the likeliest answer."""
        return self.answers[0][1]

    def save_figure(self, path: str | Path) -> None:
        """Draw the figure of `tbkin visualize`; the suffix (.png, .svg, .pdf) tells the format."""
        from tbkin_core.figures.answer import trace_figure  # matplotlib takes a second

        trace_figure(Path(path), self.trace)

    def _repr_png_(self) -> bytes:
        with tempfile.TemporaryDirectory() as place:
            self.save_figure(file := Path(place) / "answer.png")
            return file.read_bytes()

    def __repr__(self) -> str:
        some = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.answers)
        return f"Answered({self.question!r}: {some})"


class Answerer:
    """A model that answers questions about images, or finds what an expression means in them.

    Args:
        checkpoint: A run of `tbkin finetune`, or `photo-answers` or `photo-search`, which come with tbkin.
            None is your own model for questions below `runs/`, the latest that is not clearly worse than
            another of the same data, else `photo-answers`.
        threshold: Of the thresholded pass; None is the checkpoint's.
        selection: Its rule; None is the checkpoint's.
        features: Feature store that holds the images, where features cannot be made anew.
        devices: `auto`, `cpu`, `cuda` or `cuda:0`.

    Raises:
        TbkinError: There is no such checkpoint, or a setting is wrong.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        *,
        threshold: float | None = None,
        selection: str | None = None,
        features: str | Path | None = None,
        devices: str = "auto",
    ) -> None:
        config = VisualizeConfig(
            images=[Path(ARRAY)],
            question="any",
            threshold=threshold,
            selection=selection,
            features=None if features is None else Path(features),
            devices=devices,
        )
        given = None if checkpoint is None else Path(checkpoint)
        place, notes = model_for("vqa", given, stored=features is not None)
        self._model = LoadedModel(config, place)
        self._model.problems += notes
        self._known = list(self._model.problems)

    @property
    def checkpoint(self) -> Path:
        """Where the model comes from."""
        return self._model.checkpoint

    @property
    def task(self) -> str:
        """What it was trained for: vqa, rec, retrieval."""
        return self._model.task.name

    @property
    def notes(self) -> list[str]:
        """What is worth knowing of the model and of the last answer, one line each."""
        return list(dict.fromkeys(self._model.problems))

    def ask(
        self, image: str | Path | Image.Image | NDArray[np.uint8], question: str, top: int = ANSWERS
    ) -> Answered:
        """Answer a question about an image, or find an expression in it.

        Args:
            image: A file, a PIL image, or an array (H, W, 3) of 0 to 255.
            question: Question or expression, in English.
            top: Answers at most.

        Raises:
            DataError: The image cannot be read, or the model knows no word of the question.
            ConfigError: There are no regions for the image and they cannot be made, or `top` is not 1 to 200.
            TypeError, ValueError: The image is none of these, or the question no text.
        """
        if not isinstance(question, str):
            raise TypeError(f"question: expected a text, got {type(question).__name__}")
        if isinstance(image, str | Path):
            return self._ask(Path(image), question, top)
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / f"{ARRAY}.png"
            _as_picture(image).save(file)
            return self._ask(file, question, top)

    def _ask(self, file: Path, question: str, top: int) -> Answered:
        asked = self._model.read(question)
        self._model.problems[:] = [*self._known, *asked.problems]
        self._model.config = replace(self._model.config, top=top)
        trace = self._model.trace(file, asked)
        shown = self._model.shown(trace)
        view = attention_views(trace)[int(self._model.thresholded)]
        return Answered(
            question=asked.text,
            answers=[(name, float(share)) for name, share in shown.answers],
            boxes=trace.boxes,
            labels=list(trace.region_labels),
            words=list(trace.words),
            region_attention=np.asarray(view.region_weights, np.float32),
            word_attention=np.asarray(view.word_weights, np.float32),
            box=shown.box,
            trace=trace,
        )


def _as_picture(image: Any) -> Image.Image:
    """A picture that as a PNG is read as the image would be as a file: turned upright, transparency kept."""
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        return image if image.mode in _PNG_MODES else image.convert("RGB")
    if not isinstance(image, np.ndarray):
        found = type(image).__name__
        raise TypeError(f"image: expected a file, a PIL image or an array (H, W, 3), got {found}")
    is_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if image.dtype != np.uint8 or not is_shape or 0 in image.shape:
        raise ValueError(
            f"image: expected an array (H, W, 3) of uint8, 0 to 255, got {image.shape} of {image.dtype}"
        )
    return Image.fromarray(image)
