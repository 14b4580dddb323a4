"""The errors a user can meet; each says what, where, and what to do next."""

from __future__ import annotations

from functools import partial


class TbkinError(Exception):
    """Base of all errors that tbkin raises on purpose.

    Args:
        message: What is wrong, where, what was expected and what was found; one line.
        hint: What to do next; shown on a line of its own.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # An exception with keyword arguments would not survive the way back from a worker process.
        return partial(type(self), self.message, hint=self.hint), ()


class ConfigError(TbkinError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(TbkinError):
    """An input file or directory is missing, broken, or not what was expected."""


class CheckpointError(TbkinError):
    """A checkpoint is missing, incomplete, or made for something else."""


class MissingDependencyError(TbkinError):
    """An optional package or model is needed and not installed."""
