"""`tbkin visualize`: answers about images and what was looked at; traces drawn again; sheets of results.

A trace (`tbkin_core.figures.trace`) is made for every image; figures are drawn from traces alone.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.errors import ConfigError, DataError, TbkinError
from tbkin_core.results import StageResult, Table
from tbkin_core.runs import ROOT, find_checkpoint
from tbkin_core.settings import VisualizeConfig
from tbkin_core.support.console import progress
from tbkin_core.support.devices import resolve_devices
from tbkin_core.support.files import make_directory, read_json
from tbkin_core.support.shards import MANIFEST
from tbkin_core.training_runs import check_feature_kind, settings_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tbkin_core.features.regions import ImageId, RegionFeatures
    from tbkin_core.figures.trace import Pass, Trace

logger = logging.getLogger("tbkin")

_ANYTHING = frozenset({"item", "object", "one", "shape", "something", "thing"})
_LOOK_WEIGHT = 0.5  # of a link by colour alone: not all that is red is the red heart
_PICTURE_SIDE = 800  # pixels; more than a figure shows

_QUESTION = re.compile(
    r"(what|which|who|whose|whom|where|when|why|how|is|are|was|were|does?|did|can|could|will|would|has|have"
    r"|had|should)\b|.*\?\s*$",
    re.IGNORECASE | re.DOTALL,
)
# Small words of English, and of the languages with these letters that many people write; none is in both.
_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        "a an and are at behind by can color colour does for from front has have how in is it kind left many"
        " no not of on or person right than that the there this to type under was what when where which who"
        " with",
    )
)
_FOREIGN = frozenset(
    re.findall(
        r"\w+",
        "auf aus che chi combien con cor couleur cual cuál cuantos cuántos da das de dei der des di donde"
        " dónde dos dove e é ein eine el en er es esta está est et farbe gli het hay hoeveel hvad hvilken il"
        " ist kleur la las le les lo los mit och od o ona os où para per por pour qual quale quanti quantos"
        " que qué quel quelle quelles quem quién qui são sind sont sono sur todo tu um uma un una une und van"
        " vor waar wat welche welcher welches welke wer wie wo y zijn",
    )
)


def is_question(text: str) -> bool:
    """Whether an English text asks ("what color", "is it red") rather than names something."""
    return _QUESTION.match(text.strip()) is not None


def looks_foreign(text: str) -> bool:
    """Whether a text is in another language than English, as far as its small words and letters tell."""
    letters = [character for character in text if character.isalpha()]
    if sum(character > "\u024f" for character in letters) > len(letters) / 2:
        return True
    words = re.findall(r"\w+", text.lower())
    # Each once: "la la land poster" is English.
    foreign, english = (len(known.intersection(words)) for known in (_FOREIGN, _ENGLISH))
    return foreign >= 2 and foreign > english


def visualize(config: VisualizeConfig) -> StageResult:
    """Answer a question about images, or find an expression in them, and draw what was attended to.

    Each image leaves a trace (.npz) beside its figure. Traces in the place of images are drawn again, without
    the model; `config.results` draws a contact sheet of what a fine-tuned model answered.

    Raises:
        TbkinError: An image cannot be read, there is no checkpoint, or its features cannot be made. Of
            several images, those that cannot be read are told of in `problems`.
    """
    if config.results is not None:
        return _draw_sheet(config, config.results)
    return _draw_again(config) if config.redraws else _answer(config)


# ---- answering ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """An image to answer about: its file, or its id in a feature store."""

    path: Path | None
    image_id: str = ""

    @property
    def name(self) -> str:
        """For file names."""
        return self.path.stem if self.path is not None else _slug(self.image_id) or "image"

    def __str__(self) -> str:
        return self.image_id if self.path is None else str(self.path)


def _answer(config: VisualizeConfig) -> StageResult:
    from tbkin_core.features.pictures import load_image
    from tbkin_core.figures.trace import save_trace

    sources = [*map(_Source, config.images), *(_Source(None, image_id) for image_id in config.image_id)]
    # Of a VQA and a REC model, a question goes to the first and an expression to the second.
    wanted = "vqa" if is_question(config.question) else "rec"
    checkpoint = config.checkpoint or find_checkpoint(["vqa", "rec", "pretrain"], prefer=wanted)
    if len(config.images) == len(sources) == 1:
        # Reading an image is quick, and it is what people mistype; the model takes seconds to load.
        load_image(config.images[0], max_side=64)
    model = _Model(config, checkpoint)
    out = make_directory(config.out or ROOT / "visualize")
    entries: list[dict[str, Any]] = []
    files: list[Path] = []
    problems = model.problems
    traces: list[Trace] = []
    taken: set[str] = set()
    for source in progress(sources, "visualize", total=len(sources)) if len(sources) > 1 else sources:
        try:
            trace = model.trace(source)
        except DataError as error:
            if len(sources) == 1:
                raise
            problems.append(f"left out: {error.message}")
            continue
        name = _free_name("-".join([source.name, *model.name_parts]), taken)
        save_trace(out / f"{name}.npz", trace)
        figures = _draw_trace(config, out / name, trace)
        traces.append(trace)
        entries.append(
            model.values(source, trace)
            | {
                "figure": str(figures[0]),
                "trace": f"{out / name}.npz",
                "files": [str(file) for file in figures],
            }
        )
        files += figures if len(sources) > 1 else [*figures, out / f"{name}.npz"]
    if not entries:
        raise DataError(f"none of the {len(sources)} images can be shown: {problems[-1]}")
    return StageResult(
        files[0] if len(sources) == 1 else out,
        {**(entries[0] if len(sources) == 1 else {"images": entries}), "problems": problems},
        _tables(config, model, sources, traces, entries),
        problems,
        files,
    )


def _draw_trace(config: VisualizeConfig, base: Path, trace: Trace) -> list[Path]:
    """The figures of a trace in files that begin with `base`."""
    from tbkin_core.figures.attention import trace_figure
    from tbkin_core.figures.graph import graph_figure
    from tbkin_core.figures.page import write_page

    parts = [base.name, *([config.aggregate] if config.aggregate else [])]
    parts += [f"{name}{value}" for name in ("layer", "head") if (value := getattr(config, name)) is not None]
    parts += ["column"] if config.column else []
    files = []
    for suffix in dict.fromkeys(config.format):
        files.append(base.with_name(f"{'-'.join(parts)}.{suffix}"))
        trace_figure(files[-1], trace, config.aggregate, config.layer, config.head, config.column)
        if config.graph:
            files.append(base.with_name(f"{base.name}-graph.{suffix}"))
            graph_figure(files[-1], trace)
    if config.html:
        files.append(base.with_name(f"{base.name}.html"))
        write_page(files[-1], trace)
    return files


class _Model:
    """A checkpoint with all that it takes to answer about one image after the other."""

    def __init__(self, config: VisualizeConfig, checkpoint: Path) -> None:
        import numpy as np

        from tbkin_core.figures.views import check_choice
        from tbkin_core.modeling.checkpoint import load_model, load_model_config, task_of
        from tbkin_core.selection import TRANSFORMS, Selection, usual_threshold
        from tbkin_core.support.devices import torch_device
        from tbkin_core.texts.table import encode_texts
        from tbkin_core.texts.tokenizer import words_of

        self.config, self.checkpoint = config, checkpoint
        self.task = task_of(checkpoint)
        shape = load_model_config(checkpoint)
        check_choice(shape.num_hidden_layers, shape.num_attention_heads, config.layer, config.head)
        self.model, tokenizer = load_model(checkpoint, self.task)
        self.extractor: dict[str, Any] = self.model.config.extractor or {}
        self.problems: list[str] = []
        self.question = " ".join(config.question.split())
        limit = self.model.config.max_text_tokens
        table = encode_texts(tokenizer, [self.question], limit)
        if table.unknown[0]:
            raise DataError(
                f"question: none of its words is known to {checkpoint}: {_shortened(self.question)!r}",
                hint="the model knows the words it was trained on; ask in its language, in other words",
            )
        self.input_ids, self.attention_mask, word_ids = table.padded(np.array([0]))
        self.word_ids = word_ids[0]
        words = words_of(self.question)
        self.words = words[: int(self.word_ids.max()) + 1]
        self.pieces = [tokenizer.id_to_token(int(number)) or "[UNK]" for number in table.ids]
        if table.cut:
            self.problems.append(
                f"the question was cut to {limit} tokens: of its {len(words)} words the model read"
                f" {len(self.words)}, up to {self.words[-1]!r}"
            )
        if unknown := self._unknown_words():
            named = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
            self.problems.append(f"the model was trained without these words and reads past them: {named}")
        if looks_foreign(self.question):
            self.problems.append(
                "the question does not look English; the parser knows English only, and the model the words"
                " that it was trained on: do not trust this answer"
            )
        if not self.model.config.use_regions:
            self.problems.append("this model does not see the image: its answer is from the words alone")
        self.device = torch_device(resolve_devices(config.devices))
        self.model.to(self.device)
        own = self.model.config.attention_selection()
        rule, threshold = config.selection or own.rule, config.threshold
        if threshold is None:
            threshold = own.threshold if own.threshold and rule == own.rule else usual_threshold(rule)
        self.selection = Selection(rule, threshold, own.layers, own.scope)
        # The checkpoint answers as it was trained: with its own threshold, dense where that is 0.
        self.thresholded = bool(own.threshold)
        given = config.threshold is not None or config.selection is not None
        self.name_parts = [
            _slug(self.question) or "question",
            *([rule if rule in TRANSFORMS else f"{rule}-{threshold:g}"] if given else []),
        ]

    def _unknown_words(self) -> list[str]:
        """Words that the vocabulary lacks, or can only spell letter by letter."""
        pieces: dict[int, list[str]] = {}
        for piece, word in zip(self.pieces, self.word_ids.tolist(), strict=True):
            pieces.setdefault(word, []).append(piece.removeprefix("##"))
        unknown = [
            word
            for number, word in enumerate(self.words)
            if "[UNK]" in pieces[number] or (len(pieces[number]) > 1 and max(map(len, pieces[number])) == 1)
        ]
        return list(dict.fromkeys(unknown))

    def trace(self, source: _Source) -> Trace:
        """Both passes over one image.

        Raises:
            TbkinError: The image cannot be read, or there are no regions for it.
        """
        import numpy as np
        import torch

        from tbkin_core.features.pictures import load_image
        from tbkin_core.features.store import batch_of_one
        from tbkin_core.figures.trace import Trace
        from tbkin_core.selection import Selection
        from tbkin_core.training import to_device

        if source.path is not None:
            picture, width, height = load_image(source.path, max_side=_PICTURE_SIDE)
            regions, names, attributes = self._regions_of(source.path, (width, height))
            image_id = None
        else:
            regions, names, attributes = self._stored_regions(source.image_id)
            image_id = regions.image_id
            width, height = regions.image_width, regions.image_height
            picture = self._picture_of(image_id, width, height)
        most = self.model.config.max_regions
        batch = batch_of_one(regions)
        boxes = np.asarray(regions.boxes[:most], np.float32)
        inputs = to_device(
            {
                "input_ids": self.input_ids,
                "attention_mask": self.attention_mask,
                "region_features": batch.features[:, :most],
                "region_geometry": batch.geometry[:, :most],
                "region_mask": batch.mask[:, :most],
            },
            self.device,
        )
        passes = []
        with torch.inference_mode():
            for selection in (Selection(self.selection.rule, 0.0), self.selection):
                self.model.tbkin.selection = selection
                output = self.model(**inputs, output_attentions=True)
                passes.append(self._read(output, boxes, (width, height)))
        target = None
        key = image_id if source.path is None else self._key_of(source.path)
        looks = [_label(number, attributes, regions.attribute_ids) for number in range(len(boxes))]
        own = [_label(number, names, regions.object_ids) for number in range(len(boxes))]
        called = own if names else self._borrowed_names(key, boxes)
        labels = [name or look for name, look in zip(called, looks, strict=True)]
        # Borrowed names do not tell apart what a detector's own would: "black circle" beside "white circle".
        shown = (
            labels if names else [f"{look} {name}".strip() for name, look in zip(called, looks, strict=True)]
        )
        if self.task == "rec" and key is not None:
            target = self._target_of(key)
        trace = Trace(
            task=self.task,
            text=self.question,
            image=picture,
            image_size=(width, height),
            boxes=boxes,
            region_labels=shown,
            words=self.words,
            pieces=self.pieces,
            word_ids=self.word_ids,
            selection=self.selection.rule,
            threshold=self.selection.threshold,
            scope=self.selection.scope,
            layers=None if self.selection.layers is None else list(self.selection.layers),
            dense=passes[0],
            thresholded=passes[1],
            checkpoint=str(self.checkpoint),
            target_box=target,
            names_annotated=not names and any(called),
        )
        if not self.config.wants_graph:
            return trace
        if any(called):
            # Where names are known, a region without one is a piece of something or of nothing.
            looks = [look if name else "" for name, look in zip(called, looks, strict=True)]
        return replace(trace, graph=unified_graph(trace.text, boxes, labels, key, looks))

    def shown(self, trace: Trace) -> Pass:
        """The pass that counts as the model's answer."""
        return trace.thresholded if self.thresholded else trace.dense

    def values(self, source: _Source, trace: Trace) -> dict[str, Any]:
        """What --json says of an image."""
        shown = self.shown(trace)
        values = {
            "checkpoint": str(self.checkpoint),
            "task": self.task,
            "image": str(source),
            "question": self.question,
            "answers": _plain_answers(shown),
            "answers_dense": _plain_answers(trace.dense),
            "answers_thresholded": _plain_answers(trace.thresholded),
            "box": None if shown.box is None else [round(side, 1) for side in shown.box],
            "threshold": trace.threshold,
            "selection": trace.selection,
            "kept_fraction": trace.kept_fraction(),
        }
        if trace.target_box is not None and shown.box is not None:
            values["target_box"] = [round(side, 1) for side in trace.target_box]
            values["iou"] = _iou(shown.box, trace.target_box)
        return values

    def _read(self, output: Any, boxes: Any, size: tuple[int, int]) -> Pass:
        """Answers best first, or the regions of a grounding, and the attention of a batch of one."""
        import numpy as np
        import torch

        from tbkin_core.figures.trace import Pass
        from tbkin_core.selection import TRANSFORMS
        from tbkin_core.tasks import apply_deltas

        attention: dict[str, Any] = {
            "scores": torch.cat([record.scores for record in output.attentions]).half().cpu().numpy(),
            "kept": torch.cat([record.kept for record in output.attentions]).cpu().numpy(),
        }
        if self.selection.rule in TRANSFORMS:
            weights = torch.cat([record.weights for record in output.attentions])
            attention["attention"] = weights.half().cpu().numpy()
        if self.task == "vqa":
            answers = self.model.config.answers()
            best = output.vqa_logits[0].float().softmax(dim=-1).topk(min(self.config.top, len(answers)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            return Pass(**attention, answers=[(answers[number], value) for number, value in pairs])
        if self.task == "pretrain":
            match = float(output.itm_logits[0].float().softmax(dim=-1)[1])
            return Pass(**attention, answers=[("belong together", match), ("do not", 1 - match)])
        best = output.rec_scores[0].float().softmax(dim=-1).topk(min(max(self.config.top, 2), len(boxes)))
        order = best.indices.tolist()
        deltas = output.rec_deltas[0, order[0]].float().cpu().numpy()[None]
        refined = apply_deltas(boxes[order[0]][None], deltas, np.array([size], np.float32))[0]
        left, top, right, bottom = refined.tolist()
        return Pass(
            **attention,
            answers=[
                (f"region {number}", value)
                for number, value in zip(order[: self.config.top], best.values.tolist(), strict=False)
            ],
            chosen=order[0],
            runner_up=order[1] if len(order) > 1 else None,
            box=(left, top, right, bottom),
        )

    # ---- regions ----

    @cached_property
    def _extractor_again(self) -> Any:
        from tbkin_core.features.extractors.opening import reopen_extractor

        return reopen_extractor(self.extractor, self.config.devices)

    def _regions_of(self, path: Path, size: tuple[int, int]) -> tuple[RegionFeatures, list[str], list[str]]:
        """Regions of an image file: made anew as the checkpoint's were, or from a store that holds it."""
        from tbkin_core.datasets.image_index import trailing_number
        from tbkin_core.features.extractors import recorded_extractor
        from tbkin_core.features.extractors.base import regions_of_file

        row = recorded_extractor(self.extractor)
        made_anew = row is not None and row.from_image_alone
        if made_anew and self.config.features is None:
            regions = regions_of_file(self._extractor_again, path)
            return regions, self.extractor["object_names"], self.extractor["attribute_names"]
        beside = (
            [] if self.config.features else [parent / "features" for parent in path.resolve().parents[:4]]
        )
        for store in self._stores(beside):
            for key in (path.stem, path.name, trailing_number(path.stem)):
                # Another picture may have the same number; its size tells most of them apart.
                if key is not None and key in store:
                    regions = store[key]
                    if (regions.image_width, regions.image_height) == size:
                        return regions, store.object_names, store.attribute_names
        if self.config.features and row is not None and made_anew and not row.needs_torch:
            raise ConfigError(
                f"{self.config.features}: holds no image {path.stem!r}",
                hint="leave --features away: this checkpoint's features are made anew for any image",
            )
        raise ConfigError(
            f"{path}: the checkpoint was trained on features of kind {self.extractor.get('extractor')!r},"
            " and no feature store that holds this image was found",
            hint="name one with --features DIR, or use a checkpoint trained on --extractor builtin features",
        )

    def _stored_regions(self, image_id: str) -> tuple[RegionFeatures, list[str], list[str]]:
        """Regions of an image that a store holds."""
        stores = list(self._stores([self.data / "features"] if self.data else []))
        for store in stores:
            for key in (int(image_id) if re.fullmatch(r"-?\d{1,18}", image_id) else image_id, image_id):
                if key in store:
                    return store[key], store.object_names, store.attribute_names
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

    def _stores(self, beside: Sequence[Path]) -> Iterator[Any]:
        """Feature stores of the checkpoint's kind: the one asked for, or those beside and its own."""
        from tbkin_core.features.store import FeatureStore, feature_kind

        own = self.config.features
        places = [own] if own else [*beside, Path(self.extractor.get("store") or "features")]
        for place in dict.fromkeys(places):
            if place != own and not (place / MANIFEST).exists():
                continue
            if place not in self._opened:
                self._opened[place] = FeatureStore(place)
            store = self._opened[place]
            if feature_kind(store.settings) == feature_kind(self.extractor):
                yield store
            elif place == own:
                check_feature_kind(self.extractor, store, "the checkpoint")

    @cached_property
    def _opened(self) -> dict[Path, Any]:
        return {}

    # ---- what a dataset knows of an image ----

    @cached_property
    def data(self) -> Path | None:
        """The dataset that the checkpoint was trained on, or the one asked for."""
        found = self.config.data or settings_of(self.checkpoint).get("data")
        found = found[0] if isinstance(found, list) and found else found
        return Path(found) if found else None

    @cached_property
    def _dataset(self) -> Dataset | None:
        if self.data is None:
            return None
        try:
            return open_dataset(self.data)
        except TbkinError:
            if self.config.data is not None:
                raise
            return None  # the checkpoint has travelled; its dataset has not

    def _key_of(self, path: Path) -> ImageId | None:
        """Key of an image file in the dataset; None where it is not needed or the file lies elsewhere."""
        needed = self.task == "rec" or self.config.wants_graph
        if not needed or self.data is None or not path.resolve().is_relative_to(self.data.resolve()):
            return None
        for record in self._dataset.images() if self._dataset else ():
            if record.path is not None and record.path.name == path.name and record.path.samefile(path):
                return record.image_id
        return None

    def _picture_of(self, image_id: ImageId, width: int, height: int) -> Any:
        """The picture of an image of a store; plain white where no file of it is found."""
        import numpy as np

        from tbkin_core.features.pictures import load_image

        try:
            record = self._dataset.image(image_id) if self._dataset else None
        except DataError:
            record = None
        if record is not None and record.path is not None:
            picture, *size = load_image(record.path, max_side=_PICTURE_SIDE)
            if size == [width, height]:
                return picture
        self.problems.append(
            f"image {image_id}: no picture of it was found; name its dataset with --data DIR"
        )
        scale = min(1.0, _PICTURE_SIDE / max(width, height))
        return np.full((max(1, round(height * scale)), max(1, round(width * scale)), 3), 255, np.uint8)

    def _target_of(self, image_id: ImageId) -> tuple[float, float, float, float] | None:
        """The true box, where the dataset has this expression of this image."""
        wanted = self.question.casefold()
        for item in self._expressions:
            if item.image_id == image_id and " ".join(item.text.split()).casefold() == wanted:
                left, top, width, height = item.target_xywh
                return left, top, left + width, top + height
        return None

    @cached_property
    def _expressions(self) -> Sequence[Any]:
        if self._dataset is None or not self._dataset.expression_sets():
            return ()
        name = settings_of(self.checkpoint).get("dataset")
        return self._dataset.expressions(name=name if name in self._dataset.expression_sets() else None)

    def _borrowed_names(self, key: ImageId | None, boxes: NDArray[np.float32]) -> Sequence[str]:
        """Names of the annotated boxes that regions meet, as `build-graphs` gives them; "" where none is met.

        Of an image whose `key` was not looked up there are none: a figure of an answer does not wait for the
        annotations of a large dataset to be read.
        """
        from tbkin_core.boxes import xywh_to_xyxy
        from tbkin_core.graphs.build import borrowed_labels

        annotated = self._dataset.boxes().get(key, []) if key is not None and self._dataset else []
        corners = xywh_to_xyxy([box.xywh for box in annotated])
        return borrowed_labels(boxes, corners, [box.label for box in annotated], 0.5)


def unified_graph(
    text: str,
    boxes: Any,
    labels: Sequence[str],
    image_id: ImageId | None = None,
    looks: Sequence[str] | None = None,
    minimum: float = 0.5,
) -> dict[str, Any]:
    """The unified scene graph of a text and the regions of an image, as `UnifiedGraph.to_dict` writes it.

    A text object and a region are joined where the region's label is like the object's name. Where a region
    has no name but a look ("red"), or the object none of its own ("the red thing"), they are joined where the
    look is like an attribute that the text gives the object; where the object has a name, that counts half.

    Args:
        text: One sentence.
        boxes: (K, 4) xyxy pixels.
        labels: K names, or looks in their place, "" where unknown.
        image_id: Of the image, if known.
        looks: K attributes, "" where unknown; `labels` when None.
        minimum: Least weight of an edge between the modalities.
    """
    import numpy as np

    from tbkin_core.graphs.unified import CrossEdges, UnifiedGraph, cross_edges, region_edges
    from tbkin_core.names.similarity import make_similarity
    from tbkin_core.parsing.parser import CaptionParser

    graph = next(iter(CaptionParser().parse([text])))
    similarity = make_similarity()
    named = cross_edges([item.name for item in graph.objects], labels, similarity, minimum)
    looks = labels if looks is None else looks
    described = cross_edges([item.name for item in graph.attributes], looks, similarity, minimum)
    weights: dict[tuple[int, int], float] = {}
    for number, region, weight in zip(named.object, named.region, named.weight, strict=True):
        weights[int(number), int(region)] = float(weight)
    for number, region, weight in zip(described.object, described.region, described.weight, strict=True):
        owner = graph.attributes[number].object
        # A named region that looks alike is another thing: a red heart is no red cross.
        nameless = graph.objects[owner].name in _ANYTHING
        if nameless or labels[region] in ("", looks[region]):
            place = (owner, int(region))
            weights[place] = max(weights.get(place, 0.0), float(weight) * (1.0 if nameless else _LOOK_WEIGHT))
    pairs = np.array(sorted(weights), np.int32).reshape(-1, 2)
    return UnifiedGraph(
        text_id=0,
        image_id=image_id,
        text=text,
        graph=graph,
        boxes=np.asarray(boxes, np.float32),
        labels=tuple(labels),
        image_edges=region_edges(boxes),
        cross=CrossEdges(
            pairs[:, 0], pairs[:, 1], np.array([weights[place] for place in sorted(weights)], np.float32)
        ),
    ).to_dict()


# ---- tables -------------------------------------------------------------------------------------


def _tables(
    config: VisualizeConfig,
    model: _Model,
    sources: Sequence[_Source],
    traces: Sequence[Trace],
    entries: Sequence[dict[str, Any]],
) -> list[Table]:
    heading = {"vqa": "answer", "rec": "region", "pretrain": "image and text"}[model.task]
    title = f"{_shortened(model.question)}  ({model.checkpoint})"
    sides = ["dense", model.selection.name]
    if len(sources) > 1:
        rows = []
        for entry, trace in zip(entries, traces, strict=True):
            cells = [f"{_told(trace, name)} ({_percent(value)})" for name, value in _firsts(trace)]
            rows.append([entry["image"], *cells, *([_corners(entry["box"])] if model.task == "rec" else [])])
        columns = ["image", *sides, *(["box"] if model.task == "rec" else [])]
        return [Table(title, columns, rows)]
    (trace,) = traces
    tables = [Table(title, [heading, *sides], _answer_rows(trace))]
    box = model.shown(trace).box
    if box is not None:
        columns, cells = ["x1", "y1", "x2", "y2"], [f"{side:.0f}" for side in box]
        if trace.target_box is not None:
            columns, cells = [*columns, "IoU with the target"], [*cells, f"{_iou(box, trace.target_box):.2f}"]
        tables.append(Table("box (x1, y1, x2, y2) in pixels", columns, [cells]))
    return tables


def _firsts(trace: Trace) -> list[tuple[str, float]]:
    return [content.answers[0] for content in (trace.dense, trace.thresholded)]


def _corners(box: Sequence[float]) -> str:
    return ", ".join(f"{side:.0f}" for side in box)


def _plain_answers(content: Pass) -> list[dict[str, Any]]:
    return [{"answer": name, "probability": value} for name, value in content.answers]


def _answer_rows(trace: Trace) -> list[list[str]]:
    dense, sparse = dict(trace.dense.answers), dict(trace.thresholded.answers)
    return [
        [_told(trace, name), *(_percent(side[name]) if name in side else "" for side in (dense, sparse))]
        for name in dict.fromkeys([*dense, *sparse])
    ]


def _told(trace: Trace, answer: str) -> str:
    """An answer as tables have it: a region with its label, "region 3 (red)"."""
    label = ""
    if trace.task == "rec" and (found := re.fullmatch(r"region (\d+)", answer)):
        label = trace.region_labels[int(found[1])]
    return f"{answer} ({label})" if label else answer


def _percent(fraction: float) -> str:
    """Never "0.0 %" or "100.0 %" for what is only nearly so."""
    if 0 < fraction < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= fraction < 1 else f"{100 * fraction:.1f} %"


def _iou(box: Any, other: Any) -> float:
    import numpy as np

    from tbkin_core.boxes import box_iou_paired

    return round(float(box_iou_paired(np.array([box]), np.array([other]))[0]), 4)


def _label(number: int, names: Sequence[str], ids: Any) -> str:
    return names[int(ids[number])] if number < len(ids) and 0 <= ids[number] < len(names) else ""


def _shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:48]


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with a number where an image before it in this call has the same."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free)
    return free


# ---- drawing again ------------------------------------------------------------------------------


def _draw_again(config: VisualizeConfig) -> StageResult:
    """Figures of traces, beside them or in `config.out`; no model is loaded."""
    from tbkin_core.figures.trace import load_trace

    files: list[Path] = []
    rows: list[list[str]] = []
    entries: list[dict[str, Any]] = []
    out = None if config.out is None else make_directory(config.out)
    for path in config.images:
        trace = load_trace(path)
        if config.wants_graph and trace.graph is None:
            trace = replace(trace, graph=unified_graph(trace.text, trace.boxes, trace.region_labels))
        figures = _draw_trace(config, (out or path.parent) / path.stem, trace)
        files += figures
        cells = [f"{_told(trace, name)} ({_percent(value)})" for name, value in _firsts(trace)]
        rows.append([str(path), _shortened(trace.text, 40), *cells, trace.checkpoint])
        entries.append(
            {
                "trace": str(path),
                "figure": str(figures[0]),
                "question": trace.text,
                "answers_dense": _plain_answers(trace.dense),
                "answers_thresholded": _plain_answers(trace.thresholded),
            }
        )
    table = Table("Drawn again", ["trace", "text", "dense", "thresholded", "checkpoint"], rows)
    return StageResult(out or files[0].parent, {"images": entries, "problems": []}, [table], [], files)


# ---- sheets of results --------------------------------------------------------------------------


def _draw_sheet(config: VisualizeConfig, file: Path) -> StageResult:
    """A contact sheet of what a fine-tuned model answered to a split, by question type."""
    import numpy as np

    from tbkin_core.features.pictures import load_image
    from tbkin_core.figures.contact_sheet import COLUMNS, SheetGroup, SheetItem, contact_sheet

    content = _read_results(file)
    rows = content["results"]
    data = config.data or Path(content["data"])
    dataset = open_dataset(data)
    chosen = choose_results(rows, config.wrong, config.limit, COLUMNS)
    if not chosen:
        raise DataError(f"{file}: none of its {len(rows)} answers is wrong", hint="leave --wrong away")
    problems: list[str] = []
    missing = 0
    groups = []
    table = []
    for kind, members in chosen.items():
        of_kind = [row for row in rows if row["type"] == kind]
        failed = sum(_is_wrong(row) for row in of_kind)
        share = f"{failed:,} of {len(of_kind):,} wrong ({100 * failed / len(of_kind):.1f} %)"
        items = []
        for row in members:
            picture, scale = None, np.ones(4)
            try:
                path = dataset.image(row["image_id"]).path
                if path is not None:
                    picture, width, height = load_image(path, max_side=400)
                    scale = np.array([picture.shape[1] / width, picture.shape[0] / height] * 2)
            except DataError as error:
                problems.append(error.message)
            missing += picture is None
            boxes: dict[str, Any] = {
                name: np.asarray(row[name]) * scale if name in row else None for name in ("box", "target")
            }
            items.append(SheetItem(picture, row["text"], *_in_words(row), not _is_wrong(row), **boxes))
        groups.append(SheetGroup(f"{kind}: {share}" if kind else share, items))
        table.append([kind or "all", str(failed), str(len(of_kind)), str(len(members))])
    if missing:
        problems.insert(0, f"{missing} pictures are not in {data}; name the dataset with --data DIR")
    shown, failed = sum(map(len, chosen.values())), sum(map(_is_wrong, rows))
    what = f"{shown} of {failed:,} wrong answers" if config.wrong else f"{shown} of {len(rows):,} answers"
    caption = "The surest come first, of each image one before any second. "
    if content["task"] == "rec":
        caption += "Solid: the box that the model chose, dotted: the target."
    else:
        caption += "✗ what the model answered with its probability, ✓ what is right."
    out = make_directory(config.out or ROOT / "visualize")
    name = f"{_slug(Path(content['checkpoint']).name)}-{_slug(content['split'])}"
    files = []
    for suffix in dict.fromkeys(config.format):
        files.append(out / f"{name}-{'wrong' if config.wrong else 'answers'}.{suffix}")
        title = f"{content['checkpoint']} on {content['split']}: {what}"
        contact_sheet(files[-1], groups, title=title, caption=caption)
    values = {
        "figure": str(files[0]),
        "task": content["task"],
        "split": content["split"],
        "wrong": failed,
        "answers": len(rows),
        "shown": [{"type": kind, **row} for kind, members in chosen.items() for row in members],
        "problems": problems,
    }
    tables = [Table(f"{what} to {content['split']}", ["type", "wrong", "of", "shown"], table)]
    return StageResult(files[0], values, tables, problems, files)


def _read_results(file: Path) -> dict[str, Any]:
    """The results of a fine-tuned model, as `tbkin_core.training_runs` writes them.

    Raises:
        DataError: The file is missing, broken, or of something else.
    """
    hint = "give results-SPLIT.json from the directory of a `tbkin finetune` run"
    if file.is_dir():
        found = sorted(file.glob("results-*.json"))
        raise DataError(
            f"{file}: is a directory, expected a file of results",
            hint=f"it holds {', '.join(map(str, found))}" if found else hint,
        )
    if not file.exists():
        raise DataError(f"{file}: there is no such file", hint=hint)
    content = read_json(file)
    needed = ("task", "split", "checkpoint", "data", "results")
    if not isinstance(content, dict) or any(name not in content for name in needed):
        raise DataError(f"{file}: holds no results of `tbkin finetune`", hint=hint)
    keys: tuple[str, ...] = ("image_id", "text", "type", "score", "probability")
    keys += ("box", "target", "iou") if content["task"] == "rec" else ("answer", "answers")
    rows = content["results"]
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: holds no answers", hint=hint)
    for number, row in enumerate(rows):
        lacking = [name for name in keys if not isinstance(row, dict) or name not in row]
        if lacking:
            raise DataError(f"{file}: result {number} lacks {', '.join(lacking)}", hint=hint)
    return content


def choose_results(
    rows: Sequence[dict[str, Any]], wrong: bool, limit: int, in_a_row: int
) -> dict[str, list[dict[str, Any]]]:
    """Which results a sheet shows, by question type, the type with the most candidates first.

    A type gets a row of the sheet at a time, those with the most candidates left first, so that few rows
    show different types. Within a type the surest answers come first, of each image one before any second.

    Args:
        rows: All results.
        wrong: Take the wrong ones alone.
        limit: How many at most.
        in_a_row: How many stand in a row.
    """
    by_type: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -row["probability"]):
        if not wrong or _is_wrong(row):
            by_type.setdefault(row["type"], []).append(row)
    counts = dict.fromkeys(sorted(by_type, key=lambda kind: (-len(by_type[kind]), kind)), 0)
    left = limit
    while left and any(counts[kind] < len(by_type[kind]) for kind in counts):
        kind = min(counts, key=lambda kind: (counts[kind] >= len(by_type[kind]), counts[kind]))
        taken = min(in_a_row, left, len(by_type[kind]) - counts[kind])
        counts[kind] += taken
        left -= taken
    chosen = {}
    for kind, count in counts.items():
        seen: Counter[Any] = Counter()
        turns = []  # of each row: how many of its image come before it
        for row in by_type[kind]:
            turns.append(seen[row["image_id"]])
            seen[row["image_id"]] += 1
        order = sorted(range(len(turns)), key=turns.__getitem__)
        if count:
            chosen[kind] = [by_type[kind][place] for place in order[:count]]
    return chosen


def _is_wrong(row: dict[str, Any]) -> bool:
    """Whether an answer earns less than half of its point; a box earns all or nothing."""
    return bool(row["score"] < 0.5)


def _in_words(row: dict[str, Any]) -> tuple[str, str]:
    """What was answered and what is right."""
    if "box" in row:
        return f"IoU {row['iou']:.2f} ({row['probability']:.2f})", ""
    best = sorted(row["answers"], key=lambda answer: -row["answers"][answer])
    return f"{row['answer']} ({row['probability']:.2f})", "" if not _is_wrong(row) else " / ".join(best[:3])
