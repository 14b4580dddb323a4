"""`tbkin visualize --serve`: a page on this machine where images are asked about, the model loaded once.

This module knows the model and the socket; what comes over HTTP is checked in `tbkin_core.stages.web`.
Images and answers are kept in memory alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import io
import ipaddress
import os
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tbkin_core.errors import ConfigError, DataError, MissingDependencyError
from tbkin_core.features.pictures import ImageBytes, darkness, load_image, used_bits
from tbkin_core.features.regions import Pixels
from tbkin_core.figures.page import image_uri, page_content, served_page
from tbkin_core.figures.trace import Trace
from tbkin_core.results import ServeResult
from tbkin_core.selection import Selection, check_threshold, rule_of
from tbkin_core.settings import VisualizeConfig
from tbkin_core.stages.answering import PICTURE_SIDE, LoadedModel, NamedRegions, Question
from tbkin_core.stages.choosing import model_for
from tbkin_core.support.console import OBEYED, printable, shortened
from tbkin_core.tasks.table import TASKS

if TYPE_CHECKING:
    import uvicorn

MOST_CHARACTERS = 1000
"""Of a question."""
_MOST_IMAGES = 16  # kept, those last used; each takes some 2 MB
_PACKAGES = ("starlette", "uvicorn")
_LONGEST_NAME = 80
_PREVIEW_SIDE = 320  # pixels
_IMAGE_SIDE = 64  # pixels of the plain image that is asked about before the first visitor's


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of an image: its file is not."""

    name: str
    opened: tuple[Pixels, int, int]  # as `load_image` gives it
    regions: NamedRegions
    notes: list[str]


class ImageDesk:
    """A loaded model with the images that it was given, for one request at a time.

    Raises:
        TbkinError: The checkpoint cannot be loaded, or regions of new images cannot be made for it.
    """

    def __init__(self, config: VisualizeConfig, checkpoint: Path, notes: Sequence[str] = ()) -> None:
        self.model = LoadedModel(config, checkpoint)
        self._own = self.model.selection
        self.standing = [*self.model.problems, *notes]
        self._images: OrderedDict[str, _Kept] = OrderedDict()
        row = TASKS[self.model.task.name]
        named = "expression" if row.presentation.answers_are_regions else "sentence"
        self.asked = "question" if self.model.task.asks else named
        self.page, self.policy = served_page(
            title=row.presentation.title,
            example=row.example,
            checkpoint=str(checkpoint),
            asked=self.asked,
            notes=self.standing,
        )
        # What is missing is said before anybody asks, and the first answer takes no longer than others.
        self._warm(row.example)

    def _warm(self, example: str) -> None:
        file = io.BytesIO()
        Image.new("RGB", (_IMAGE_SIDE, _IMAGE_SIDE), "gray").save(file, "PNG")
        with contextlib.suppress(DataError):  # it may find nothing, and know none of these words
            kept = self._kept(ImageBytes("plain", file.getvalue()))
            self._trace(kept, self.model.read(example))

    def _kept(self, image: ImageBytes) -> _Kept:
        opened = load_image(image, max_side=PICTURE_SIDE)
        regions = self.model.regions.of_file(image, opened[1:])
        bits = used_bits(image)
        return _Kept(image.name, opened, regions, [f"{image}: is {darkness(bits)}"] if bits else [])

    def _trace(self, kept: _Kept, asked: Question) -> Trace:
        """Both passes; `model.problems` are then those of this question."""
        self.model.problems[:] = [*self.standing, *asked.problems, *kept.notes]
        return self.model.trace(ImageBytes(kept.name, b""), asked, kept.regions, kept.opened)

    def add(self, name: str, content: bytes) -> dict[str, Any]:
        """Take an image; its number, which nobody can guess, and its size.

        Raises:
            DataError: It cannot be read.
        """
        name = shortened(OBEYED.sub(" ", name).strip(), _LONGEST_NAME) or "image"
        kept = self._kept(ImageBytes(name, content))
        number = secrets.token_urlsafe(16)
        self._images[number] = kept
        while len(self._images) > _MOST_IMAGES:
            self._images.popitem(last=False)
        pixels, width, height = kept.opened
        return {
            "id": number,
            "name": name,
            "size": [width, height],
            "regions": len(kept.regions.regions),
            "preview": image_uri(pixels, _PREVIEW_SIDE),
        }

    def keeps(self, number: str) -> bool:
        """Whether an image that it was given is still there."""
        return number in self._images

    def ask(
        self, number: str, text: str, rule: str | None, threshold: float | None, with_image: bool
    ) -> dict[str, Any]:
        """What the model answers about an image that it was given: what the page shows, and notes.

        Args:
            number: Of the image.
            text: Question or expression.
            rule, threshold: Of the thresholded pass; None for the checkpoint's.
            with_image: Whether to send the image along.

        Raises:
            KeyError: The image is not kept.
            DataError: The text is empty or too long, or the model knows no word of it.
            ConfigError: There is no such rule or threshold.
        """
        text = " ".join(text.split())
        if not text:
            example = TASKS[self.model.task.name].example
            raise DataError(f"{self.asked}: is empty; give one, for example “{example}”")
        if len(text) > MOST_CHARACTERS:
            raise DataError(
                f"{self.asked}: has {len(text):,} characters, and at most {MOST_CHARACTERS:,} are taken",
                hint="ask in fewer words",
            )
        self._images.move_to_end(number)
        kept = self._images[number]
        self.model.selection = self._selection(rule, threshold)
        trace = self._trace(kept, self.model.read(text))
        found = {
            **page_content(trace),
            "notes": [
                printable(note) for note in dict.fromkeys(self.model.problems) if note not in self.standing
            ],
        }
        return {**found, "image": image_uri(trace.image)} if with_image else found

    def _selection(self, rule: str | None, threshold: float | None) -> Selection:
        """The checkpoint's selection, or another in the same layers and scope."""
        if rule is None or threshold is None:
            return self._own
        rule_of(rule)
        if fault := check_threshold(rule, threshold):
            raise ConfigError(fault)
        return Selection(rule, threshold, self._own.layers, self._own.scope)


