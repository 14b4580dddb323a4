"""Which of several processes this one is, and waiting for the others."""

from __future__ import annotations

import os

from tbkin_core.errors import ConfigError


def environment_number(name: str, default: int) -> int:
    """A whole number from the environment, such as torchrun sets; the default where it is absent or empty.

    Raises:
        ConfigError: It is no number.
    """
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(
            f"environment: {name}={text} is no number", hint="unset it, or start the run with torchrun"
        ) from error


def rank() -> int:
    """Rank of this process in a distributed run; 0 alone."""
    return environment_number("RANK", 0)


def world_size() -> int:
    """Processes of this distributed run; 1 alone."""
    return environment_number("WORLD_SIZE", 1)


def share_of_run() -> tuple[int, int]:
    """Rank and number of the processes that share this run: (0, 1) alone.

    They come from RANK and WORLD_SIZE, as torchrun sets them, else from SLURM_PROCID and
    SLURM_STEP_NUM_TASKS, as srun does.

    Raises:
        ConfigError: They are no numbers, or the rank is not below the size.
    """
    for rank_name, size_name in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        given = {name: os.environ[name] for name in (rank_name, size_name) if os.environ.get(name)}
        # SLURM numbers the process of a batch script too, which shares its work with nobody.
        if size_name not in given:
            continue
        try:
            rank, size = int(given.get(rank_name, "0")), int(given[size_name])
        except ValueError:
            rank, size = -1, 0
        if not 0 <= rank < size or (size > 1 and rank_name not in given):
            shown = " ".join(f"{name}={value}" for name, value in given.items())
            raise ConfigError(
                f"environment: {shown} does not say which share of the run this is",
                hint=f"unset it, or give {rank_name} from 0 and below {size_name}",
            )
        return rank, size
    return 0, 1


def wait_for_ranks() -> None:
    """Wait until every rank that has joined is here."""
    if world_size() > 1:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.barrier()
