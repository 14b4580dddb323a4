"""The six subcommands. Each turns options into settings and calls one function of `tbkin_core.stages`."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from tbkin_cli import options
from tbkin_cli.output import errors_as_messages, show
from tbkin_core.features.extractors import extractor_help


class _Group(typer.core.TyperGroup):
    """The subcommands. An empty argument is refused: as a path it would be the current directory."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # `visualize` has its own word for an empty question.
        if any(not arg or re.fullmatch("--[a-z-]+=", arg) for arg in args) and args[0] != "visualize":
            raise typer.BadParameter("one is empty, perhaps from a shell variable that is not set", ctx)
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="tbkin",
    cls=_Group,
    help="TBKIN: scene-graph guided pretraining and thresholded attention, from images to answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _run(
    stage: str, config_class: str, file: Path | None, as_json: bool, quiet: bool, flags: dict[str, Any]
) -> None:
    with errors_as_messages():
        from tbkin_core import settings as configs
        from tbkin_core.support.console import setup_logging
        from tbkin_core.support.ranks import rank

        setup_logging(quiet)
        settings = configs.load_config(getattr(configs, config_class), file, flags)
        from tbkin_core import stages

        result = getattr(stages, stage)(settings)
        # Ranks that share a store end on their own; the last one, whichever it is, has the summary.
        if rank() == 0 or stage in ("extract_features", "build_graphs"):
            show(result, as_json, quiet)
    logging.shutdown()


