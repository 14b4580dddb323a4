"""The six subcommands. Each turns its options into settings and calls one function of `tbkin_core.stages`."""

from __future__ import annotations

import io
import logging
import pkgutil
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Signature
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from tbkin_cli.options import Command, parameters
from tbkin_cli.output import errors_as_messages, show
from tbkin_core import settings
from tbkin_core.settings import StageConfig, commented, load_config
from tbkin_core.support.console import printable, setup_logging
from tbkin_core.support.interruption import interruptible, leave_at_once
from tbkin_core.support.ranks import rank


class _Group(typer.core.TyperGroup):
    """The subcommands. An empty argument is refused: as a path it would be the current directory."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # `visualize` has its own word for an empty question.
        if any(not arg or re.fullmatch("--[a-z-]+=", arg) for arg in args) and args[0] != "visualize":
            raise typer.BadParameter("one is empty, perhaps from a shell variable that is not set", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Of click; all others are messages by now. A file may be named like an option.
            if isinstance(text := getattr(error, "message", None), str):
                error.message = printable(text)  # type: ignore[attr-defined]
            raise


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tbkin {version('tbkin')}")
        raise typer.Exit


app = typer.Typer(
    name="tbkin",
    cls=_Group,
    help="TBKIN: scene-graph guided pretraining and thresholded attention, from images to answers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """The options of `tbkin` itself."""


def _with_question(flags: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `visualize` told apart: the last one is the question."""
    given = flags.get("images", [])
    traces = bool(given) and all(name.lower().endswith(".npz") for name in given)
    # A lone argument is a file of questions, or an image whose question was forgotten, unless --image-id
    # names the image.
    if given and not traces and (len(given) > 1 or "image_id" in flags or "results" in flags):
        return {**flags, "images": given[:-1], "question": given[-1]}
    return flags


@dataclass(frozen=True)
class Stage:
    """A subcommand.

    Attributes:
        settings: What its options are made from.
        help: Its --help, above the options.
        example: A call, for the end of its --help.
        arrange: Settings by name from the options by name.
        summary_of_last: Ranks end on their own, and the last one, whichever it is, has the summary.
    """

    settings: type[StageConfig]
    help: str
    example: str
    arrange: Callable[[dict[str, Any]], dict[str, Any]] = dict
    summary_of_last: bool = False


STAGES = {
    "extract-features": Stage(
        settings.ExtractFeaturesConfig,
        "Images to region features, in DATA/features.",
        "tbkin extract-features coco/",
        summary_of_last=True,
    ),
    "build-graphs": Stage(
        settings.BuildGraphsConfig,
        "Captions to unified scene graphs, in DATA/graphs.\n\n"
        "Started once per rank by torchrun or srun with one DATA and --out, the ranks share the work; the"
        " last one to end completes the store. After an interruption, the same command goes on; the result"
        " is the same bytes.",
        "tbkin build-graphs coco/ --export graphs.jsonl",
        summary_of_last=True,
    ),
    "pretrain": Stage(
        settings.PretrainConfig,
        "Pretrain with structural knowledge masking.\n\nThe model lands in runs/pretrain.",
        "tbkin pretrain coco/ --size small --epochs 20",
    ),
    "finetune": Stage(
        settings.FinetuneConfig,
        "Fine-tune for questions or referring expressions.\n\n"
        "The model lands in a directory of its own in runs/finetune.",
        "tbkin finetune --task vqa --threshold 0.3",
    ),
    "threshold-sweep": Stage(
        settings.ThresholdSweepConfig,
        "Accuracy, sparsity and speed at every threshold.\n\n"
        "The checkpoint is evaluated as it is, or with --refit a model is fine-tuned per threshold from the"
        " same initial weights. Table and figures land in runs/threshold-sweep. After an interruption, the"
        " same command goes on.",
        "tbkin threshold-sweep --task vqa --thresholds 0:0.9:0.1",
    ),
    "visualize": Stage(
        settings.VisualizeConfig,
        "Answer about images; draw what was attended to.\n\n"
        "Figures land in runs/visualize, dense attention beside thresholded attention, each with a trace"
        " (.npz) from which it can be drawn again without the model.",
        'tbkin visualize img.jpg "what color is the dog?"',
        arrange=_with_question,
    ),
}
"""By name; `tbkin_core.stages` has a function of the same name."""


def _add(name: str, stage: Stage) -> None:
    def command(
        config: str | None, print_config: bool | None, json: bool | None, quiet: bool | None, **flags: Any
    ) -> None:
        with errors_as_messages(bool(flags.get("overwrite"))):
            setup_logging(bool(quiet))
            given = {option: value for option, value in flags.items() if value is not None and value != []}
            file = None if config is None else Path(config)
            if print_config:
                text = commented(stage.settings, file, stage.arrange(given))
                print(
                    f"# tbkin {name}: {stage.help.splitlines()[0]} Read with --config FILE.\n\n{text}", end=""
                )
                return
            chosen = load_config(stage.settings, file, stage.arrange(given))
            # Only now, and only this one: it loads torch.
            run = pkgutil.resolve_name(f"tbkin_core.stages:{name.replace('-', '_')}")
            with interruptible():
                result = run(chosen)
            if rank() == 0 or stage.summary_of_last:
                show(result, bool(json))
            sys.stdout.flush()  # a server's address has to be read while it serves
            with interruptible():
                result.finish()
        logging.shutdown()

    derived = parameters(stage.settings)
    command.__signature__ = Signature(derived)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in derived}
    app.command(name, cls=Command, help=stage.help, epilog=f"Example: {stage.example}")(command)


for _name, _stage in STAGES.items():
    _add(_name, _stage)


def main() -> None:
    """Entry point of the console script."""
    leave_at_once("tbkin: interrupted\n")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show τ shows ? in its place, rather than end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
