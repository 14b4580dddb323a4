"""The model: configuration, thresholded attention, encoder and heads. Importing this loads torch."""

from tbkin_core.modeling.attention import AttentionRecord, selective_attention
from tbkin_core.modeling.configuration import TbkinConfig
from tbkin_core.modeling.models import (
    TbkinForPreTraining,
    TbkinForRec,
    TbkinForVqa,
    TbkinModel,
    TbkinOutput,
)
from tbkin_core.selection import Selection

__all__ = [
    "AttentionRecord",
    "Selection",
    "TbkinConfig",
    "TbkinForPreTraining",
    "TbkinForRec",
    "TbkinForVqa",
    "TbkinModel",
    "TbkinOutput",
    "selective_attention",
]
