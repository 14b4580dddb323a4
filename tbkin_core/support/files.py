"""Files that appear whole or not at all, and what the file system refuses as one clear error."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tbkin_core.errors import ConfigError, DataError, TbkinError

LOCK = ".tbkin-lock"  # in a directory that a process works in, see `tbkin_core.support.places`
_OLD = "-old"


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
            hint = (
                "a file or dead link stands where a directory is needed; choose another place with --out DIR"
            )
        elif code in (
            errno.EISDIR,
            errno.ENOENT,
            errno.ENOTEMPTY,
            errno.EBUSY,
            errno.ENAMETOOLONG,
            errno.ELOOP,
            errno.EIO,
        ):
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


def make_directory(path: Path, clean: bool = True) -> Path:
    """Create a directory with its parents, or `clean` it of leftovers; a DataError where that is refused."""
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        # mkdir says nothing about a directory that exists and may not be written to.
        with tempfile.TemporaryFile(dir=path):
            pass
        if clean:
            tidy(path)
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


# Temporary names: ".STEM.HOST-PID-RANDOM.tbkin.SUFFIX", ending in -old where a directory is being replaced.
_NUMBERED_IN = 0
# Where processes have their numbers: containers may share the name of their machine.
with contextlib.suppress(OSError):
    _NUMBERED_IN = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
_HOST = f"{zlib.crc32(f'{platform.node()} {_NUMBERED_IN}'.encode()):08x}"
_TEMPORARY = re.compile(r"\.(.*)\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tbkin(?:(-old)|\..*)?", re.DOTALL)
_ABANDONED_AFTER = 3600.0  # seconds; whether a process of another machine lives, nothing here can tell
_in_use: set[Path] = set()  # temporary names of this process


def _temporary_name(path: Path, ending: str) -> Path:
    """A new temporary path beside `path`."""
    # The stem is there for people; with all of a long one, the name might be too long.
    stem = path.name if ending == _OLD else path.stem[:40]
    return path.with_name(f".{stem}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tbkin{ending}")


def tidy(directory: Path) -> None:
    """Remove what killed writers left in a directory, and nothing else; what they put aside comes back.

    Only temporary names of this module are looked at, and of those only whose process has ended.
    """
    with os.scandir(directory) as entries:
        found = [
            (Path(entry.path), match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))
        ]
    for path, (stem, host, process, old) in ((path, match.groups()) for path, match in found):
        with contextlib.suppress(OSError):
            if path in _in_use or _is_at_work(path, host, int(process)):
                continue
            if old and not os.path.lexists(path.with_name(stem)):
                path.replace(path.with_name(stem))
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_at_work(path: Path, host: str, process: int) -> bool:
    """Whether the process that made a temporary file may still write to it."""
    if host != _HOST or os.name != "posix":
        return time.time() - path.lstat().st_mtime < _ABANDONED_AFTER
    if process == os.getpid():
        return False  # an earlier one of this number, as every start of a container has
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def other_entries(directory: Path) -> list[str]:
    """Names in a directory but those that tbkin uses for a while; none where there is no directory."""
    if not os.path.isdir(directory):  # noqa: PTH112 - says no where a name is too long
        return []
    names = (path.name for path in directory.iterdir())
    return sorted(name for name in names if name != LOCK and not _TEMPORARY.fullmatch(name))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error.

    A reader sees the old file or the new one, never a part. The suffix is kept, so that writers which choose
    a format by it work. A link stays one, and what it leads to is replaced.
    """
    path = _behind_link(Path(path))
    with write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path, path.suffix)
    _in_use.add(temporary)
    try:
        with write_errors(path):
            yield temporary
            # Some writers make files that only the owner may read; give what the umask would have given.
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        _in_use.discard(temporary)


@contextlib.contextmanager
def temporary_directory(parent: Path, stem: str) -> Iterator[Path]:
    """A directory in `parent` that goes when the block ends, or after a kill by `tidy`."""
    temporary = _temporary_name(parent / stem, "")
    _in_use.add(temporary)
    try:
        temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _in_use.discard(temporary)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place when the block ends without an error.

    A directory that is there already comes back where that fails; after a kill, by `tidy`.
    """
    path = _behind_link(Path(path))
    make_directory(path.parent)
    temporary, aside = _temporary_name(path, ""), _temporary_name(path, _OLD)
    _in_use.update((temporary, aside))
    try:
        with write_errors(path):
            temporary.mkdir()
            yield temporary
            if path.is_dir():
                # A directory cannot be renamed over a full one: move the old one aside first.
                path.replace(aside)
            try:
                temporary.replace(path)
            except OSError:
                if aside.exists():
                    aside.replace(path)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
        _in_use.difference_update((temporary, aside))


def real_path(path: Path) -> Path:
    """Where a path leads in the end; as far as it goes where that is nowhere, a circle or no path at all."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a character that no name of a file has
        return path.absolute()


def _behind_link(path: Path) -> Path:
    return real_path(path) if path.is_symlink() else path


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
    if os.path.exists(path) and not path.is_file():  # noqa: PTH110 - a pipe would be waited for
        raise DataError(f"{path}: is no file", hint=hint)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", hint=hint) from error
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
