"""Loading of what others trained, none of whose code is run."""

from __future__ import annotations

from typing import Any

from tbkin_core.errors import DataError
from tbkin_core.support.console import quiet_transformers


def load_pretrained(kind: Any, model: str, **options: Any) -> Any:
    """`kind.from_pretrained` of a directory or an id of the hub, for any of the Auto classes of transformers.

    A model may bring a program (`auto_map` in its files), for which transformers would ask on stdin, and run
    it. It is never asked for here, nor run: a model of a kind that transformers knows loads without it.

    Raises:
        DataError: It can only be had with its own program.
        Exception: Of almost any kind, where the model is absent or broken.
    """
    quiet_transformers()
    try:
        return kind.from_pretrained(model, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise DataError(
            f"{model}: cannot be loaded without running a program that it brings (auto_map in its files),"
            " which tbkin never does",
            hint="take a model of a kind that transformers itself knows",
        ) from error
