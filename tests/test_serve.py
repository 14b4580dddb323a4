"""`tbkin visualize --serve`: who may ask, what comes in, what the page shows, how it ends."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import ENVIRONMENT, fails, files_below
from PIL import Image
from playwright.sync_api import Page, expect

from tbkin_core import Answerer
from tbkin_core.errors import DataError
from tbkin_core.figures.page import page_content
from tbkin_core.selection import Selection
from tbkin_core.settings import VisualizeConfig
from tbkin_core.stages import serve as serve_module
from tbkin_core.stages import web
from tbkin_core.stages.serve import MOST_CHARACTERS, ImageDesk

VQA, REC = "runs/finetune/vqa-relative-0.3", "runs/finetune/rec"
NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
TOKEN = "a-token-that-nobody-guesses"


@dataclass
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclass
class Served:
    """A server in a thread of this process."""

    port: int

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        host: str | None = None,
        **headers: str,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given["host"] = f"127.0.0.1:{self.port}" if host is None else host
        content = body if body is None or hasattr(body, "__next__") else _bytes(body)
        chunked = hasattr(body, "__next__")
        connection.request(method, path, content, given, encode_chunked=chunked)
        answer = connection.getresponse()
        reply = Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return reply

    def ask(self, **asked: Any) -> Reply:
        return self("POST", "/ask", asked)


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@contextlib.contextmanager
def served(desk: web.Desk, names: frozenset[str] = NAMES, token: str = "") -> Iterator[Served]:
    opened = socket.create_server(("127.0.0.1", 0))
    server = web.made_server(web.made_app(desk, names, token))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield Served(opened.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        opened.close()
    assert not thread.is_alive()


# ---- who may ask --------------------------------------------------------------------------------


@dataclass
class Echo:
    """A desk without a model."""

    page: str = "<!doctype html><title>page</title>"
    policy: str = "default-src 'none'"
    work: Callable[[], None] = lambda: None

    def add(self, name: str, content: bytes) -> dict[str, Any]:
        self.work()
        return {"name": name, "bytes": len(content)}

    def keeps(self, number: str) -> bool:
        return True

    def ask(self, **asked: Any) -> dict[str, Any]:
        self.work()
        return asked


QUESTION = {"image": "x", "question": "what?"}


@pytest.fixture(scope="module")
def echo() -> Iterator[Served]:
    with served(Echo()) as server:
        yield server


@pytest.mark.parametrize("host", ["localhost", "localhost:8420", "127.0.0.1", "127.0.0.1:1", "[::1]:8420"])
def test_the_machine_is_called_by_its_own_name(host: str, echo: Served) -> None:
    assert echo("GET", "/", host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "localhost.evil", "", "10.0.0.1"]
)
def test_a_name_of_somebody_else_that_leads_here_is_refused(host: str, echo: Served) -> None:
    for method, path, body in (("GET", "/", None), ("POST", "/ask", QUESTION), ("POST", "/image", b"x")):
        reply = echo(method, path, body, host=host)
        assert reply.status == 421 and "not served under that name" in reply.error, path


def test_other_sites_may_not_ask(echo: Served) -> None:
    own = f"http://127.0.0.1:{echo.port}"
    others = [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"http://127.0.0.1:{echo.port + 1}"},
        {"origin": f"https://127.0.0.1:{echo.port}"},
        {"origin": f"http://localhost:{echo.port}"},
        {"origin": own, "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ]
    for headers in others:
        for path, body in (("/ask", _bytes(QUESTION)), ("/image", b"x")):
            reply = echo("POST", path, body, **headers)
            assert reply.status == 403 and reply.error == "only the page itself may ask", headers
    assert echo("OPTIONS", "/ask", origin="http://evil.example").status == 403
    for headers in ({"origin": own}, {"origin": own, "sec_fetch_site": "same-origin"}, {}):
        assert echo("POST", "/ask", QUESTION, **headers).status == 200
    assert echo("GET", "/", sec_fetch_site="cross-site").status == 200, "a link may lead here"
    reply = echo("POST", "/ask", QUESTION, origin=own)
    assert "access-control-allow-origin" not in reply.headers


def test_with_a_token_nobody_asks_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = web.hmac.compare_digest

    def digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(web.hmac, "compare_digest", digest)
    with served(Echo(), frozenset({"machine"}), TOKEN) as server:
        for wrong in ("", "wrong", TOKEN[:-1], TOKEN + "x", "%F0%9F%98%80"):
            for method, path, body in (
                ("GET", "/", None),
                ("POST", "/ask", QUESTION),
                ("POST", "/image", b"x"),
            ):
                reply = server(method, f"{path}?token={wrong}", body)
                assert reply.status == 403 and "token is missing or wrong" in reply.error
                assert TOKEN.encode() not in reply.body
        assert server("GET", "/").status == 403
        assert server("GET", f"/?token={TOKEN}").body.startswith(b"<!doctype html>")
        assert server("POST", "/ask", QUESTION, x_tbkin_token=TOKEN).status == 200
        # By its name and by any address in numbers, which is nobody's name.
        for host, status in (
            ("machine:80", 200),
            ("192.168.1.5:8420", 200),
            ("[fe80::1]", 200),
            ("a.b", 421),
        ):
            assert server("GET", f"/?token={TOKEN}", host=host).status == status, host
    assert {TOKEN.encode()} == {expected for _, expected in compared}, "compared in constant time"


def test_every_answer_has_its_headers(echo: Served) -> None:
    replies = [
        echo("GET", "/"),
        echo("GET", "/favicon.ico"),
        echo("POST", "/ask", QUESTION),
        echo("POST", "/ask", b"{"),
        echo("GET", "/ask"),
        echo("GET", "/", host="evil.example"),
    ]
    assert [reply.status for reply in replies] == [200, 404, 200, 400, 405, 421]
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["x-frame-options"] == "DENY"
        assert "server" not in reply.headers
        html = reply is replies[0]
        assert reply.headers["content-type"].startswith("text/html" if html else "application/json")
    assert replies[0].headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


# ---- how much may come --------------------------------------------------------------------------


def test_sizes_have_an_end(echo: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MOST_BYTES", 1_000_000)
    assert echo("POST", "/image?name=a.jpg", bytes(1_000_000)).json == {"name": "a.jpg", "bytes": 1_000_000}
    reply = echo("POST", "/image", bytes(1_000_001))
    assert reply.status == 413 and "image: is larger than 1 MB" in reply.error
    # Whatever the sender says of its length.
    parts = iter([bytes(600_000), bytes(600_000)])
    assert echo("POST", "/image", parts, transfer_encoding="chunked").status == 413
    assert echo("POST", "/ask", {**QUESTION, "question": "x" * 70_000}).status == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'"text"',
        b"[" * 20_000,
        {},
        {"image": "x"},
        {"question": "x"},
        {"image": 1, "question": "x"},
        {"image": "x", "question": None},
        {**QUESTION, "selection": "relative"},
        {**QUESTION, "threshold": 0.3},
        {**QUESTION, "selection": 3, "threshold": 0.3},
        {**QUESTION, "selection": "relative", "threshold": "0.3"},
        {**QUESTION, "selection": "relative", "threshold": True},
        {**QUESTION, "selection": "relative", "threshold": 10**400},
    ],
    ids=str,
)
def test_what_is_no_question_is_refused(body: Any, echo: Served) -> None:
    reply = echo("POST", "/ask", body)
    assert reply.status == 400 and "expected a JSON object" in reply.error


def test_requests_wait_for_each_other_and_too_many_are_told_so() -> None:
    inside, most, go = [], [], threading.Event()

    def work() -> None:
        inside.append(1)
        most.append(len(inside))
        assert go.wait(30)
        inside.pop()

    with served(Echo(work=work)) as server:
        replies: list[Reply] = []
        threads = [
            threading.Thread(target=lambda: replies.append(server("POST", "/ask", QUESTION)))
            for _ in range(web._MOST_WAITING + 3)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(replies) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [reply.status for reply in replies] == [503, 503], "the others wait"
        assert "busy" in replies[0].error and replies[0].json["hint"] and "retry-after" in replies[0].headers
        assert server("GET", "/").status == 200, "the page itself needs no model"
        go.set()
        for thread in threads:
            thread.join(30)
        assert sorted(reply.status for reply in replies) == [200] * (web._MOST_WAITING + 1) + [503] * 2
        assert max(most) == 1
        assert server("POST", "/ask", QUESTION).status == 200


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (
            DataError("photo.jpg: is broken\x1b[31m", hint="copy it again"),
            422,
            "photo.jpg: is broken\\x1b[31m",
        ),
        (MemoryError(), 422, "out of memory"),
        (ZeroDivisionError("by zero"), 500, "this could not be answered (ZeroDivisionError: by zero)"),
    ],
)
def test_an_error_is_a_message_and_ends_nothing(error: Exception, status: int, says: str) -> None:
    faults = [error]

    def work() -> None:
        if faults:
            raise faults.pop()

    with served(Echo(work=work)) as server:
        reply = server("POST", "/image", b"x")
        assert (reply.status, reply.error) == (status, says)
        assert b"Traceback" not in reply.body
        assert server("POST", "/ask", QUESTION).status == 200


# ---- with a model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(trained: Path) -> ImageDesk:
    with contextlib.chdir(trained):
        return ImageDesk(VisualizeConfig(serve=True, devices="cpu"), Path(VQA))


@pytest.fixture(scope="module")
def model(desk: ImageDesk, trained: Path) -> Iterator[Served]:
    """A server with the model for questions."""
    with contextlib.chdir(trained), served(desk) as server:
        yield server


def picture(shape: tuple[int, int, int] = (40, 60, 3), kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def huge_png() -> bytes:
    """A PNG that declares 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


