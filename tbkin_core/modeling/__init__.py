"""The model: configuration, thresholded attention, encoder and heads. Importing this loads torch."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVisualQuestionAnswering

from tbkin_core.modeling.attention import AttentionRecord, selective_attention
from tbkin_core.modeling.configuration import TbkinConfig
from tbkin_core.modeling.models import (
    TbkinForPreTraining,
    TbkinForRec,
    TbkinForVqa,
    TbkinModel,
    TbkinOutput,
)
from tbkin_core.modeling.retrieval import TbkinForRetrieval
from tbkin_core.selection import Selection

# So that `AutoModel.from_pretrained(DIR)` and its kin know a checkpoint once tbkin_core.modeling is imported.
AutoConfig.register("tbkin", TbkinConfig, exist_ok=True)
AutoModel.register(TbkinConfig, TbkinModel, exist_ok=True)
AutoModelForPreTraining.register(TbkinConfig, TbkinForPreTraining, exist_ok=True)
AutoModelForVisualQuestionAnswering.register(TbkinConfig, TbkinForVqa, exist_ok=True)

__all__ = [
    "AttentionRecord",
    "Selection",
    "TbkinConfig",
    "TbkinForPreTraining",
    "TbkinForRec",
    "TbkinForRetrieval",
    "TbkinForVqa",
    "TbkinModel",
    "TbkinOutput",
    "selective_attention",
]