def serve(config: VisualizeConfig) -> ServeResult:
    """Load the model and open the page's address; the result's `finish` answers there until interrupted.

    Raises:
        MissingDependencyError: The packages of the extra `serve` are not installed.
        ConfigError: The address or port cannot be had, or the model cannot be given new images.
        TbkinError: The checkpoint cannot be loaded.
    """
    if lacking := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise MissingDependencyError(
            f"--serve needs {' and '.join(lacking)}, not installed here",
            hint="pip install 'tbkin[serve]'",
        )
    # Before the model, which takes seconds to load.
    opened = _listening(config.host.strip(), config.port)
    try:
        checkpoint, chosen_so = model_for("vqa", config.checkpoint)
        desk = ImageDesk(config, checkpoint, chosen_so)
        host, port = opened.getsockname()[:2]
        token = "" if ipaddress.ip_address(host).is_loopback else secrets.token_urlsafe(24)
        from tbkin_core.stages.web import made_app, made_server  # Starlette and uvicorn are an extra

        app = made_app(desk, frozenset(_names_of(host, config.host)), token)
    except BaseException:
        opened.close()
        raise

    def run() -> None:
        try:
            with opened:
                _run(made_server(app), opened)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the page is not served any more; nothing of it was kept") from None

    url = f"http://{_shown_host(host)}:{port}/" + (f"?token={token}" if token else "")
    notes = list(desk.standing)
    if token:
        notes.append(
            "the page is open to every machine that can reach this one and knows the address with its token;"
            " what is sent is not encrypted"
        )
    return ServeResult(
        out=Path(),
        url=url,
        checkpoint=checkpoint,
        task=desk.model.task.name,
        problems=notes,
        run=run,
    )


def _run(server: uvicorn.Server, opened: socket.socket) -> None:
    """Answer at a socket until interrupted; in a thread where this one has a loop, as in a notebook."""
    if not _in_a_loop():
        server.run(sockets=[opened])
        return
    ended = threading.Event()

    def answering() -> None:
        try:
            server.run(sockets=[opened])
        finally:
            ended.set()

    threading.Thread(target=answering, name="tbkin serve").start()
    try:
        # An event, for a join that is interrupted takes the thread for ended; with a limit, as without one
        # Ctrl-C is not heard everywhere.
        while not ended.wait(0.2):
            pass
    finally:
        server.should_exit = True
        ended.wait()


def _in_a_loop() -> bool:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        ConfigError: There is no such address here, or the port is taken or not to be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"host: {host!r} is no address of this machine ({getattr(error, 'strerror', None) or error})",
            hint="leave --host out to serve on this machine alone",
        ) from None
    family, kind, protocol, _, place = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        # A port that was served a moment ago is free; one that is served now is not.
        if os.name == "posix":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(place)
        opened.listen(16)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port: {port} of {host} is in use, perhaps by another `tbkin visualize --serve`",
                hint="end that one, or choose another port with --port N; --port 0 takes any free one",
            ) from None
        if error.errno == errno.EACCES:
            raise ConfigError(
                f"port: {port} of {host} is not to be had ({error.strerror})",
                hint="choose one from 1024 up with --port N",
            ) from None
        raise ConfigError(
            f"host: {host} cannot be served at ({error.strerror or error})",
            hint="leave --host out to serve on this machine alone",
        ) from None
    return opened


def _names_of(host: str, given: str) -> set[str]:
    """Names under which the page may be asked for; another one is that of a site that leads here."""
    if ipaddress.ip_address(host).is_loopback:
        return {"localhost", "127.0.0.1", "[::1]", _shown_host(host)}
    machine = socket.gethostname().lower()
    return {"localhost", _shown_host(host), given.strip().lower(), machine, f"{machine}.local"}


def _shown_host(host: str) -> str:
    """An address as it stands in a URL; of all of this machine's, the one that others know, or its name."""
    if ipaddress.ip_address(host).is_unspecified:
        try:
            # Nothing is sent; the system says which of its addresses leads to others.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.connect(("192.0.2.1", 9))
                host = asking.getsockname()[0]
        except OSError:
            return socket.gethostname().lower()
    return f"[{host}]" if ":" in host else host
