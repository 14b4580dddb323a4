"""How well a pretrained model tells captions of an image from others, with nothing hidden.

    python tests/benchmarks/matching.py DATA RUN ... [--draws 4]

DATA is a dataset with features and graphs, such as `python -m examples.scenes coco` draws, each RUN a result
of `tbkin pretrain`. Every caption of val is asked about its own image or another's, as often, in so many
draws of the others. Prints the accuracy in percent, its mean and that of each draw, and apart for those that
belong together and those that do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from tbkin_core.features.store import FeatureStore
from tbkin_core.graphs.store import GraphStore
from tbkin_core.modeling.checkpoint import load_model
from tbkin_core.settings import MaskingConfig
from tbkin_core.tasks.captions import load_captions
from tbkin_core.tasks.inputs import model_inputs, to_device
from tbkin_core.tasks.pretraining import PretrainObjective

NOTHING_HIDDEN = MaskingConfig(
    base=0.0, text_structure=False, image_structure=False, cross_modal_structure=False
)


def main(
    data: Annotated[Path, typer.Argument()],
    runs: Annotated[list[Path], typer.Argument()],
    draws: Annotated[int, typer.Option(min=1)] = 4,
) -> None:
    """Print a line for each run."""
    features, graphs = FeatureStore(data / "features"), GraphStore(data / "graphs")
    for run in runs:
        model, tokenizer = load_model(run, "pretrain")
        each, right, belong = [], [], []
        for draw in range(draws):
            # The seed says which captions get another image.
            objective = PretrainObjective(
                [(load_captions(graphs, ["val"], features), features)],
                [],
                tokenizer,
                NOTHING_HIDDEN,
                seed=draw,
                mismatch=0.5,
                match_hidden=True,
                ot_weight=0.0,
                max_text_tokens=model.config.max_text_tokens,
                max_regions=model.config.max_regions,
                batch_size=64,
            )
            before = len(right)
            for rows in np.array_split(objective.samples(0), max(len(objective.samples(0)) // 64, 1)):
                batch = to_device(objective.collate(rows, 0), torch.device("cpu"))
                with torch.inference_mode():
                    found = model(**model_inputs(batch)).itm_logits.argmax(dim=-1)
                right.append((found == batch["matched"]).numpy())
                belong.append(batch["matched"].bool().numpy())
            each.append(100 * np.concatenate(right[before:]).mean())
        hits, own = np.concatenate(right), np.concatenate(belong)
        print(
            f"{run}: {np.mean(each):.1f} ({', '.join(f'{value:.1f}' for value in each)}); belong together"
            f" {100 * hits[own].mean():.1f}, do not {100 * hits[~own].mean():.1f}; n {len(hits) // draws:,}"
        )


if __name__ == "__main__":
    typer.run(main)