@app.command("extract-features", epilog="Example: tbkin extract-features coco/")
def extract_features(
    data: Annotated[
        Path, typer.Argument(help="Dataset directory, or a directory of images.", metavar="DATA")
    ],
    extractor: Annotated[
        str | None,
        typer.Option(
            help=extractor_help(),
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Vision model that gives the region vectors: hub id or directory.", show_default=False
        ),
    ] = None,
    backbone_side: Annotated[
        int | None,
        typer.Option(help="Pixels a side of what it sees.  [default: its own]", show_default=False),
    ] = None,
    max_regions: Annotated[
        int | None, typer.Option(help="Regions an image at most.  [default: 36]", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes.  [default: all processors]", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a model sees together.  [default: 8]", show_default=False)
    ] = None,
    out: options.Out = None,
    overwrite: options.Overwrite = None,
    config: options.Config = None,
    devices: options.Devices = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Images to region features, in DATA/features."""
    _run("extract_features", "ExtractFeaturesConfig", config, json, quiet, _flags(locals()))


@app.command("build-graphs", epilog="Example: tbkin build-graphs coco/ --export graphs.jsonl")
def build_graphs(
    data: Annotated[Path, typer.Argument(help="Dataset directory with captions.", metavar="DATA")],
    parser: Annotated[
        str | None, typer.Option(help="builtin, or a spaCy pipeline by name or path.", show_default=False)
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Feature store.  [default: DATA/features]", show_default=False)
    ] = None,
    min_similarity: Annotated[
        float | None,
        typer.Option(help="Keep cross-modal edges from here up.  [default: 0.5]", show_default=False),
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option(
            help="What weighs these edges: lexical (needs no model), vectors or encoder.", show_default=False
        ),
    ] = None,
    similarity_model: Annotated[
        str | None,
        typer.Option(help="Pipeline for vectors, or sentence encoder; name or path.", show_default=False),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Also write every graph as JSON lines.", show_default=False)
    ] = None,
    networkx: Annotated[
        Path | None,
        typer.Option(
            help="Also write every graph for networkx: FILE.graphml, FILE.json, or a directory.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes; 0 for none.  [default: all processors above 2,000 captions]", show_default=False
        ),
    ] = None,
    out: options.Out = None,
    overwrite: options.Overwrite = None,
    config: options.Config = None,
    devices: options.Devices = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Captions to unified scene graphs, in DATA/graphs.

    Started once a rank by torchrun or srun with one DATA and --out, the ranks share the work; the last one
    to end completes the store. Interrupted, the same command goes on; the result is the same bytes.
    """
    _run("build_graphs", "BuildGraphsConfig", config, json, quiet, _flags(locals()))


@app.command("pretrain", epilog="Example: tbkin pretrain coco/ --size small --epochs 20")
def pretrain(
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Dataset directories with features and graphs.", metavar="DATA", show_default=False
        ),
    ] = None,
    features: Annotated[
        list[Path] | None,
        typer.Option(help="Feature store of each.  [default: DATA/features]", show_default=False),
    ] = None,
    graphs: Annotated[
        list[Path] | None,
        typer.Option(help="Graph store of each.  [default: DATA/graphs]", show_default=False),
    ] = None,
    weights: Annotated[
        list[float] | None,
        typer.Option(
            help="How often an epoch shows the captions of each: 2 twice, 0.5 half of them.  [default: 1]",
            show_default=False,
        ),
    ] = None,
    size: options.Size = None,
    init: options.Init = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    max_minutes: options.MaxMinutes = None,
    max_text_tokens: options.MaxTextTokens = None,
    precision: options.Precision = None,
    tensorboard: options.Tensorboard = None,
    out: options.Out = None,
    overwrite: options.Overwrite = None,
    config: options.Config = None,
    devices: options.Devices = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pretrain with structural knowledge masking.

    The model lands in runs/pretrain.
    """
    _run("pretrain", "PretrainConfig", config, json, quiet, _flags(locals()))


@app.command("finetune", epilog="Example: tbkin finetune --task vqa --threshold 0.3")
def finetune(
    task: options.Task = None,
    data: Annotated[
        Path | None, typer.Option(help="Dataset directory.  [default: found here]", show_default=False)
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Feature store.  [default: DATA/features]", show_default=False)
    ] = None,
    dataset: options.Dataset = None,
    train_split: Annotated[
        str | None,
        typer.Option(help="Split to train on, or several: train+val.  [default: train]", show_default=False),
    ] = None,
    threshold: options.Threshold = None,
    selection: options.SelectionRule = None,
    threshold_scope: Annotated[
        str | None, typer.Option(help="all, cross-modal, text-to-image or image-to-text.", show_default=False)
    ] = None,
    threshold_layers: Annotated[
        list[int] | None,
        typer.Option(help="Layers that select; repeat the option.  [default: all]", show_default=False),
    ] = None,
    straight_through: Annotated[
        bool | None, typer.Option("--straight-through", help="Dropped keys get gradient.", show_default=False)
    ] = None,
    threshold_epochs: Annotated[
        float | None,
        typer.Option(help="Epochs over which the threshold grows from 0.  [default: 0]", show_default=False),
    ] = None,
    blind: Annotated[
        bool | None,
        typer.Option("--blind", help="Hide the image: the question-only baseline.", show_default=False),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="JSON list of answers.  [default: those of the data]", show_default=False),
    ] = None,
    min_answer_count: Annotated[
        int | None, typer.Option(help="Learn answers given at least so often.", show_default=False)
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without improvement.", show_default=False)
    ] = None,
    predict: Annotated[
        list[str] | None,
        typer.Option(
            help="Split to write predictions of, for an evaluation server; repeat for several.",
            show_default=False,
        ),
    ] = None,
    size: options.Size = None,
    init: options.Init = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    max_minutes: options.MaxMinutes = None,
    max_text_tokens: options.MaxTextTokens = None,
    precision: options.Precision = None,
    tensorboard: options.Tensorboard = None,
    out: options.Out = None,
    overwrite: options.Overwrite = None,
    config: options.Config = None,
    devices: options.Devices = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune for questions or referring expressions.

    The model lands in a directory of its own in runs/finetune.
    """
    _run("finetune", "FinetuneConfig", config, json, quiet, _flags(locals()))


