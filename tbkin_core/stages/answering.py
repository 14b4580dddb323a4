"""A checkpoint that answers about one image after the other: questions, regions, passes and traces."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tbkin_core.datasets import open_dataset
from tbkin_core.datasets.image_index import is_coco_name, trailing_number
from tbkin_core.errors import ConfigError, DataError, TbkinError
from tbkin_core.features.descriptors import COLOUR_PROTOTYPES
from tbkin_core.features.extractors import LITE, recorded_extractor
from tbkin_core.features.extractors.base import regions_of_file
from tbkin_core.features.extractors.opening import reopen_extractor
from tbkin_core.features.looks import true_colours
from tbkin_core.features.pictures import ImageBytes, darkness, load_image, used_bits
from tbkin_core.features.regions import ImageId, RegionFeatures
from tbkin_core.features.store import FeatureStore, batch_of_one, feature_kind
from tbkin_core.figures.trace import Pass, Trace
from tbkin_core.figures.views import check_choice
from tbkin_core.modeling.acceleration import accelerate
from tbkin_core.modeling.checkpoint import load_model, load_model_config, task_of
from tbkin_core.selection import TRANSFORMS, Selection, usual_threshold
from tbkin_core.settings import VisualizeConfig
from tbkin_core.shipped import shipped_model
from tbkin_core.stages.choosing import described
from tbkin_core.stages.image_data import PICTURE_SIDE, DatasetOfImages
from tbkin_core.support.console import shortened
from tbkin_core.support.devices import resolve_devices, torch_device
from tbkin_core.support.shards import MANIFEST
from tbkin_core.tasks.base import Shown, task_named
from tbkin_core.tasks.inputs import check_finite, to_device
from tbkin_core.texts.language import looks_foreign
from tbkin_core.texts.table import TextTable, encode_texts
from tbkin_core.texts.tokenizer import words_of
from tbkin_core.training.start import check_feature_kind

ANSWERS = 5  # shown of one image where nobody asked for more or fewer
_MOST_HALF = float(np.finfo(np.float16).max)


class NamedRegions(NamedTuple):
    """Regions of an image, and the names that its store has for objects and attributes; empty where none."""

    regions: RegionFeatures
    object_names: Sequence[str]
    attribute_names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Question:
    """A question or an expression as a model reads it.

    Attributes:
        text: White space made plain.
        table: The same as tokens.
        words: What the model reads of it, as far as its last token.
        pieces: Its tokens, [CLS] and [SEP] among them.
        problems: What the model misses of it, one line each.
    """

    text: str
    table: TextTable
    words: list[str]
    pieces: list[str]
    problems: list[str]

    @property
    def padded(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Ids, mask and word of each token, each (1, T)."""
        return self.table.padded(np.array([0]))


