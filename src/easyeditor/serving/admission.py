"""Who may call the server: by which host name, with which key; and errors as OpenAI writes them."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection

from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

PORT = re.compile(r":\d+$")


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error as OpenAI writes it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status, headers)


class Admission:
    """ASGI middleware: lets in who calls the server by one of its names and knows the key."""

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Collection[str]) -> None:
        self._app, self._api_key, self._hosts = app, api_key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with the reason why not."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = PORT.sub("", headers.get("host", "")).lower()
        if self._hosts and host not in self._hosts:
            return error_response(
                403,
                f"This server answers to {', '.join(sorted(self._hosts))} alone, not to "
                f"{host[:200]!r}. Start it with --host to serve other machines.",
            )
        if self._api_key is None or scope["path"] == "/health":
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self._api_key.encode()):
            return None
        message = "This server asks for its API key: send Authorization: Bearer KEY."
        return error_response(401, message, code="invalid_api_key")
