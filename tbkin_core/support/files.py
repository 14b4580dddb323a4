"""Files that appear whole or not at all, and what the file system refuses as one clear error."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.errors import ConfigError, DataError, TbkinError


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
        if found := re.search(r"\(os error (\d+)\)", str(cause)):
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


def check_file_place(path: Path, setting: str, is_own: Callable[[bytes], bool]) -> None:
    """Refuse to write a result where something else would be lost, before the work for it begins.

    `is_own` says whether the first 4 KB are of an earlier result of this kind; `setting` is what messages
    call the file.

    Raises:
        ConfigError: A directory, or another file.
        DataError: Its directory cannot be made or written to.
    """
    if path.exists() and not path.is_file():
        kind = "directory" if path.is_dir() else "device or pipe"
        raise ConfigError(f"{setting}: {path} is a {kind}, expected a file", hint="name a new file")
    if path.exists():
        with write_errors(path), path.open("rb") as file:
            start = file.read(4096)
        if start and not is_own(start):
            raise ConfigError(
                f"{setting}: {path} exists and is no earlier result of this command",
                hint="choose another name, or move it away, so that nothing is lost",
            )
    make_directory(path.parent)


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


def remove_leftovers(directory: Path, stem: str) -> None:
    """Remove what killed writers (of `atomic_path`) left of the files of a stem, or of a pattern of stems."""
    for leftover in directory.glob(f".{stem}-*"):
        leftover.unlink(missing_ok=True)


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
    write_text(path, json_text(value, indent) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which has no NaN and no infinity: they become null."""
    options: dict[str, Any] = {"indent": indent, "default": _plain, "ensure_ascii": False}
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(finite(value), **options)


def finite(value: Any) -> Any:
    """A value of JSON with None in the place of each number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, hint: str = "remove it and run the stage again") -> Any:
    """Read a JSON file that tbkin wrote; DataError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({error})", hint=hint) from error


def file_content(path: Path) -> int | None:
    """A number that changes with the bytes of a file; None where there is none."""
    if not path.is_file():
        return None
    value = zlib.crc32(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:48]
