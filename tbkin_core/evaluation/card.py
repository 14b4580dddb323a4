"""The model card of a fine-tuned model: README.md beside its weights, made of what its run recorded."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tbkin_core.modeling.checkpoint import load_model_config
from tbkin_core.runs import CARD, CARD_START, is_of_run
from tbkin_core.selection import Selection
from tbkin_core.settings import FinetuneConfig, fields_of
from tbkin_core.support.files import write_text
from tbkin_core.support.places import place_of
from tbkin_core.tasks.table import TASKS

_WIDTH = 100


def is_card(file: Path) -> bool:
    """Whether a file is a card that tbkin wrote."""
    return is_of_run(file.parent, file.name)


def write_card(out: Path, results: Mapping[str, Any], config: FinetuneConfig) -> None:
    """Write the card into the directory of a run, unless somebody's own README lies there."""
    # It may be made beside the place that it is for.
    if all(not file.exists() or is_card(file) for file in (out / CARD, place_of(out) / CARD)):
        write_text(out / CARD, card_text(out, results, config))


def card_text(out: Path, results: Mapping[str, Any], config: FinetuneConfig) -> str:
    """The card of a model in `out`, whose run had these results and settings.

    Paths are as they were given; whoever passes the model on may want to shorten them.
    """
    model, place = load_model_config(out), place_of(out)
    row, extractor = TASKS[config.task], model.extractor or {}
    data = f"{results['training_samples']:,} {row.samples} of `{results['data']}`"
    selection = Selection(model.selection, model.threshold).name if model.threshold else "dense"
    made = extractor.get("extractor") or "unknown"
    if extractor.get("model"):
        made = f"{made} ({extractor['model']})"
    parts = [
        f"A model for {row.samples}, {results['parameters'] / 1e6:.1f} million parameters, made with tbkin"
        f" {version('tbkin')} from `{results['initialised_from']}`:",
        f"**Data.** {data}; the epoch ({results['best_epoch']} of {results['epochs']}) was chosen by val.",
        f"**Attention.** {selection}.",
        f"**Features.** `{made}`, {model.region_feature_size} numbers of each of at most"
        f" {model.max_regions} regions; images are read in the same way when it is used.",
    ]
    if not model.use_regions:
        parts.append("**It does not see the image**: without it was better on val, or `--blind` was given.")
    first, *rest = (textwrap.fill(part, _WIDTH, break_on_hyphens=False) for part in parts)
    use = [
        f'    tbkin visualize photo.jpg "{row.example}" --checkpoint {shlex.quote(str(place))}',
        "",
        "or in Python",
        "",
        "    from tbkin_core import Answerer",
        "",
        f'    Answerer({str(place)!r}).ask("photo.jpg", "{row.example}")',
    ]
    front = f"{CARD_START}pipeline_tag: {row.pipeline}\nlanguage: en\n---\n"
    return "\n".join(
        [
            front,
            f"# {place.name}\n",
            f"{first}\n",
            f"    {_command(config)}\n",
            *(f"{part}\n" for part in rest),
            "**How good it is.** In percent, with 95 % intervals; val chose the epoch, and flatters.\n",
            *_table(results),
            "\n**How to use it.**\n",
            *use,
            "",
        ]
    )


def _command(config: FinetuneConfig) -> str:
    """The command of a run: what was not left to tbkin."""
    words = ["tbkin", "finetune"]
    others = False
    for name, entry in fields_of(type(config)).items():
        value = getattr(config, name)
        if value == entry.default or name in ("overwrite", "out"):
            continue
        if entry.option.group is None:
            others = True
        elif entry.kind is bool:
            words.append(entry.flag)
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [entry.flag.split()[0], str(one)]
    return shlex.join(words) + (" --config config.yaml" if others else "")


def _table(results: Mapping[str, Any]) -> list[str]:
    lines = ["| split | model | % | 95 % interval | n |", "|---|---|---|---|---|"]
    for row in sorted(results["report"], key=lambda row: (row["split"], row.get("part") or "", row["order"])):
        name = f"{row['part']}, {row['model']}" if row.get("part") else row["model"]
        low, high = row.get("accuracy_low"), row.get("accuracy_high")
        interval = "" if None in (low, high) else f"{low:.1f} to {high:.1f}"
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.1f}"
        lines.append(f"| {row['split']} | {name} | {accuracy} | {interval} | {row['n']:,} |")
    return lines
