"""`tbkin build-graphs`: captions of a dataset to the unified scene graphs in its graph store."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from tbkin_core.boxes import turned
from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.datasets.formats.made import EXPRESSION_SET
from tbkin_core.datasets.layout import named_like_annotations
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.expressions.make import (
    ExpressionFiles,
    annotated_images,
    check_expression_places,
    make_expressions,
    named_images,
    write_expressions,
)
from tbkin_core.features.store import FeatureStore
from tbkin_core.graphs.build import Recipe, build_dataset
from tbkin_core.graphs.exports import (
    check_jsonl_place,
    check_networkx_place,
    check_two_places,
    export_jsonl,
    export_networkx,
)
from tbkin_core.graphs.store import GraphStore
from tbkin_core.names.similarity import make_similarity
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.questions.kinds import KINDS
from tbkin_core.questions.make import (
    QuestionFiles,
    QuestionRecipe,
    captioned_images,
    check_question_places,
    make_questions,
    write_questions,
)
from tbkin_core.results import BuildGraphsResult, CaptionGraphsResult
from tbkin_core.settings import BuildGraphsConfig, dump_config
from tbkin_core.stages.caption_graphs import caption_graphs, is_missing_file
from tbkin_core.support.console import progress, shortened
from tbkin_core.support.files import write_text
from tbkin_core.support.shards import MANIFEST, store_place
from tbkin_core.texts.language import looks_foreign

_MOST_LOOKED_AT = 20_000  # captions, to tell their language in less than a second


def build_graphs(config: BuildGraphsConfig) -> BuildGraphsResult | CaptionGraphsResult:
    """Build the unified scene graphs of a dataset's captions, or the text scene graphs of captions alone.

    Raises:
        TbkinError: As `tbkin_core.graphs.build.build_dataset` and `caption_graphs`.
    """
    if config.data is None or config.data.is_file() or is_missing_file(config.data):
        return caption_graphs(config)
    dataset = open_dataset(config.data)
    out = store_place(config.out, config.data, "graphs")
    _check_export_places(config, dataset, out)  # before the work, not after it
    if config.questions:
        _check_questions(dataset)
    if config.expressions:
        _check_expressions(config, dataset)
    made: ExpressionFiles | None = None
    if config.expressions and not _has_texts(dataset):
        made = _make_expressions(config, dataset)  # they are what graphs are built of
        dataset = open_dataset(config.data)
    place = _feature_place(config)
    features = FeatureStore(place) if config.features or (place / MANIFEST).exists() else None
    problems = _feature_notes(dataset, config.data, place, features)
    recipe = Recipe(
        partial(CaptionParser, config.parser),
        partial(make_similarity, config.similarity, config.similarity_model),
        config.min_similarity,
        config.label_iou,
        needs_torch=config.parser != "builtin" or config.similarity == "encoder",
    )
    if features is not None and not features.object_names and not dataset.boxes():
        problems.append(
            "the regions have no labels (features without object names, no annotated boxes):"
            " there are no cross-modal edges"
        )
        if features.extractor == "import" and (features.gather([0]).object_ids >= 0).any():
            problems.append(
                f"{place}: regions are numbered, but an earlier version imported them without the names:"
                f" `tbkin extract-features {config.data} --overwrite` imports these too"
            )
    with contextlib.ExitStack() as stack:  # keeps other processes out until all is written
        build = build_dataset(dataset, out, features, recipe, config.workers, config.overwrite, stack)
        problems += [*dataset.problems, *_language_notes(dataset)]
        write_text(out / "config.yaml", dump_config(config))
        result = BuildGraphsResult(
            out=out, made=build.made, present=build.present, missing=build.missing, problems=problems
        )
        if build.summary is None:
            result.problems.append(
                f"{build.missing} shards of other ranks are missing: the rank that ends last completes the"
                " store; what a rank has left out, the same command builds when it is run again"
            )
            return result
        files = []
        if config.export is not None:
            export_jsonl(build.store, config.export, len(build.store))
            files.append(config.export)
        if config.networkx is not None:
            export_networkx(progress(build.store, "networkx", total=len(build.store)), config.networkx)
            files.append(config.networkx)
        summary = dict(build.summary)
        if config.expressions:
            made = made or _make_expressions(config, dataset)
            files += made.paths
            summary |= {"expressions": made.counts, "images_referred_in": made.images}
            if not made.paths:
                what = "no object is surely meant by any words, or the sizes of the images are not known"
                result.problems.append(f"no expressions could be made: {what}")
        if config.questions:
            asked = _make_questions(config, dataset, build.store)
            files += asked.paths
            summary |= {"questions": asked.counts, "images_asked_about": asked.images}
            if not asked.paths:
                why = "" if config.unbalanced else " that do not tell their answer, see --unbalanced"
                result.problems.append(f"no questions could be made: of these captions none are left{why}")
        return replace(result, summary=summary, files=files)


def _made_place(dataset: Dataset, name: str) -> Path:
    """Where questions or expressions that are made of a dataset go: into it, for they belong to it."""
    return dataset.path / name


def _make_questions(config: BuildGraphsConfig, dataset: Dataset, store: GraphStore) -> QuestionFiles:
    """The questions that a store's captions answer, on disk."""
    recipe = QuestionRecipe(
        config.questions_per_image, config.question_kinds or KINDS, not config.unbalanced, config.seed
    )
    splits = {record.image_id: record.split for record in dataset.images()}
    images = captioned_images(store, len(dataset.captions(whole=True)), splits)
    return write_questions(_made_place(dataset, "questions"), make_questions(images, recipe), recipe)


