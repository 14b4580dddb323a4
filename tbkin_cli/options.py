"""Options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path | None, typer.Option("--out", help="Where results go.", show_default=False)]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of settings; flags win over it.", show_default=False),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices", help="auto, cpu, cpu:N, cuda or cuda:0,1.  [default: auto]", show_default=False
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="All randomness follows from it.  [default: 0]", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no log on stderr; warnings only.")
]
Overwrite = Annotated[
    bool | None,
    typer.Option("--overwrite", help="Remove what stands at --out and begin anew.", show_default=False),
]

Size = Annotated[
    str | None,
    typer.Option(help="tiny, small, base; auto chooses by the amount of data.", show_default=False),
]
Init = Annotated[
    str | None,
    typer.Option(
        help="Weights to begin from: a checkpoint, a BERT directory or hub id, or none.", show_default=False
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(help="Passes over the training data.  [default: chosen from the data]", show_default=False),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Samples an optimizer step, over all devices.", show_default=False)
]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.", show_default=False)]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        help="Stop cleanly after so much training time.  [default: none; 10 for finetune on a CPU without"
        " --epochs]",
        show_default=False,
    ),
]
MaxTextTokens = Annotated[
    int | None, typer.Option(help="Longer texts are cut.  [default: 32]", show_default=False)
]
Precision = Annotated[
    str | None,
    typer.Option(help="auto (bf16 where the device has it), fp32, bf16 or fp16.", show_default=False),
]

Tensorboard = Annotated[
    bool | None,
    typer.Option("--tensorboard", help="Also log to OUT/tensorboard.", show_default=False),
]

Task = Annotated[str | None, typer.Option(help="vqa or rec.", show_default=False)]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="τ of the explicit selection; 0 is the dense model. For topk the number of keys.",
        show_default=False,
    ),
]
SelectionRule = Annotated[
    str | None,
    typer.Option(
        "--selection",
        help="relative, probability, score or topk; or without a threshold sparsemax or entmax15.",
        show_default=False,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset", help="For rec: refcoco, refcoco+, refcocog, refcocog-google, ...", show_default=False
    ),
]
