"""The HTTP side of `tbkin visualize --serve`: who may ask, one request after the other, and how errors look.

Three addresses: `GET /` is the page, `POST /image` takes the bytes of an image file, `POST /ask` a JSON
object with `image`, `question` and, both or neither, `selection` and `threshold`. Whoever asks must call the
machine by its own name (against DNS rebinding), come from the page itself (against forms of other sites), and
know the token where there is one. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
from collections.abc import Callable
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tbkin_core.errors import TbkinError
from tbkin_core.support.console import printable
from tbkin_core.support.files import finite

logger = logging.getLogger("tbkin")

MOST_BYTES = 50_000_000
"""Of an image file."""
_MOST_QUESTION_BYTES = 1 << 16
_MOST_WAITING = 4  # requests behind the one in work; more are told that it is busy
_MOST_READ = 3  # images that are read at once
_READING_SECONDS = 60.0  # that the body of a request may take
_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
TOKEN_HEADER = "x-tbkin-token"


class Desk(Protocol):
    """Who answers: `tbkin_core.stages.serve.ImageDesk`."""

    page: str
    policy: str

    def add(self, name: str, content: bytes) -> dict[str, Any]: ...

    def keeps(self, number: str) -> bool: ...

    def ask(
        self, number: str, text: str, rule: str | None, threshold: float | None, with_image: bool
    ) -> dict[str, Any]: ...


def made_app(desk: Desk, names: frozenset[str], token: str = "") -> ASGIApp:
    """The application.

    Args:
        desk: Who answers; asked by one request at a time.
        names: Under which the machine may be called, in lower case and without a port.
        token: What every request has to know; "" where none is needed. With one, the machine may also be
            called by any address in numbers: such a name is nobody else's.
    """
    turn, waiting = asyncio.Lock(), 0
    # What is read lies in memory before its turn comes.
    reading = asyncio.Semaphore(_MOST_READ)

    async def in_turn(work: Callable[[], dict[str, Any]]) -> Response:
        nonlocal waiting
        if waiting > _MOST_WAITING:
            return _refusal(503, "busy with other requests", "try again in a moment", {"retry-after": "2"})
        waiting += 1
        try:
            async with turn:
                return JSONResponse(finite(await run_in_threadpool(work)))
        except HTTPException:
            raise
        except TbkinError as error:
            return _refusal(422, error.message, error.hint)
        except MemoryError:
            return _refusal(422, "out of memory", "give a smaller image")
        except Exception as error:  # one request must not cost the others
            reason = " ".join(str(error).split())[:200]
            logger.warning("a request of the page failed (%s: %s)", type(error).__name__, reason)
            return _refusal(500, f"this could not be answered ({type(error).__name__}: {reason})")
        finally:
            waiting -= 1

    async def page(request: Request) -> Response:
        return HTMLResponse(
            desk.page, headers={"content-security-policy": f"{desk.policy}; frame-ancestors 'none'"}
        )

    async def image(request: Request) -> Response:
        async with reading:
            content = await _body(request, MOST_BYTES, "image")
        name = request.query_params.get("name", "")
        return await in_turn(lambda: desk.add(name, content))

    async def ask(request: Request) -> Response:
        asked = _question(await _body(request, _MOST_QUESTION_BYTES, "question"))

        def answered() -> dict[str, Any]:
            if not desk.keeps(asked["number"]):
                raise HTTPException(410, "the image is not kept any more; choose it again")
            return desk.ask(**asked)

        return await in_turn(answered)

    app = Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Route("/image", image, methods=["POST"]),
            Route("/ask", ask, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _as_refusal, ClientDisconnect: _as_refusal},
    )
    return _Gate(app, names, token)


def made_server(app: ASGIApp) -> uvicorn.Server:
    """What answers for the application; its `run` takes sockets, until a signal ends it or `should_exit`."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            limit_concurrency=256,
            timeout_graceful_shutdown=2,
        )
    )


class _Gate:
    """Lets in who may ask, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, names: frozenset[str], token: str) -> None:
        self._app, self._names, self._token = app, names, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        if scope["type"] != "http":
            return
        answer: ASGIApp = self._refused(Request(scope)) or self._app
        await answer(scope, receive, with_headers)

    def _refused(self, request: Request) -> Response | None:
        """What is said to who may not ask; None to all others."""
        host = request.headers.get("host", "").lower()
        name = re.sub(r":\d*$", "", host)
        if name not in self._names and not (self._token and _is_address(name)):
            return _refusal(
                421, "this page is not served under that name", "open the address that was printed"
            )
        if self._token:
            given = request.headers.get(TOKEN_HEADER) or request.query_params.get("token", "")
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode()):
                return _refusal(
                    403, "the token is missing or wrong", "open the whole address that was printed"
                )
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            site = request.headers.get("sec-fetch-site", "same-origin")
            if site != "same-origin" or (origin is not None and origin.lower() != f"http://{host}"):
                return _refusal(403, "only the page itself may ask")
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


async def _body(request: Request, most: int, what: str) -> bytes:
    """The body of a request, of at most so many bytes."""
    too_large = HTTPException(413, f"{what}: is larger than {most / 1e6:,.3g} MB; give a smaller one")
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > most:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(_READING_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > most:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"{what}: took longer than {_READING_SECONDS:.0f} seconds to come") from None
    return bytes(content)


def _question(content: bytes) -> dict[str, Any]:
    """What `Desk.ask` takes; HTTPException of anything else."""
    try:
        asked = json.loads(content)
        number, text = asked["image"], asked["question"]
        rule, threshold = asked.get("selection"), asked.get("threshold")
        is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        known = isinstance(number, str) and isinstance(text, str)
        both = (rule is None and threshold is None) or (isinstance(rule, str) and is_number)
        if not known or not both:
            raise TypeError
        threshold = None if threshold is None else float(threshold)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        raise HTTPException(
            400, "expected a JSON object with image and question, and perhaps selection and threshold"
        ) from None
    return {
        "number": number,
        "text": text,
        "rule": rule,
        "threshold": threshold,
        "with_image": asked.get("with_image") is True,
    }


def _refusal(
    status: int, message: str, hint: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    error, advice = (None if text is None else printable(text) for text in (message, hint))
    return JSONResponse({"error": error, "hint": advice}, status, headers)


async def _as_refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _refusal(error.status_code, error.detail, headers=dict(error.headers or {}))
    return _refusal(400, "the request ended early")