def _has_texts(dataset: Dataset) -> bool:
    """Whether there is anything to build graphs of but expressions that were made."""
    people_s = [name for name in dataset.expression_sets() if name != EXPRESSION_SET]
    return bool(dataset.captions() or people_s or dataset.question_splits())


def _check_expressions(config: BuildGraphsConfig, dataset: Dataset) -> None:
    """Refuse to make expressions of nothing, or where something else would be lost."""
    named = (_feature_place(config) / MANIFEST).exists()
    if not (dataset.has_boxes or dataset.has_gold_graphs or named):
        raise DataError(
            f"{dataset.path}: --expressions are made of annotated boxes or named regions, and there are none",
            hint="add COCO's instances_*.json or Visual Genome's objects.json; or run"
            f" `tbkin extract-features {config.data}` with an extractor that names regions",
        )
    check_expression_places(_made_place(dataset, "expressions"))


def _feature_place(config: BuildGraphsConfig) -> Path:
    assert config.data is not None
    return config.features or config.data / "features"


def _make_expressions(config: BuildGraphsConfig, dataset: Dataset) -> ExpressionFiles:
    """Expressions that refer to a dataset's annotated objects, else to the named regions of its features."""
    if dataset.has_boxes or dataset.has_gold_graphs:
        images = annotated_images(dataset)
    else:
        images = named_images(dataset, FeatureStore(_feature_place(config)))
    referred = make_expressions(images, config.expressions_per_image, config.seed)
    return write_expressions(_made_place(dataset, "expressions"), referred, dataset.root, config.seed)


def _check_export_places(config: BuildGraphsConfig, dataset: Dataset, out: Path) -> None:
    """Refuse exports that would be read as part of the dataset, or take each other's or the store's place."""
    for setting, path in {"export": config.export, "networkx": config.networkx}.items():
        if path is not None and dataset.root in path.absolute().parents and named_like_annotations(path):
            raise ConfigError(
                f"{setting}: {path} would be read as an annotation file of the dataset",
                hint="name it graphs.jsonl or graphs.graphml, or put it elsewhere",
            )
    check_two_places(config.export, config.networkx)
    if config.export is not None:
        check_jsonl_place(config.export, out)
    if config.networkx is not None:
        check_networkx_place(config.networkx, out)