WHAT = "what color is the circle?"


@pytest.fixture
def number(model: Served, desk: ImageDesk, trained: Path) -> str:
    """Of an image that the server has."""
    kept = [number for number, image in desk._images.items() if image.name == "img.jpg"]
    return kept[-1] if kept else given(model, trained)


def given(server: Served, trained: Path) -> str:
    return str(server("POST", "/image?name=img.jpg", (trained / "img.jpg").read_bytes()).json["id"])


def test_it_answers_as_the_command_does_and_at_every_threshold(model: Served, trained: Path) -> None:
    added = model("POST", "/image?name=img.jpg", (trained / "img.jpg").read_bytes()).json
    assert (added["name"], added["size"]) == ("img.jpg", [128, 96]) and added["regions"] > 0
    assert added["preview"].startswith("data:image/jpeg;base64,")
    with contextlib.chdir(trained):
        for rule, threshold in ((None, None), ("relative", 0.8), ("topk", 2.0), ("relative", 0.0)):
            own = Answerer(VQA, selection=rule, threshold=threshold, devices="cpu")
            expected = page_content(own.ask("img.jpg", WHAT).trace)
            found = model.ask(image=added["id"], question=WHAT, selection=rule, threshold=threshold).json
            assert found["notes"] == []
            assert found["scores"] == expected["scores"] and found["run"] == expected["run"]
            # The command's own trace has a graph where that is drawn.
            of_graph = dict.fromkeys(("graph", "graphRegions", "graphRegionsAreRegions"))
            assert found["trace"] | of_graph == json.loads(json.dumps(expected["trace"] | of_graph))
            assert found["trace"]["graph"]["objects"][0]["name"] == "circle"
    assert "image" not in found
    with_image = model.ask(image=added["id"], question=WHAT, with_image=True).json
    assert with_image["image"].startswith("data:image/jpeg;base64,")