class LoadedModel:
    """A checkpoint with all that it takes to answer questions about images.

    Attributes:
        task: What the checkpoint was trained for.
        selection: Of the thresholded pass.
        thresholded: Whether that pass counts as the model's answer: it was trained with a threshold.
        about: Which model it is, and of one's own what it learnt from and how good it is.
        problems: What is worth knowing, one line each.

    Raises:
        TbkinError: The checkpoint cannot be loaded.
    """

    def __init__(self, config: VisualizeConfig, checkpoint: Path) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.task = task_named(task_of(checkpoint))
        shape = load_model_config(checkpoint)
        check_choice(shape.num_hidden_layers, shape.num_attention_heads, config.layer, config.head)
        self.model, self.tokenizer = load_model(checkpoint, self.task.name)
        model = shipped_model(checkpoint)
        self.problems = [] if model is None else [f"{model.name} comes with tbkin: {model.about}"]
        self.about = described(checkpoint)
        if not self.model.config.use_regions:
            self.problems.append("this model does not see the image: its answer is from the words alone")
        elif self.model.answers_past_attention:
            self.problems.append(
                "where attention looks is one part of what this model answers by, beside the image as a whole"
                " and the words alone"
                if self.model.config.direct_attends
                else "this model also answers by a way past its attention, from the words and the mean"
                " region: the attention that is shown may have little part in its answer"
            )
        self.device = torch_device(resolve_devices(config.devices))
        accelerate(self.model, self.device)
        own = self.model.config.attention_selection()
        rule, threshold = config.selection or own.rule, config.threshold
        if threshold is None:
            threshold = own.threshold if own.threshold and rule == own.rule else usual_threshold(rule)
        self.selection = Selection(rule, threshold, own.layers, own.scope)
        if where := self.selection.where:
            self.problems.append(f"the threshold selects {where}, as the model was trained")
        self.thresholded = bool(own.threshold)
        self.data = DatasetOfImages(config, checkpoint)
        self.regions = _RegionSource(config, self.model.config.extractor or {}, self.data)

    def read(self, text: str) -> Question:
        """A question or an expression.

        Raises:
            DataError: The model knows no word of it.
        """
        text = " ".join(_as_unicode(text).split())
        limit = self.model.config.max_text_tokens
        table = encode_texts(self.tokenizer, [text], limit)
        if table.unknown[0]:
            raise DataError(
                f"question: none of its words is known to {self.checkpoint}: {shortened(text)!r}",
                hint="the model knows the words it was trained on; ask in its language, in other words",
            )
        _, _, word_ids = table.padded(np.array([0]))
        words = words_of(text, self.tokenizer)
        known = words[: int(word_ids.max()) + 1]
        pieces = [self.tokenizer.id_to_token(int(number)) or "[UNK]" for number in table.ids]
        problems = []
        if table.cut:
            problems.append(
                f"the question was cut to {limit} tokens: of its {len(words)} words the model read"
                f" {len(known)}, up to {known[-1]!r}"
            )
        if unknown := _unknown_words(known, pieces, word_ids[0]):
            named = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
            problems.append(f"the model was trained without these words and reads past them: {named}")
        if looks_foreign(text):
            problems.append(
                "the question does not look English; the parser knows English only, and the model the words"
                " that it was trained on: do not trust this answer"
            )
        return Question(text, table, known, pieces, problems)

    def trace(
        self,
        source: Path | ImageBytes | str,
        question: Question,
        known: NamedRegions | None = None,
        opened: tuple[NDArray[np.uint8], int, int] | None = None,
    ) -> Trace:
        """Both passes over one image, given by its file or by its id in a feature store.

        Args:
            source: The file, or its content, or the id.
            question: What is asked.
            known: Regions of the file; None finds or makes them.
            opened: The file as `load_image` gives it, of `PICTURE_SIDE` pixels; None reads it.

        Raises:
            TbkinError: The image cannot be read, or there are no regions for it.
        """
        if not isinstance(source, str):
            picture, width, height = opened or load_image(source, max_side=PICTURE_SIDE)
            if known is None:
                known = self.regions.of_file(source, (width, height))
            else:
                _check_size(source, known.regions, (width, height))
            regions, object_names, attribute_names = known
            self.problems += self.regions.notes
            if opened is None and (bits := used_bits(source)):
                self.problems.append(f"{source}: is {darkness(bits)}")
            # Reading the annotations of a large dataset takes a while: only for what shows something of them.
            needed = self.task.presentation.answers_are_regions or self.config.wants_graph
            image_id = self.data.image_id_of(source) if needed and isinstance(source, Path) else None
        else:
            regions, object_names, attribute_names = self.regions.stored(source)
            image_id, width, height = regions.image_id, regions.image_width, regions.image_height
            picture = self._picture(image_id, width, height)
        boxes = np.asarray(regions.boxes[: self.model.config.max_regions], np.float32)
        passes = self._passes(regions, boxes, (width, height), question)
        looks = _names(attribute_names, regions.attribute_ids, len(boxes))
        own = [*regions.labels(object_names), *[""] * len(boxes)][: len(boxes)]
        has_names = bool(object_names)
        if has_names and set(attribute_names) <= {*COLOUR_PROTOTYPES}:
            looks = true_colours(picture, boxes, looks, (width, height))
        called = own if has_names else self.data.borrowed_names(image_id, boxes, (width, height))
        labels = [name or look for name, look in zip(called, looks, strict=True)]
        # Borrowed names do not tell apart what a detector's own would: "black circle" beside "white circle".
        both = [f"{look} {name}".strip() for name, look in zip(called, looks, strict=True)]
        target = self._target(image_id, question.text, (width, height))
        trace = Trace(
            task=self.task.name,
            text=question.text,
            image=picture,
            image_size=(width, height),
            boxes=boxes,
            region_labels=labels if has_names else both,
            words=question.words,
            pieces=question.pieces,
            word_ids=question.padded[2][0],
            selection=self.selection.rule,
            threshold=self.selection.threshold,
            scope=self.selection.scope,
            layers=None if self.selection.layers is None else list(self.selection.layers),
            dense=passes[0],
            thresholded=passes[1],
            checkpoint=str(self.checkpoint),
            target_box=target,
            names_annotated=not has_names and any(called),
            answered_by="thresholded" if self.thresholded else "dense",
            also_by=self._answers_also_by(),
            names_from=str(self.regions.extractor.get("extractor") or ""),
        )
        if not self.config.wants_graph:
            return trace
        if any(called):
            # Where names are known, a region without one is a piece of something or of nothing.
            looks = [look if name else "" for name, look in zip(called, looks, strict=True)]
        # spaCy takes a second to load, and most figures have no graph.
        from tbkin_core.graphs.question import unified_graph

        seen = self.regions.seen(regions, len(boxes))
        return replace(trace, graph=unified_graph(trace.text, boxes, labels, image_id, looks, seen=seen))

    def _answers_also_by(self) -> str:
        """What it answers by beside its attention, in words; "" for nothing."""
        if not self.model.config.use_regions or not self.model.answers_past_attention:
            return ""
        attends = self.model.config.direct_attends
        return "the image as a whole and the words alone" if attends else "the words and the mean region"

    def _target(self, image_id: ImageId | None, text: str, size: tuple[int, int]) -> Any:
        """The true box that the dataset has for an expression; None where it has none, or several."""
        if not self.task.presentation.answers_are_regions or image_id is None:
            return None
        targets = self.data.target_boxes(self.task, image_id, text, size)
        if len(targets) == 1:
            self.problems += [note for note in self.data.changes if note not in self.problems]
            return targets[0]
        if targets:
            places = "; ".join(", ".join(f"{side:.0f}" for side in box) for box in targets)
            self.problems.append(
                f"image {image_id}: {len(targets)} objects of {self.data.place} are called"
                f" {shortened(text)!r} ({places}): none is shown as the target"
            )
        return None

    def shown(self, trace: Trace) -> Pass:
        """The pass that counts as the model's answer."""
        return trace.thresholded if self.thresholded else trace.dense

    def answer(self, regions: RegionFeatures, question: Question, selection: Selection | None) -> Shown:
        """What the model answers about an image of these regions; nothing is drawn.

        Args:
            regions: As `regions.of_file` gives them.
            question: What is asked.
            selection: Of the attention; None is dense.
        """
        boxes = np.asarray(regions.boxes[: self.model.config.max_regions], np.float32)
        size = (regions.image_width, regions.image_height)
        selection = selection or Selection(self.selection.rule, 0.0)
        with torch.inference_mode():
            return self._shown(selection, self._inputs(regions, question), boxes, size, ANSWERS)[0]

    def _inputs(self, regions: RegionFeatures, question: Question) -> dict[str, Any]:
        most = self.model.config.max_regions
        batch = batch_of_one(regions)
        input_ids, attention_mask, _ = question.padded
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "region_features": batch.features[:, :most],
            "region_geometry": batch.geometry[:, :most],
            "region_mask": batch.mask[:, :most],
        }
        return to_device(inputs, self.device)

    def _shown(
        self,
        selection: Selection,
        inputs: dict[str, Any],
        boxes: NDArray,
        size: tuple[int, int],
        top: int,
        record: bool = False,
    ) -> tuple[Shown, Any]:
        """What a pass answers, and its attention where that is to be recorded."""
        self.model.tbkin.selection = selection
        output = self.model(**inputs, output_attentions=record)
        shown = self.task.shown(self.model, output, boxes, size, top)
        check_finite(self.model, np.array([[probability for _, probability in shown.answers]]))
        check_finite(self.model, np.array([shown.box or ()]))
        return shown, output.attentions

    def _passes(
        self, regions: RegionFeatures, boxes: NDArray, size: tuple[int, int], question: Question
    ) -> list[Pass]:
        """The dense pass and the thresholded one."""
        inputs = self._inputs(regions, question)
        passes = []
        with torch.inference_mode():
            for selection in (Selection(self.selection.rule, 0.0), self.selection):
                shown, attentions = self._shown(
                    selection, inputs, boxes, size, self.config.top or ANSWERS, record=True
                )
                scores, kept, weights = (
                    torch.cat([getattr(record, name) for record in attentions]).cpu()
                    for name in ("scores", "kept", "weights")
                )
                # Half precision ends before single does; what is masked stays at minus infinity.
                scores = torch.where(scores.isfinite(), scores.clamp(-_MOST_HALF, _MOST_HALF), scores)
                attention = weights.half().numpy() if self.selection.rule in TRANSFORMS else None
                passes.append(Pass(scores.half().numpy(), kept.numpy(), attention, **asdict(shown)))
        return passes

    def _picture(self, image_id: ImageId, width: int, height: int) -> NDArray[np.uint8]:
        """The picture of an image of a store; plain white where no file of it is found."""
        picture = self.data.picture(image_id, width, height)
        if picture is not None:
            return picture
        self.problems.append(
            f"image {image_id}: no picture of it was found; name its dataset with --data DIR"
        )
        scale = min(1.0, PICTURE_SIDE / max(width, height))
        return np.full((max(1, round(height * scale)), max(1, round(width * scale)), 3), 255, np.uint8)


