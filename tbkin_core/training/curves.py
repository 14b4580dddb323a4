"""The curves of a run, drawn once from what it measured."""

from __future__ import annotations

import json
from pathlib import Path

from tbkin_core.support.ranks import rank


def draw_training_curves(run: Path, title: str) -> list[Path]:
    """Draw `training.png` from `metrics.jsonl`; no file where it is there, or nothing was measured."""
    measured, figure = run / "metrics.jsonl", run / "training.png"
    if rank() != 0 or not measured.exists() or figure.exists():
        return []
    rows = [json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows:
        return []
    # matplotlib takes half a second to load, and most calls draw nothing.
    from tbkin_core.figures.curves import training_figure

    training_figure(figure, rows, title=title)
    return [figure]
