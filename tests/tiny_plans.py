"""Plans for tests of the loop."""

from __future__ import annotations

import math
from typing import Any

from tbkin_core.training.plan import TrainingPlan


def tiny_plan(**values: Any) -> TrainingPlan:
    """A plan with the defaults of the settings, and these values in place of theirs."""
    usual = {
        "size": "tiny", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0.1,
        "schedule": "linear", "decay_epochs": [], "weight_decay": 0.01, "grad_clip": 1.0, "dropout": 0.0,
        "precision": "fp32", "max_minutes": math.inf, "max_text_tokens": 32, "max_regions": 36,
        "save_minutes": 2.0, "seed": 0, "resume": True, "tensorboard": False,
    }  # fmt: skip
    chosen = {**usual, **values}
    return TrainingPlan(**{"micro_batch_size": chosen["batch_size"], **chosen})
