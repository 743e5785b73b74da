"""Who may ask the server, and what every answer says: the token, the host and origin of a request, and its size.

A page of another site cannot use the browser of somebody who labels: it does not know the token, its origin is refused,
the cookie is not sent along (SameSite=Strict), and a name that is made to point at this machine (DNS rebinding) is no
host that this server answers to.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY_BYTES = 256 * 1024
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Pass:
    """What a request must show. host: the name the server was asked to listen on, besides localhost and addresses."""

    token: str
    host: str
    port: int

    @property
    def cookie(self) -> str:
        """Browsers share cookies between the ports of a host, so the name has the port."""
        return f"leanmask_{self.port}"

    def knows_host(self, host: str) -> bool:
        """Whether a Host header is this server's: a name that is not ours may point here by DNS rebinding; an address
        cannot.
        """
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        return (port or 80) == self.port and (name in ("localhost", self.host.lower()) or _is_address(name))

    def knows_token(self, given: str) -> bool:
        """Compared in constant time."""
        return hmac.compare_digest(given.encode(), self.token.encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Refuses what it must before the application sees it, and puts the security headers on every answer."""

    def __init__(self, app: App, allowed: Pass) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused:
            await _answer(send, *refused)
        elif self._enters(scope):
            cookie = f"{self._allowed.cookie}={self._allowed.token}; Path=/; HttpOnly; SameSite=Strict"
            await _answer(send, 303, "", {"location": "/", "set-cookie": cookie})
        else:
            await self._app(scope, _Limited(receive), _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        allowed = self._allowed
        if not allowed.knows_host(headers.get("host", "")):
            return 421, "this server does not answer to that host name"
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{headers['host']}":
            return 403, "requests from other origins are refused"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and scope["method"] != "GET":
            return 403, "requests from other sites are refused"
        if not self._enters(scope) and not allowed.knows_token(self._shown(headers)):
            return 401, "the token is missing or wrong; open the address that leanmask annotate printed"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            return 413, f"a request may have at most {MOST_BODY_BYTES} bytes"
        return None

    def _enters(self, scope: Scope) -> bool:
        """Whether this is the address that was printed: the first page, with the right token in it."""
        if scope["path"] != "/" or scope["method"] != "GET" or not scope["query_string"]:
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return self._allowed.knows_token(given)

    def _shown(self, headers: dict[str, str]) -> str:
        bearer = headers.get("authorization", "")
        if bearer.lower().startswith("bearer "):
            return bearer[len("bearer ") :].strip()
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._allowed.cookie)
        except CookieError:
            return ""
        return found.value if found else ""


class _Limited:
    """A body that is cut off, as if the client had gone, when it grows beyond the limit without having said so."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._bytes = receive, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        return {"type": "http.disconnect"} if self._bytes > MOST_BODY_BYTES else message


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {key for key, _ in message["headers"]}
            extra = [(key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in own]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
    body = json.dumps({"detail": detail}).encode() if detail else b""
    told = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    lines = [(key.encode(), value.encode()) for key, value in told.items()]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