@app.command("threshold-sweep", epilog="Example: tbkin threshold-sweep --task vqa --thresholds 0:0.9:0.1")
def threshold_sweep(
    task: options.Task = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Fine-tuned model.  [default: the latest]", show_default=False)
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            help="start:stop:step, or a list with commas.  [default: 0:0.9:0.1]", show_default=False
        ),
    ] = None,
    selection: Annotated[
        list[str] | None,
        typer.Option(
            help="relative, probability, score, topk, sparsemax or entmax15; repeat for several; topk=1,4,16"
            " has thresholds of its own.",
            show_default=False,
        ),
    ] = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit",
            help="Fine-tune once for every threshold, with the settings of the checkpoint.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="With --refit: runs for every threshold.  [default: 1]", show_default=False),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="With --refit: of each run.  [default: the checkpoint's]", show_default=False),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="With --refit: stop each run after so long.", show_default=False)
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="With --refit: weights every run begins from.  [default: the checkpoint's]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Dataset directory.  [default: the checkpoint's]", show_default=False)
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Feature store.  [default: DATA/features]", show_default=False)
    ] = None,
    dataset: options.Dataset = None,
    split: Annotated[
        str | None, typer.Option(help="Split to evaluate.  [default: val]", show_default=False)
    ] = None,
    batch_size: options.BatchSize = None,
    out: options.Out = None,
    overwrite: options.Overwrite = None,
    config: options.Config = None,
    devices: options.Devices = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Accuracy, sparsity and speed at every threshold.

    The checkpoint is evaluated as it is, or with --refit a model is fine-tuned for each threshold from the
    same initial weights. Table and figures land in runs/threshold-sweep. Interrupted, the same command goes
    on.
    """
    _run("threshold_sweep", "ThresholdSweepConfig", config, json, quiet, _flags(locals()))


@app.command("visualize", epilog='Example: tbkin visualize img.jpg "what color is the dog?"')
def visualize(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, then the question, or the expression for a REC checkpoint. Or traces (.npz)"
            " alone, to draw them again.",
            metavar="IMAGE... QUESTION",
            show_default=False,
        ),
    ] = None,
    image_id: Annotated[
        list[str] | None,
        typer.Option(
            help="Image by its id in the feature store, in place of a file; repeat for several.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Fine-tuned model.  [default: the latest]", show_default=False)
    ] = None,
    threshold: options.Threshold = None,
    selection: options.SelectionRule = None,
    aggregate: Annotated[
        str | None,
        typer.Option(
            help="Attention shown: rollout (over all layers) or last (layer, mean of heads).  [default: last"
            " for answers, rollout for expressions]",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Show this layer alone, from 0.", show_default=False)
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(help="Show this head alone, from 0, of --layer or the last one.", show_default=False),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Feature store that holds the image.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Dataset of the images.  [default: the checkpoint's]", show_default=False),
    ] = None,
    top: Annotated[int | None, typer.Option(help="Answers shown.  [default: 5]", show_default=False)] = None,
    format: Annotated[
        list[str] | None,
        typer.Option(help="png, svg or pdf; repeat for several.  [default: png]", show_default=False),
    ] = None,
    column: Annotated[
        bool | None,
        typer.Option("--column", help="As wide as one column of a paper, 3.4 inches.", show_default=False),
    ] = None,
    graph: Annotated[
        bool | None,
        typer.Option("--graph", help="Also draw the scene graph of text and image.", show_default=False),
    ] = None,
    html: Annotated[
        bool | None, typer.Option("--html", help="Also write a page to explore.", show_default=False)
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--from", help="Draw a sheet of results-SPLIT.json of a run.", show_default=False),
    ] = None,
    wrong: Annotated[
        bool | None, typer.Option("--wrong", help="With --from: wrong answers alone.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="With --from: how many.  [default: 20]", show_default=False)
    ] = None,
    out: options.Out = None,
    config: options.Config = None,
    devices: options.Devices = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer about images; draw what was attended to.

    Figures land in runs/visualize, dense attention beside thresholded attention, each with a trace (.npz)
    from which it can be drawn again without the model.
    """
    flags = _flags(locals())
    given = flags.pop("arguments", [])
    traces = bool(given) and all(name.lower().endswith(".npz") for name in given)
    # A lone argument is an image whose question was forgotten, unless --image-id names the image.
    if given and not traces and (len(given) > 1 or image_id or results):
        flags["question"] = given.pop()
    _run("visualize", "VisualizeConfig", config, json, quiet, flags | ({"images": given} if given else {}))


def _flags(values: dict[str, Any]) -> dict[str, Any]:
    """The options that are settings of the stage and were given."""
    own = ("config", "json", "quiet")
    return {
        name: value for name, value in values.items() if name not in own and value is not None and value != []
    }


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show τ shows ? in its place, rather than end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