class _RegionSource:
    """Regions of images: made anew as the checkpoint's were, or from stores of their kind."""

    def __init__(self, config: VisualizeConfig, extractor: dict[str, Any], data: DatasetOfImages) -> None:
        self.extractor, self.devices, self.own, self.data = extractor, config.devices, config.features, data
        self.notes: list[str] = []  # what is worth knowing of the regions last given
        self._opened = cache(FeatureStore)
        self._images_of = cache(_images_of)

    @cached_property
    def _extractor(self) -> Any:
        return reopen_extractor(self.extractor, self.devices)

    @property
    def made_anew(self) -> bool:
        """Whether an image is all that it takes to make regions of it."""
        row = recorded_extractor(self.extractor)
        needed = {"max_regions", "object_names", "attribute_names"}
        return row is not None and row.from_image_alone and needed <= {*self.extractor}

    def of_file(self, path: Path | ImageBytes, size: tuple[int, int]) -> NamedRegions:
        """Regions of an image file of some width and height.

        Raises:
            ConfigError: They cannot be made anew, and no store holds the image.
        """
        kind, row, made_anew = (
            self.extractor.get("extractor"),
            recorded_extractor(self.extractor),
            self.made_anew,
        )
        if made_anew and (self.own is None or isinstance(path, ImageBytes)):
            regions = regions_of_file(self._extractor, path)
            return NamedRegions(regions, self.extractor["object_names"], self.extractor["attribute_names"])
        if isinstance(path, ImageBytes):
            raise ConfigError(
                f"features of kind {kind!r}, which the checkpoint was trained on, cannot be made here for a"
                " new image",
                hint="use a checkpoint trained on --extractor builtin or photo features",
            )
        beside = [] if self.own else [parent / "features" for parent in path.resolve().parents[:4]]
        stores = list(self._stores(beside))
        for store in stores:
            key = self._key_of(path, store)
            if key is not None and key in store:
                regions = store[key]
                if (regions.image_width, regions.image_height) == size:
                    return NamedRegions(regions, store.object_names, store.attribute_names)
                raise DataError(
                    f"{path}: is {size[0]} x {size[1]}, the features of image {key!r} in {store.path} were"
                    f" made of {regions.image_width} x {regions.image_height} pixels",
                    hint="give the picture that they were made of",
                )
        if self.own and row and made_anew and not row.needs_torch:
            raise ConfigError(
                f"{self.own}: holds no image {path.stem!r}",
                hint="omit --features: this checkpoint's features are made anew for any image",
            )
        searched = f" ({', '.join(str(store.path) for store in stores)})" if stores else ""
        raise ConfigError(
            f"{path}: the checkpoint was trained on features of kind {kind!r},"
            f" and no feature store that holds this image was found{searched}",
            hint="name one with --features DIR, or use a checkpoint trained on --extractor builtin features;"
            " an image is known by its place in its dataset, or by its whole name",
        )

    def seen(self, regions: RegionFeatures, count: int) -> tuple[Sequence[str], NDArray[np.float32]] | None:
        """What the extractor sees in the first regions, as `LiteBackbone.sees`; None where it cannot tell."""
        if self.extractor.get("backbone") != LITE:
            return None
        with contextlib.suppress(TbkinError):  # it is not installed; the regions are a store's
            names, values = self._extractor.sees(regions)
            return names, values[:count]
        return None

    def _key_of(self, path: Path, store: FeatureStore) -> ImageId | None:
        """Key of a picture in a store; None where it is another picture, whatever number its name ends in."""
        self.notes = []
        inside = False
        for place in dict.fromkeys(filter(None, (self.data.place, store.path.parent))):
            # The path as it was given too: a directory of a dataset may be a link.
            pairs = ((path.absolute(), place.absolute()), (path.resolve(), place.resolve()))
            if any(it.is_relative_to(there) for it, there in pairs):
                inside = True
                key = self._images_of(place.resolve()).get(path.resolve())
                if key is not None and key in store:
                    return key
        if inside:
            return None
        # It lies elsewhere: a name that says which image of the dataset it is, and no other's by chance.
        key = path.stem if path.stem in store else path.name
        if is_coco_name(path.name):
            key = trailing_number(path.stem)
        if key is not None and key in store:
            self.notes.append(f"{path}: lies in no dataset; by its name it is image {key!r} of {store.path}")
        return key

    def stored(self, image_id: str) -> NamedRegions:
        """Regions of an image that a store holds.

        Raises:
            ConfigError: There is no store.
            DataError: No store holds the image.
        """
        stores = list(self._stores([self.data.place / "features"] if self.data.place else []))
        for store in stores:
            for key in (int(image_id) if re.fullmatch(r"-?\d{1,18}", image_id) else image_id, image_id):
                if key in store:
                    return NamedRegions(store[key], store.object_names, store.attribute_names)
        if not stores:
            raise ConfigError(
                "image_id: no feature store of this checkpoint's kind was found",
                hint="name it with --features DIR, or give an image file",
            )
        examples = ", ".join(map(str, stores[0].image_ids[:3]))
        raise DataError(
            f"{stores[0].path}: holds no image {image_id!r} among {len(stores[0])}",
            hint=f"ids look like {examples}",
        )

    def _stores(self, beside: Sequence[Path]) -> Iterator[FeatureStore]:
        """Feature stores of the checkpoint's kind: the one asked for, or those beside and its own."""
        places = [self.own] if self.own else [*beside, Path(self.extractor.get("store") or "features")]
        for place in dict.fromkeys(places):
            if place != self.own and not (place / MANIFEST).exists():
                continue
            store = self._opened(place)
            if feature_kind(store.settings) == feature_kind(self.extractor):
                yield store
            elif place == self.own:
                check_feature_kind(self.extractor, store, "the checkpoint")