BAD_IMAGES = {
    "empty": (b"", "is empty (0 bytes)"),
    "text": (b"this is no image\n" * 100, "is not an image that can be read"),
    "HTML": (b"<html><script>alert(1)</script>", "is not an image that can be read"),
    "truncated JPEG": (picture((200, 300, 3), "JPEG")[:5000], "the image is truncated or broken"),
    "truncated PNG": (picture()[:300], "the image is truncated or broken"),
    "huge PNG": (huge_png(), "the image is too large"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image that can be read"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_get_the_programs_own_message(kind: str, model: Served, number: str) -> None:
    content, says = BAD_IMAGES[kind]
    reply = model("POST", "/image?name=my%20photo.jpg", content)
    assert reply.status == 422
    assert reply.error.startswith("my photo.jpg: ") and says in reply.error
    assert model.ask(image=number, question=WHAT).status == 200


@pytest.mark.parametrize(
    "content",
    [picture((1, 1, 3)), picture((1, 3000, 3)), picture((9, 9, 4)), picture((50, 50, 3), "GIF")],
    ids=["1x1", "1x3000", "RGBA", "GIF"],
)
def test_odd_images_are_answered_about(content: bytes, model: Served) -> None:
    added = model("POST", "/image", content)
    assert added.status == 200 and added.json["name"] == "image"
    assert model.ask(image=added.json["id"], question=WHAT, with_image=True).status == 200


def test_names_of_files_are_shown_and_no_more(model: Served) -> None:
    name = "..%2F..%2Fetc%2Fpasswd%0A%1B%5B31m" + "x" * 5000
    reply = model("POST", f"/image?name={name}", b"nothing")
    assert reply.status == 422 and len(reply.error) < 300
    assert "\n" not in reply.error and "\x1b" not in reply.error


BAD_QUESTIONS = {
    "": "question: is empty",
    "  \n\t ": "question: is empty",
    "x" * 10_000: f"has 10,000 characters, and at most {MOST_CHARACTERS:,} are taken",
    "狗 是 什么 颜色": "none of its words is known",
    "\x00\x01\x1b[31m": "none of its words is known",
    "\ud800": "none of its words is known",
}


@pytest.mark.parametrize("text", BAD_QUESTIONS, ids=lambda text: ascii(text[:12]))
def test_bad_questions_get_the_programs_own_message(text: str, model: Served, number: str) -> None:
    reply = model.ask(image=number, question=text)
    assert reply.status == 422 and BAD_QUESTIONS[text] in reply.error and reply.json["hint"] != ""
    assert not re.search("[\x00-\x1f]", reply.error)
    assert model.ask(image=number, question=WHAT).status == 200


def test_odd_questions_are_answered_with_a_note(model: Served, number: str) -> None:
    long = " ".join(["is there a red circle"] * 30)
    for text, note in (
        ("quelle est la couleur du circle dans cette image ?", "does not look English"),
        ("what color is the zyzzyva?", "reads past them: zyzzyva"),
        (long, "the question was cut to"),
        ("what \x00color\x1b[31m is the circle ?\u202e", ""),
        ("<script>alert(1)</script> what color is the circle?", "script"),
    ):
        reply = model.ask(image=number, question=text)
        assert reply.status == 200, reply.body[:300]
        assert note in " ".join(reply.json["notes"])
        assert not re.search("[\x00-\x1f\u202e]", " ".join(reply.json["notes"]) + reply.json["trace"]["text"])
    again = model.ask(image=number, question=WHAT).json
    assert again["notes"] == [], "a note is of its own question"


@pytest.mark.parametrize(
    ("rule", "threshold", "says"),
    [
        ("nearest", 0.3, "nearest"),
        ("relative", 1.5, "1.5"),
        ("relative", -0.1, "-0.1"),
        ("relative", float("nan"), "nan"),
        ("topk", 2.5, "2.5"),
        ("score", float("inf"), "inf"),
    ],
)
def test_thresholds_are_checked(rule: str, threshold: float, says: str, model: Served, number: str) -> None:
    reply = model.ask(image=number, question=WHAT, selection=rule, threshold=threshold)
    assert reply.status == 422 and says in reply.error
    assert model.ask(image=number, question=WHAT).json["trace"]["threshold"] == 0.3


def test_a_few_images_are_kept_and_nothing_is_written(
    model: Served, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_module, "_MOST_IMAGES", 3)
    temporary = Path(tempfile.gettempdir())
    before = files_below(trained), set(temporary.iterdir())
    first = given(model, trained)
    others = [model("POST", "/image", picture((30, 30 + number, 3))).json["id"] for number in range(3)]
    gone = model.ask(image=first, question=WHAT)
    assert gone.status == 410 and "not kept any more" in gone.error
    assert all(model.ask(image=number, question=WHAT).status == 200 for number in others)
    assert len({first, *others}) == 4 and all(len(number) >= 20 for number in others)
    assert model.ask(image="../../etc/passwd", question=WHAT).status == 410
    assert files_below(trained) == before[0]
    assert {path for path in temporary.iterdir() if "tbkin" in path.name} <= before[1]


def test_features_that_cannot_be_made_anew_are_said_at_once(trained: Path, tmp_path: Path) -> None:
    import shutil

    place = Path(shutil.copytree(trained / VQA, tmp_path / "imported"))
    config = json.loads((place / "config.json").read_text())
    config["extractor"]["extractor"] = "import"
    (place / "config.json").write_text(json.dumps(config))
    line = ("visualize", "--serve", "--port", "0", "--checkpoint", place, "--devices", "cpu")
    message = fails(*line, cwd=trained, code=2, says="cannot be made here for a new image")
    assert "--extractor builtin or photo" in message


# ---- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("img.jpg", "what?"), "serve: the page takes images and questions"),
        (("--image-id", "3"), "serve: the page takes images and questions"),
        (("--html",), "html: has no part in the page of --serve"),
        (("--format", "svg"), "format: has no part"),
        (("--features", "x"), "features: has no part"),
        (("--out", "x"), "out: is of files, and --serve writes none"),
        (("--from", "results-val.json"), "results: is of files"),
        (("--host", " "), "host: is empty"),
        (("--port", "70000"), "port: expected a number from 0 to 65535"),
        (("--threshold", "3"), "3"),
        (("--host", "192.0.2.1"), "host: 192.0.2.1 cannot be served at"),
        (("--host", "no.such.host.invalid"), "is no address of this machine"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    fails("visualize", "--serve", *arguments, cwd=tmp_path, code=2, says=says)
    assert list(tmp_path.iterdir()) == []


def test_without_serve_its_options_have_no_place(tmp_path: Path) -> None:
    fails("visualize", "a.jpg", "what?", "--port", "1", cwd=tmp_path, code=2, says="port: only with --serve")


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    message = fails("visualize", "--serve", cwd=tmp_path, code=1, says="--serve needs uvicorn, not installed")
    assert "pip install 'tbkin[serve]'" in message


def test_a_port_in_use_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = ("visualize", "--serve", "--port", port, "--checkpoint", "nowhere")
        message = fails(*line, cwd=tmp_path, code=2, says=f"port: {port} of 127.0.0.1 is in use")
    assert "--port 0 takes any free one" in message


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGINT, ()), (signal.SIGTERM, ("--host", "0.0.0.0", "--quiet"))]
)
def test_it_says_its_address_serves_and_ends_cleanly(
    number: signal.Signals, options: tuple[str, ...], trained: Path
) -> None:
    line = [sys.executable, "-m", "tbkin_cli", "visualize", "--serve", "--port", "0", "--json", *options]
    with subprocess.Popen(
        [*line, "--checkpoint", VQA, "--devices", "cpu"],
        cwd=trained,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            values = json.loads(process.stdout.readline())
            assert values["checkpoint"] == VQA and values["task"] == "vqa"
            found = re.fullmatch(r"http://([^:/]+):(\d+)/(?:\?token=([\w-]{32,}))?", values["url"])
            assert found is not None, values["url"]
            assert (found[3] is None) == (not options), "other machines need a token"
            server, token = Served(int(found[2])), f"?token={found[3]}"
            page = server("GET", f"/{token}", host=f"{found[1]}:{found[2]}")
            assert page.status == 200 and b'id="ask-form"' in page.body
            assert server("GET", "/").status == (403 if options else 200)
            # Nothing of the page comes from anywhere else.
            sources = re.findall(rb"""(?:src|href|action)=["']([^"']*)""", page.body)
            assert all(source.startswith(b"data:") for source in sources)
            assert b"https://" not in page.body
        finally:
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("tbkin: interrupted; the page is not served any more; nothing of it was kept\n")
    assert "Traceback" not in err and out == ""


def test_beside_the_loop_of_a_notebook_it_serves_until_interrupted(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(serve_module, "_in_a_loop", lambda: True)
    config = VisualizeConfig(serve=True, port=0, checkpoint=Path(VQA), devices="cpu")
    result = serve_module.serve(config)
    assert result.finish is not None
    port = int(result.url.rstrip("/").rpartition(":")[2])
    statuses = []

    def visit_and_interrupt() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/")
        statuses.append(connection.getresponse().status)
        signal.raise_signal(signal.SIGINT)

    visitor = threading.Thread(target=visit_and_interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        visitor.start()
        with pytest.raises(KeyboardInterrupt):
            result.finish()
    finally:
        signal.signal(signal.SIGINT, before)
        visitor.join()
    assert statuses == [200]
    with pytest.raises(OSError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).request("GET", "/")


def test_nothing_of_it_is_loaded_by_other_commands() -> None:
    code = (
        "import sys, tbkin_cli.main, tbkin_core.settings;"
        "sys.exit(bool({'starlette', 'uvicorn', 'anyio'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, timeout=60).returncode == 0


# ---- in the browser -----------------------------------------------------------------------------

browser = pytest.mark.xdist_group("browser")


@pytest.fixture
def visit(tab: Page) -> Iterator[Callable[[Served], Page]]:
    """Opens the page of a server; in the end, it may have complained of nothing, nor asked anybody else."""
    complaints: list[str] = []
    requests: list[str] = []
    listeners: dict[Any, Callable[[Any], None]] = {
        # A refusal of the server is an error in the browser's log too.
        "console": lambda message: "Failed to load" in message.text or complaints.append(message.text),
        "pageerror": lambda error: complaints.append(str(error)),
        "request": lambda request: requests.append(request.url),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    places: list[str] = []

    def opened(server: Served, width: int = 1280, height: int = 900) -> Page:
        places.append(f"http://127.0.0.1:{server.port}/")
        tab.set_viewport_size({"width": width, "height": height})
        tab.goto(places[-1])
        tab.wait_for_selector("html[data-ready]", state="attached")
        return tab

    yield opened
    tab.goto("about:blank")
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert not complaints
    assert all(url.startswith((*places, "data:", "about:")) for url in requests)


def file_of(name: str, content: bytes) -> Any:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def put(page: Page, trained: Path, text: str = WHAT) -> None:
    page.set_input_files("#file", trained / "img.jpg")
    expect(page.locator("#drop-text")).to_contain_text("img.jpg, 128 × 96")
    page.fill("#text", text)
    page.press("#text", "Enter")


@browser
def test_an_image_is_asked_about_and_answers_follow_the_slider(
    model: Served, visit: Callable[..., Page], trained: Path
) -> None:
    page = visit(model)
    expect(page.locator("main")).to_be_hidden()
    expect(page.locator("#question")).to_have_text("Ask about an image")
    put(page, trained)
    expect(page.locator("#question")).to_have_text(WHAT)
    with contextlib.chdir(trained):
        own = {value: Answerer(VQA, threshold=value, devices="cpu") for value in (0.3, 0.6)}
        traces = {value: one.ask("img.jpg", WHAT).trace for value, one in own.items()}

    def shows(value: float) -> None:
        page.wait_for_selector(f"html[data-answered='relative {value}']", state="attached")
        expect(page.locator("#answers thead th").nth(2)).to_have_text(f"relative, τ = {value}")
        best, share = traces[value].thresholded.answers[0]
        expect(page.locator("#reply")).to_contain_text(best)
        expect(page.locator("#independent")).to_contain_text(
            f"the model’s own pass with relative, τ = {value}"
        )
        told = float((page.text_content("#reply span:last-child") or "").split("with")[0].split()[-2])
        assert told == pytest.approx(100 * share, rel=0.01)
        cells = "#kept tr[data-direction=all] td[data-column=all]"
        assert page.get_attribute(cells, "data-kept") == str(int(traces[value].thresholded.kept.sum()))

    shows(0.3)
    page.select_option("#layer", index=0)
    page.locator("#words .word").nth(2).click()
    page.focus("#tau")
    for _ in range(30):  # each step asks for nothing before it rests
        page.keyboard.press("ArrowRight")
    shows(0.6)
    assert page.input_value("#layer") == "0", "what was chosen stays"
    expect(page.locator("#words .word").nth(2)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#answers-note")).to_contain_text("follows the slider")
    # The threshold holds for the next question.
    page.fill("#text", "is there a red circle?")
    page.click("#send")
    expect(page.locator("#question")).to_have_text("is there a red circle?")
    expect(page.locator("#tau-exact")).to_have_value("0.6")
    expect(page.locator("#graph svg")).to_be_visible()


@browser
def test_what_goes_wrong_is_said_in_the_page_and_can_be_put_right(
    model: Served, visit: Callable[..., Page], trained: Path, desk: ImageDesk
) -> None:
    page = visit(model, 390, 844)
    problem = page.locator("#ask-problem")
    page.click("#send")
    expect(problem).to_contain_text("there is no image yet")
    for name, content, says in (
        ("notes.txt", b"words", "notes.txt: is not an image that can be read"),
        ("broken.jpg", picture((200, 300, 3), "JPEG")[:4000], "broken.jpg: the image is truncated"),
        ("huge.png", huge_png(), "huge.png: the image is too large"),
    ):
        page.set_input_files("#file", file_of(name, content))
        expect(problem).to_contain_text(says)
    put(page, trained, "")
    expect(problem).to_contain_text("question: is empty")
    page.fill("#text", "цвет круга")
    page.click("#send")
    expect(problem).to_contain_text("none of its words is known")
    page.fill("#text", "<img src=x onerror=alert(1)> what color is the zyzzyva?")
    page.click("#send")
    expect(page.locator("#notes")).to_contain_text("zyzzyva")
    expect(problem).to_be_hidden()
    expect(page.locator("#question")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    # The server has forgotten the image: the page gives it again.
    desk._images.clear()
    page.fill("#text", WHAT)
    page.click("#send")
    expect(page.locator("#question")).to_have_text(WHAT)
    expect(page.locator("#notes")).to_be_hidden()
    # Another image: what is shown is not of it.
    page.set_input_files("#file", file_of("other.png", picture()))
    expect(page.locator("#drop-text")).to_contain_text("other.png")
    expect(page.locator("main")).to_be_hidden()
    expect(page.locator("#reply")).to_be_hidden()


DROP = """async (node) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 30 });
  const drawing = await new Promise((done) => canvas.toBlob(done));
  const data = new DataTransfer();
  data.items.add(new File([drawing], "dropped.png"));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    node.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
    if (kind === "dragover" && !node.classList.contains("over")) throw new Error("it does not show");
  }
}"""


@browser
def test_an_image_can_be_dropped_and_the_server_may_end(
    desk: ImageDesk, visit: Callable[..., Page], trained: Path
) -> None:
    with contextlib.chdir(trained), served(desk) as server:
        page = visit(server)
        page.locator("#drop").evaluate(DROP)
        expect(page.locator("#drop-text")).to_contain_text("dropped.png, 40 × 30")
        expect(page.locator("#text")).to_be_focused()
    page.fill("#text", WHAT)
    page.evaluate("addEventListener('unhandledrejection', () => (window.dropped = 1))")
    page.route("**/ask", lambda route: route.abort())
    page.click("#send")
    expect(page.locator("#ask-problem")).to_contain_text("the server does not answer")
    assert page.evaluate("window.dropped") is None
    page.unroute("**/ask")


@browser
def test_a_model_without_a_threshold_answers_by_its_rule_and_by_others(
    desk: ImageDesk, model: Served, visit: Callable[..., Page], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "_own", Selection("entmax15", 1.0))
    page = visit(model)
    put(page, trained)
    page.wait_for_selector("html[data-answered='entmax15 1']", state="attached")
    expect(page.locator("#tau")).to_be_disabled()
    page.select_option("#rule", "topk")
    page.wait_for_selector("html[data-answered='topk 4']", state="attached")
    expect(page.locator("#answers thead th").nth(2)).to_have_text("top 4 keys")
    page.select_option("#rule", "entmax15")
    page.wait_for_selector("html[data-answered='entmax15 1']", state="attached")
    expect(page.locator("#independent")).to_contain_text("the model’s own pass with entmax15")


@browser
def test_a_question_may_be_sent_while_its_image_is_still_read(
    model: Served, visit: Callable[..., Page], trained: Path
) -> None:
    page = visit(model)
    page.route("**/image?*", lambda route: (time.sleep(0.3), route.continue_()))
    page.set_input_files("#file", trained / "img.jpg")
    page.fill("#text", WHAT)
    page.press("#text", "Enter")
    expect(page.locator("#question")).to_have_text(WHAT)
    expect(page.locator("#send")).to_be_enabled()
    page.unroute("**/image?*")


@browser
def test_a_model_of_expressions_shows_its_boxes(visit: Callable[..., Page], trained: Path) -> None:
    with contextlib.chdir(trained):
        desk = ImageDesk(VisualizeConfig(serve=True, devices="cpu"), Path(REC))
        with served(desk) as server:
            page = visit(server)
            expect(page.locator("label[for=text]")).to_have_text("Expression")
            put(page, trained, "the red circle")
            expect(page.locator("#grounding tbody th")).to_have_text(
                ["chosen region", "runner-up", "predicted box"]
            )
            expect(page.locator(".grounding.predicted")).to_be_visible()
            expect(page.locator("#independent")).to_contain_text("the model’s own pass")
