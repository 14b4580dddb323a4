"""Every setting, once: what it is, what it may be, and what its help says."""

from tbkin_core.settings.base import (
    StageConfig,
    config_values,
    dump_config,
    fields_of,
    kept_check,
    load_config,
)
from tbkin_core.settings.stages import (
    BuildGraphsConfig,
    ExtractFeaturesConfig,
    FinetuneConfig,
    MaskingConfig,
    PretrainConfig,
    SelectionConfig,
    ThresholdSweepConfig,
    TrainingConfig,
    VisualizeConfig,
    parse_thresholds,
)

__all__ = [
    "BuildGraphsConfig", "ExtractFeaturesConfig", "FinetuneConfig", "MaskingConfig", "PretrainConfig",
    "SelectionConfig", "StageConfig", "ThresholdSweepConfig", "TrainingConfig", "VisualizeConfig",
    "config_values", "dump_config", "fields_of", "kept_check", "load_config", "parse_thresholds",
]  # fmt: skip
