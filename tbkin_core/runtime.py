"""What every stage needs around its work: atomic writes, devices, seeds, log, progress."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tbkin_core.errors import ConfigError, DataError, TbkinError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")

logger = logging.getLogger("tbkin")

STORE_FILES = frozenset({"store.json", "priors.json", "config.yaml"})


# ---- log and progress ---------------------------------------------------------------------------


def setup_logging(quiet: bool = False) -> None:
    """Send the log of tbkin to stderr: a line a message, warnings marked."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            return f"tbkin: {mark}{record.getMessage()}"

    class Handler(logging.StreamHandler):  # type: ignore[type-arg]
        def emit(self, record: logging.LogRecord) -> None:
            from tqdm import tqdm

            # Through tqdm, so that a line does not run into an open progress bar.
            tqdm.write(self.format(record), file=sys.stderr)

    handler = Handler()
    handler.setFormatter(Formatter())
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet or rank() > 0 else logging.INFO)


def quiet_transformers() -> None:
    """No progress bars and no advice of other packages between tbkin's own lines."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()


def progress(
    items: Iterable[Item],
    label: str,
    total: int | None = None,
    unit: str = "it",
    size: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """`items` behind a tqdm bar on stderr; silent when quiet, on other ranks, or without a terminal.

    Args:
        items: What to go through.
        label: What stands before the bar.
        total: Units in all, where that is known.
        unit: What is counted.
        size: Units of an item; None counts each as one.
    """
    from tqdm import tqdm

    silent = logger.level >= logging.WARNING or rank() > 0 or not sys.stderr.isatty()
    with tqdm(desc=label, total=total, unit=unit, disable=silent, leave=False, dynamic_ncols=True) as bar:
        for item in items:
            yield item
            bar.update(1 if size is None else size(item))


def rank() -> int:
    """Rank of this process in a distributed run; 0 alone."""
    return environment_number("RANK", 0)


def processors() -> int:
    """Processors for this process to use: its affinity, shared with the other ranks of this machine."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # SLURM has divided them among its tasks already.
    return max(count // max(environment_number("LOCAL_WORLD_SIZE", 1), 1), 1)


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


# ---- files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def write_errors(where: Path) -> Iterator[None]:
    """Turn what the file system refuses (no permission, full disk) into one clear DataError."""
    try:
        yield
    except TbkinError:
        raise
    except Exception as error:
        code = _os_error(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space and run the same command again: what is finished is kept"
        elif code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG):
            hint = "choose another place with --out DIR"
        elif code in (errno.EEXIST, errno.ENOTDIR):
            hint = "a file stands where a directory is needed; choose another place with --out DIR"
        elif code in (errno.EISDIR, errno.ENOENT, errno.EBUSY, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO):
            hint = "choose another place"
        else:
            raise
        raise DataError(f"{where}: cannot write here ({os.strerror(code)})", hint=hint) from error


def _os_error(error: Exception) -> int:
    """The errno behind an error, 0 without one.

    safetensors, written in Rust, gives it in its message alone; torch.save hides it behind its own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.errno or 0
        found = re.search(r"\(os error (\d+)\)", str(cause))
        if found:
            return int(found[1])
        cause = cause.__cause__ or cause.__context__
    return 0


def make_directory(path: Path) -> Path:
    """Create a directory with its parents; a DataError where that is refused."""
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        # mkdir says nothing about a directory that exists and may not be written to.
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


def check_file_place(
    path: Path, setting: str, is_own: Callable[[bytes], bool], store: Path | None = None
) -> None:
    """Refuse to write a result where something else would be lost, before the work for it begins.

    Args:
        path: The file to write.
        setting: What names it, for messages.
        is_own: Whether the first 4 KB are of an earlier result of this kind.
        store: A store's directory; the names of its files are taken.

    Raises:
        ConfigError: A directory, another file, or a file of the store.
        DataError: Its directory cannot be made or written to.
    """
    if path.exists() and not path.is_file():
        kind = "directory" if path.is_dir() else "device or pipe"
        raise ConfigError(f"{setting}: {path} is a {kind}, expected a file", hint="name a new file")
    if store is not None and in_store(path, store):
        raise ConfigError(f"{setting}: {path} is a file of the store itself", hint="choose another name")
    if path.exists():
        with write_errors(path), path.open("rb") as file:
            start = file.read(4096)
        if start and not is_own(start):
            raise ConfigError(
                f"{setting}: {path} exists and is no earlier result of this command",
                hint="choose another name, or move it away, so that nothing is lost",
            )
    make_directory(path.parent)


def in_store(path: Path, store: Path) -> bool:
    """Whether a path is a store's directory or one of its own files."""
    whole, place = os.path.realpath(path), os.path.realpath(store)
    folder, name = os.path.split(whole)
    return whole == place or (folder == place and (name in STORE_FILES or name.startswith("shard-")))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error.

    A reader sees the old file or the new one, never a part. The suffix is kept, so that writers
    which choose a format by it work.
    """
    path = Path(path)
    with write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
    temporary = Path(name)
    try:
        with write_errors(path):
            yield temporary
            # mkstemp makes files that only the owner may read; give what the umask would have given.
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place when the block ends without an error.

    A directory that is there already comes back where that fails.
    """
    path = Path(path)
    make_directory(path.parent)
    with write_errors(path.parent):
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        with write_errors(path):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            if path.is_dir():
                # A directory cannot be renamed over a full one: move the old one aside first.
                aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
                try:
                    path.replace(aside)
                    temporary.replace(path)
                except OSError:
                    if not path.exists():
                        aside.replace(path)
                    raise
                finally:
                    if path.exists():
                        shutil.rmtree(aside, ignore_errors=True)
            else:
                temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        # File names that are no UTF-8 hold lone surrogates; JSON and YAML write those as such escapes.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write JSON atomically; NumPy numbers and paths are converted."""
    write_text(path, json.dumps(value, indent=indent, default=_plain, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that tbkin wrote; DataError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(
            f"{path}: is not valid JSON ({error})", hint="remove it and run the stage again"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---- devices ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Devices:
    """`kind` "cpu" or "cuda"; `indices` the CUDA devices, or one entry a CPU process."""

    kind: str
    indices: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.indices)


def resolve_devices(spec: str) -> Devices:
    """Read `auto`, `cpu`, `cpu:N`, `cuda` or `cuda:0,1`.

    Raises:
        ConfigError: The spec cannot be read, or names more devices than exist.
    """
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, rest = spec.strip().lower().partition(":")
    usage = ConfigError(
        f"devices: expected auto, cpu, cpu:N, cuda or cuda:0,1, got {spec!r}",
        hint="for example --devices cpu",
    )
    if kind == "auto" and not rest:
        return Devices("cuda", tuple(range(available))) if available else Devices("cpu", (0,))
    if kind == "cpu":
        if rest and not (rest.isdigit() and 1 <= int(rest) <= 256):
            raise usage
        return Devices("cpu", tuple(range(int(rest or 1))))
    if kind != "cuda":
        raise usage
    try:
        indices = tuple(int(part) for part in rest.split(",")) if rest else tuple(range(max(available, 1)))
    except ValueError as error:
        raise usage from error
    missing = [index for index in indices if index not in range(available)]
    if missing or len(set(indices)) != len(indices):
        raise ConfigError(
            f"devices: {spec!r} asks for CUDA device {missing[0] if missing else indices[0]},"
            f" found {available}",
            hint="use --devices auto (all CUDA devices, or the CPU where there is none)",
        )
    return Devices("cuda", indices)


def launch(function: Callable[..., None], devices: Devices, *arguments: Any) -> None:
    """Call `function(*arguments)` once a device, each in a process of its own where there are several.

    Under torchrun the processes exist already and the function is called once in each. The processes
    find each other through the usual RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    """
    if devices.count == 1 or "WORLD_SIZE" in os.environ:
        function(*arguments)
        return
    import socket

    import torch.multiprocessing

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when a worker loads torch
    context = torch.multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    workers = [
        context.Process(
            target=_ranked,
            args=(function, devices, local_rank, port, logger.level, failures, arguments),
            name=f"rank {local_rank}",
        )
        for local_rank in range(devices.count)
    ]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.join(timeout=0.1)
            if any(worker.exitcode not in (None, 0) for worker in workers):
                break
    except KeyboardInterrupt:
        # Each rank finishes its step and saves; a second Ctrl-C ends up in the clause below.
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(timeout=60)
        raise
    finally:
        # One dead rank would leave the others waiting for it for ever.
        for worker in workers:
            if worker.is_alive():
                worker.kill()
            worker.join()
    if not failures.empty():
        raise failures.get()
    if any(worker.exitcode == 130 for worker in workers):
        raise KeyboardInterrupt
    codes = {worker.name: worker.exitcode for worker in workers if worker.exitcode != 0}
    if codes:
        raise RuntimeError(f"worker processes ended early: {codes}")


@contextlib.contextmanager
def one_thread_a_process() -> Iterator[None]:
    """Processes started meanwhile compute with one thread each; there is one a processor already."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def serve_parent() -> None:
    """Make this process a worker of the one that started it: Ctrl-C is for that one, whose end ends this."""
    # Ctrl-C reaches every process of the terminal; the main one decides what is kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed main process leaves its workers waiting for jobs for ever, unless they watch it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def share_of_run() -> tuple[int, int]:
    """Rank and number of the processes that share this run: (0, 1) alone.

    They come from RANK and WORLD_SIZE, as torchrun sets them, else from SLURM_PROCID and
    SLURM_STEP_NUM_TASKS, as srun does.

    Raises:
        ConfigError: They are no numbers, or the rank is not below the size.
    """
    environment = os.environ
    for rank_name, size_name in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        given = {name: environment[name] for name in (rank_name, size_name) if environment.get(name)}
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


def world_size() -> int:
    """Processes of this distributed run; 1 alone."""
    return environment_number("WORLD_SIZE", 1)


def join_ranks(devices: Devices) -> None:
    """Make this process one of its distributed run, if it is in one and has not joined yet."""
    if world_size() == 1:
        return
    import datetime

    import torch

    if devices.kind == "cuda":
        torch.cuda.set_device(torch_device(devices))
    if not torch.distributed.is_initialized():
        # The other ranks wait while rank 0 evaluates, which may take long.
        limit = datetime.timedelta(hours=12)
        torch.distributed.init_process_group("nccl" if devices.kind == "cuda" else "gloo", timeout=limit)


def wait_for_ranks() -> None:
    """Wait until every rank that has joined is here."""
    if world_size() > 1:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.barrier()


def _ranked(
    function: Callable[..., None],
    devices: Devices,
    local_rank: int,
    port: int,
    level: int,
    failures: Any,
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(local_rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(devices.count),
        LOCAL_WORLD_SIZE=str(devices.count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    setup_logging(quiet=level >= logging.WARNING)
    try:
        function(*arguments)
    except TbkinError as error:
        failures.put(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def torch_device(devices: Devices) -> torch.device:
    """The device of this process."""
    import torch

    if devices.kind == "cpu":
        return torch.device("cpu")
    local = environment_number("LOCAL_RANK", 0)
    return torch.device("cuda", devices.indices[local % devices.count])


# ---- randomness ---------------------------------------------------------------------------------


def mix(*parts: int) -> int:
    """One 63-bit seed from several whole numbers (splitmix64 finaliser), the same everywhere."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 31)) + 0x9E3779B97F4A7C15
    return state & 0x7FFFFFFFFFFFFFFF


def uniform(seed: int, stream: int, rows: NDArray, columns: int) -> NDArray[np.float32]:
    """Uniform draws in [0, 1) that depend on (seed, stream, row key, column) alone.

    A counter-based generator: a sample's draws are the same in any batch, order, or worker.

    Args:
        seed: Mixed from the run's seed and the epoch.
        stream: Names what the draws are for, so that two uses never share numbers.
        rows: (B,) whole numbers, one key a sample.
        columns: N, draws a sample.

    Returns:
        (B, N) float32.
    """
    with np.errstate(over="ignore"):
        state = np.asarray(rows).astype(np.uint64)[:, None] * np.uint64(0xD6E8FEB86659FD93)
        state = state + np.arange(1, columns + 1, dtype=np.uint64)[None, :] * np.uint64(0x9E3779B97F4A7C15)
        state = state ^ np.uint64(mix(seed, stream))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return ((state >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)