def _images_of(place: Path) -> dict[Path, ImageId]:
    """The image files of a dataset, each with its key; none where there is no dataset."""
    try:
        images = open_dataset(place).images()
    except TbkinError:
        return {}
    return {record.path.resolve(): record.image_id for record in images if record.path is not None}


def _check_size(source: object, regions: RegionFeatures, size: tuple[int, int]) -> None:
    """DataError where regions are of a picture of another size."""
    if (made_of := (regions.image_width, regions.image_height)) != size:
        raise DataError(
            f"{source}: is {size[0]} x {size[1]}, its regions were made of {made_of[0]} x {made_of[1]}"
            " pixels",
            hint="make its regions anew",
        )


def _unknown_words(words: Sequence[str], pieces: Sequence[str], word_ids: NDArray) -> list[str]:
    """Words that the vocabulary lacks, or can only spell letter by letter."""
    of_word: dict[int, list[str]] = {}
    for piece, word in zip(pieces, word_ids.tolist(), strict=True):
        of_word.setdefault(word, []).append(piece.removeprefix("##"))
    unknown = [
        word
        for number, word in enumerate(words)
        if "[UNK]" in of_word[number] or (len(of_word[number]) > 1 and max(map(len, of_word[number])) == 1)
    ]
    return list(dict.fromkeys(unknown))


def _as_unicode(text: str) -> str:
    """A text whose bytes came as lone surrogates, as arguments do where the locale is not UTF-8."""
    try:
        encoded = text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", errors="replace")
    return encoded.decode("utf-8", errors="replace")


def _names(names: Sequence[str], ids: NDArray, count: int) -> list[str]:
    """Names of the first regions, "" where unknown."""
    known = [names[number] if 0 <= number < len(names) else "" for number in map(int, ids[:count])]
    return known + [""] * (count - len(known))
