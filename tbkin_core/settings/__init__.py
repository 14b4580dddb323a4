"""Every setting, once: what it is, what it may be, and what its help says."""

from tbkin_core.settings.base import (
    StageConfig,
    commented,
    config_values,
    dump_config,
    fields_of,
    kept_check,
    load_config,
)
from tbkin_core.settings.stages import (
    BuildGraphsConfig,
    ExtractFeaturesConfig,
    ThresholdSweepConfig,
    VisualizeConfig,
    parse_thresholds,
)
from tbkin_core.settings.training import (
    FinetuneConfig,
    MaskingConfig,
    PretrainConfig,
    SelectionConfig,
    TrainingConfig,
)

__all__ = [
    "BuildGraphsConfig", "ExtractFeaturesConfig", "FinetuneConfig", "MaskingConfig", "PretrainConfig",
    "SelectionConfig", "StageConfig", "ThresholdSweepConfig", "TrainingConfig", "VisualizeConfig",
    "commented", "config_values", "dump_config", "fields_of", "kept_check", "load_config", "parse_thresholds",
]  # fmt: skip
