"""Six functions, one per subcommand: settings in, result out. This is the public Python API::

    from tbkin_core.settings import FinetuneConfig
    from tbkin_core.stages import finetune

    result = finetune(FinetuneConfig(task="vqa", data="coco"))
    result.accuracy["val"]

The module of a stage, and with it what it needs (torch, spaCy), is loaded when the stage is asked for.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tbkin_core.stages.build_graphs import build_graphs
    from tbkin_core.stages.extract_features import extract_features
    from tbkin_core.stages.finetune import finetune
    from tbkin_core.stages.pretrain import pretrain
    from tbkin_core.stages.threshold_sweep import threshold_sweep
    from tbkin_core.stages.visualize import visualize

__all__ = ["build_graphs", "extract_features", "finetune", "pretrain", "threshold_sweep", "visualize"]


class _Stages(ModuleType):
    """This package: it imports a stage's module when the stage is asked for, and hands out its function.

    The import system puts a module into its package under its name, which here is the function's name too;
    that name stays the function's, whether the module was imported through the package or directly.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        importlib.import_module(f"{self.__name__}.{name}")
        return self.__dict__[name]

    def __setattr__(self, name: str, value: Any) -> None:
        is_stage = isinstance(value, ModuleType) and name in __all__
        super().__setattr__(name, getattr(value, name) if is_stage else value)


sys.modules[__name__].__class__ = _Stages