def _check_questions(dataset: Dataset) -> None:
    """Refuse to make questions of what are no captions, or where something else would be lost."""
    captions = dataset.captions(whole=True)
    if not any(caption.image_id is not None for caption in captions):
        parts = " (those of Visual Genome's regions are of parts)" if dataset.captions() else ""
        raise DataError(
            f"{dataset.path}: --questions are made of captions of whole images, and there are none{parts}",
            hint="add captions: COCO's captions_*.json, or a JSONL file with lines such as"
            ' {"image": "dog.jpg", "text": "a dog on a sofa"}',
        )
    splits = dict.fromkeys(record.split for record in dataset.images())
    check_question_places(_made_place(dataset, "questions"), splits)


def _language_notes(dataset: Dataset) -> list[str]:
    """A note where captions are in other languages, whose words would be read as English ones."""
    captions = dataset.captions()
    looked = captions[:: max(-(-len(captions) // _MOST_LOOKED_AT), 1)]
    foreign = [caption.text for caption in looked if looks_foreign(caption.text, least=1)]
    # Of English captions fewer than 1 in 1,000 look foreign.
    if len(foreign) < max(3, len(looked) / 100):
        return []
    return [
        f"{len(foreign):,} of {len(looked):,} captions looked at do not look English, such as"
        f" {shortened(foreign[0])!r}: the parser knows English only, leave them out or translate them"
    ]


def _stray_notes(dataset: Dataset, place: Path, features: FeatureStore) -> list[str]:
    """A note on captions of images that have no regions; misspelt names are a common cause."""
    captions = dataset.captions()
    named = [caption.image_id for caption in captions]
    stray = [name for name in named if name is not None and name not in features]
    if not stray:
        return []
    return [
        f"{len(stray):,} of {len(captions):,} captions are about images without regions in {place}, such as"
        f" {shortened(str(stray[0]))!r}: they have no anchors, and pretraining leaves them out"
    ]


def _size_notes(dataset: Dataset, features: FeatureStore) -> list[str]:
    """A note on images whose annotations were drawn on a picture of another shape."""
    if not dataset.boxes():
        return []
    sizes = {
        it.image_id: ((it.width or 0, it.height or 0), features.size_of(it.image_id))
        for it in dataset.images()
        if it.image_id in features
    }
    wrong = {name: pair for name, pair in sizes.items() if features.scale_from(pair[0], name) is None}
    if not wrong:
        return []
    name, (drawn, shown) = next(iter(wrong.items()))
    which = f"boxes on {drawn[0]} x {drawn[1]} pixels, features of {shown[0]} x {shown[1]}"
    return [
        f"{len(wrong)} images take nothing from their annotated boxes, which were drawn on pictures of"
        f" another shape: image {name}, {which}{turned(drawn, shown)}"
    ]


def _feature_notes(dataset: Dataset, data: Path, place: Path, features: FeatureStore | None) -> list[str]:
    """What a user should know where features are missing; `data` and `place` as messages name them."""
    command = f"`tbkin extract-features {data}`"
    if features is not None and features.complete:
        return [*_stray_notes(dataset, place, features), *_size_notes(dataset, features)]
    if features is not None:
        return [
            f"{place}: extracting these features was interrupted; captions of images that it lacks have no"
            f" regions: run {command} again, then this command with --overwrite"
        ]
    if dataset.boxes():
        return [
            f"no features at {place}: regions are the annotated boxes; for pretraining run {command} first"
        ]
    if dataset.bottom_up_files() or dataset.feature_tables():
        return [
            f"the features that lie in {data} are not imported yet: these graphs have no regions; run"
            f" {command}, then this command with --overwrite"
        ]
    return [
        f"no features at {place} and no annotated boxes: these graphs have no regions; for some run"
        f" {command}, then this command with --overwrite"
    ]
