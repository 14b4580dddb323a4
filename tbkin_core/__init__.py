"""tbkin core library.

`tbkin_core.Answerer` asks a model about images; `tbkin_core.stages` has the six subcommands as functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tbkin_core.answerer import Answered, Answerer

__all__ = ["Answered", "Answerer"]


def __getattr__(name: str) -> Any:
    # With the model comes torch, for which nobody else waits.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tbkin_core import answerer

    return getattr(answerer, name)
