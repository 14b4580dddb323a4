"""The directory that a command makes its result in: for one process at a time, and never half replaced.

A result that replaces another is made beside it, in `.NAME.tbkin-new`, and put in its place when it is whole;
the old one becomes `.NAME.tbkin-old` and goes. A kill at any moment leaves one of the two in the place; one
between the two renames leaves both beside it, and the next command puts that right. `.NAME.tbkin-was` tells
what it is that goes: something else that has come to lie in the place meanwhile is never replaced.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import count
from pathlib import Path

from tbkin_core.errors import ConfigError, DataError
from tbkin_core.support.files import (
    LOCK,
    make_directory,
    other_entries,
    read_json,
    real_path,
    tidy,
    write_errors,
)
from tbkin_core.support.interruption import held_back

try:
    import fcntl
except ImportError:  # not on this platform, where nothing keeps two commands apart
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("tbkin")

_NEW, _OLD, _WAS = ".tbkin-new", ".tbkin-old", ".tbkin-was"
_PATIENCE = 0.5  # seconds in which one of those that share a lock may just be letting go of it
_LONGEST_COMMAND = 120  # letters shown of what is at work in a directory


@contextlib.contextmanager
def held(directory: Path, shared: bool = False) -> Iterator[None]:
    """Keep the commands of other processes out of a directory, which is made where it is missing.

    Args:
        directory: Leftovers of killed writers in it are removed.
        shared: Processes that hold it shared, such as the ranks of one run, are let in.

    Raises:
        DataError: Another process is at work in it, which the message names; or it cannot be written to.
    """
    existed = os.path.isdir(directory)  # noqa: PTH112 - says no where a name is too long
    make_directory(directory, clean=False)
    handle = None
    try:
        with held_back():  # the lock and its file come and go together
            handle = _take(directory / LOCK, shared)
        tidy(directory)
        yield
    finally:
        with held_back():
            if handle is not None:
                _let_go(directory / LOCK, handle, shared)
            if not existed:
                with contextlib.suppress(OSError):
                    directory.rmdir()  # where nothing was made


def _take(lock: Path, shared: bool) -> int | None:
    """An open lock file; None where the file system knows no locks."""
    if fcntl is None:
        return None
    patience = time.monotonic() + _PATIENCE * shared
    while True:
        with write_errors(lock.parent):
            handle = _opened(lock)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < patience:
                os.close(handle)
                time.sleep(0.01)
                continue
            who = os.pread(handle, 1000, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise DataError(
                f"{lock.parent}: {who} is at work here",
                hint="wait until it has ended, or choose another place with --out DIR",
            ) from error
        except OSError:
            os.close(handle)
            lock.unlink(missing_ok=True)
            return None
        if _is_still(lock, handle):
            command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])  # noqa: PTH119
            since = time.strftime("%H:%M")
            who = (
                f"process {os.getpid()} on {platform.node()} (`{command[:_LONGEST_COMMAND]}`, since {since})"
            )
            with contextlib.suppress(OSError):  # another's file, which may not be written to
                os.ftruncate(handle, 0)
                os.pwrite(handle, who.encode(errors="replace"), 0)
            return handle
        os.close(handle)  # the one before removed it when it ended


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError:  # what another user's killed command left
        return os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)


def _is_still(lock: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False


def _let_go(lock: Path, handle: int, shared: bool) -> None:
    # The last of those that share it removes it.
    with contextlib.suppress(OSError):
        if shared:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in (lock, place_of(lock.parent) / LOCK):  # where it is by now
            if _is_still(path, handle):
                path.unlink()
    os.close(handle)


def replacement(path: Path) -> Path:
    """Where a result is made that will take the place of the one at `path`; beside what a link leads to."""
    return _beside(path, _NEW)


def place_of(work: Path) -> Path:
    """Where what is made at `work` belongs: there, or out of the `replacement` that it is or lies in."""
    hidden = re.compile(rf"\.(.+){re.escape(_NEW)}", re.DOTALL)
    return Path(*(hidden.sub(r"\1", part) if hidden.fullmatch(part) else part for part in work.parts))


def beside(path: Path) -> tuple[Path, Path]:
    """Where a result waits to take the place of `path`, and for a moment what was there before."""
    return _beside(path, _NEW), _beside(path, _OLD)


def _beside(path: Path, ending: str) -> Path:
    named = path.name not in ("", "..") and not path.is_symlink()
    target = path if named else real_path(path)
    return target.parent / f".{target.name}{ending}"


def numbered(path: Path) -> Iterator[Path]:
    """The path itself, then with the numbers from 2."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))


class Content(Enum):
    """What a directory holds, for a command that wants to make something in it."""

    NOTHING = "nothing"
    FOREIGN = "something that no command of this kind made"
    OTHER = "another result of this kind"
    BEGUN = "this very result, unfinished"
    WHOLE = "this very result"


def free_place(default: Path, look: Callable[[Path], Content]) -> Path:
    """The first of the `numbered` places that holds nothing, or what is to be made."""
    # What is of no use is looked at without keeping others out.
    return next(path for path in numbered(default) if look(path) not in (Content.OTHER, Content.FOREIGN))


def open_place(
    path: Path,
    look: Callable[[Path], Content],
    is_own: Callable[[Path, str], bool],
    overwrite: bool,
    stack: contextlib.ExitStack,
    follows: bool = False,
) -> Path:
    """Where to make a result that belongs at `path`: there, or in its `replacement`, to be `put_in_place`.

    A replacement that was interrupted is gone on with, or with `overwrite` begun anew; one that a kill left
    whole is put in its place: both where `path` is empty, or holds what was to be replaced. A whole result in
    a directory that may not be written to is as good as any.

    Args:
        look: Tells what a directory holds.
        is_own: As for `put_in_place`.
        overwrite: Replace a result that is there.
        stack: Keeps the commands of other processes out (see `held`) for as long as it is open.
        follows: Another process of this run, which leads it, has called this before; `overwrite` is false.

    Raises:
        DataError: Another process is at work there, or it cannot be written to.
        ConfigError: `path` cannot be replaced, as something is mounted there or is at work in it.
    """
    if not overwrite and look(path) is Content.WHOLE and not os.access(path, os.W_OK):
        return path
    if not follows:
        put_right(path, is_own)
        stack.enter_context(held(path))
    work, there, waiting = replacement(path), look(path), look(replacement(path))
    awaited = there is Content.NOTHING or _holds_what_goes(path, is_own)
    if waiting is Content.WHOLE and awaited:
        put_in_place(path, is_own)
        return path
    if overwrite and there not in (Content.NOTHING, Content.FOREIGN):
        _check_replaceable(path)
        if waiting is Content.FOREIGN:
            raise DataError(f"{work}: is in the way of what replaces {path}", hint="move or remove it")
        with write_errors(work):
            if os.path.isdir(work):  # noqa: PTH112 - says no where a name is too long
                shutil.rmtree(work)
            _beside(path, _WAS).write_text(json.dumps(_own_files(path, is_own)))
        logger.info("%s stays as it is until what replaces it is whole", path)
    elif waiting is Content.BEGUN and awaited:
        logger.info("going on with what replaces %s when it is whole", path)
    else:
        if waiting in (Content.BEGUN, Content.WHOLE):
            logger.warning("%s was to replace what was at %s before: it is left alone", work, path)
        elif not follows and not os.path.lexists(work):
            with contextlib.suppress(OSError):
                _beside(path, _WAS).unlink()
        return path
    if not follows:
        stack.enter_context(held(work))
    return work


def _own_files(directory: Path, is_own: Callable[[Path, str], bool]) -> dict[str, list[int]]:
    """Size and time of each file in a directory that the command made: they tell one result from another."""
    files = {name: directory / name for name in other_entries(directory) if is_own(directory, name)}
    known = {name: file.lstat() for name, file in files.items()}
    return {name: [entry.st_size, entry.st_mtime_ns] for name, entry in known.items()}


def _holds_what_goes(path: Path, is_own: Callable[[Path, str], bool]) -> bool:
    """Whether what is at a place is what the `replacement` beside it was begun to replace."""
    try:
        return bool(read_json(_beside(path, _WAS)) == _own_files(path, is_own))
    except (DataError, OSError):
        return False


def _check_replaceable(path: Path) -> None:
    real = real_path(path)
    if os.path.ismount(real):
        raise ConfigError(
            f"overwrite: {path} is a mount point, which cannot be replaced", hint=f"name {path / 'new'}"
        )
    if real in (Path.cwd(), *Path.cwd().parents):
        raise ConfigError(
            f"overwrite: {path} is the working directory or holds it", hint="run this from another directory"
        )


def put_in_place(path: Path, is_own: Callable[[Path, str], bool]) -> None:
    """Let the `replacement` of `path`, which is whole, take its place.

    What lies there and is not what was to be replaced is kept under another name.

    Args:
        path: Its `replacement` exists; what a link leads to is replaced.
        is_own: Whether the command makes what has a name in a directory, given both; names of directories end
            in "/" and stand before what is in them. What else the old directory holds comes along.
    """
    new, old = beside(path)
    target = place_of(new)
    with write_errors(path):
        with held_back():
            if other_entries(target) and not _holds_what_goes(path, is_own):
                _keep_aside(target, target)
            if target.exists():
                target.replace(old)
            new.replace(target)
        _clear(old, target, is_own)
        _beside(path, _WAS).unlink(missing_ok=True)


def put_right(path: Path, is_own: Callable[[Path, str], bool]) -> None:
    """Complete a `put_in_place` that was killed; before `path` is `held`.

    Raises:
        DataError: Another process is doing so.
    """
    new, old = beside(path)
    target = place_of(new)
    if not os.path.isdir(old):  # noqa: PTH112
        return
    with held(old), write_errors(path):
        if not other_entries(target):  # killed between the two renames
            if target.is_dir():
                target.rmdir()
            old.replace(target)
        elif not new.exists():
            _clear(old, target, is_own)
        else:  # somebody has put something else there meanwhile
            _keep_aside(old, target)


def _keep_aside(directory: Path, target: Path) -> None:
    """Keep a directory that was at a place and is in the way there."""
    free = (target.with_name(f"{target.name}-before-{number}") for number in count(1))
    kept = next(place for place in free if not os.path.lexists(place))
    directory.replace(kept)
    (kept / LOCK).unlink(missing_ok=True)
    logger.warning("what was at %s before it was replaced is in %s", target, kept)


def _clear(old: Path, target: Path, is_own: Callable[[Path, str], bool], within: str = "") -> None:
    """Remove the old directory, from which what is not of the command goes to the new one."""
    for name in other_entries(old / within):
        place = f"{within}{name}"
        if (old / place).is_dir() and not (old / place).is_symlink() and is_own(old, f"{place}/"):
            _clear(old, target, is_own, f"{place}/")
        elif not is_own(old, place) and not os.path.lexists(target / place):
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            (old / place).replace(target / place)
    if not within and old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
