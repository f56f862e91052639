"""Nobody but an enrolled principal gets past the door; health alone answers a stranger.

The door is a middleware, so a route cannot be left open by forgetting something. Routes then ask
for a role: ``User = Annotated[Principal, Depends(require("user"))]``. A browser may carry a token
in a cookie, which opens the documentation pages and nothing else.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import cast

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from primia.chassis import problems
from primia.chassis.identity import Principal, PrincipalBook, Role, pages_audience, verify_token
from primia.errors import Forbidden, PrimiaError, Unauthenticated

OPEN_PATHS = ("/health/live", "/health/ready")
PAGE_PATHS = ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/")
# Signing in carries its token in the address and checks it itself.
SIGN_IN_PATH = "/sign-in"
COOKIE = "primia_pages"
# Documents the scheme in OpenAPI; the door has checked the token already.
_scheme = HTTPBearer(auto_error=False, description="A token signed by an enrolled principal")


class Door:
    """ASGI middleware: authenticates, or answers 401 before the body is read."""

    def __init__(
        self, app: ASGIApp, audience: str, book: PrincipalBook, metrics_token: str | None = None
    ) -> None:
        self._app = app
        self._audience = audience
        self._book = book
        self._metrics_token = metrics_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in (*OPEN_PATHS, SIGN_IN_PATH):
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["principal"] = self._authenticate(scope)
        except PrimiaError as error:
            await problems.response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _authenticate(self, scope: Scope) -> Principal | None:
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token:
            if scope["path"] == "/metrics" and self._is_monitor(token):
                return None
            return verify_token(token.strip(), self._audience, self._book)
        if _is_page(scope["path"]) and (cookie := _cookie(headers)):
            return verify_token(cookie, pages_audience(self._audience), self._book)
        raise Unauthenticated(
            "This service answers enrolled principals only.",
            hint="Send a token signed for it: `Authorization: Bearer …` (`primia token`).",
        )

    def _is_monitor(self, token: str) -> bool:
        expected = self._metrics_token
        return expected is not None and hmac.compare_digest(expected.encode(), token.encode())


def _is_page(path: str) -> bool:
    return path in PAGE_PATHS or path.startswith("/static-offline-docs/")


def _cookie(headers: Headers) -> str | None:
    try:
        jar = SimpleCookie(headers.get("Cookie", ""))
    except CookieError:
        return None
    return jar[COOKIE].value if COOKIE in jar else None


def require(*roles: Role) -> Callable[..., Awaitable[Principal]]:
    """A dependency that yields the caller, who must have one of the roles."""

    async def caller(request: Request, _documented: object = Depends(_scheme)) -> Principal:
        principal = cast("Principal | None", getattr(request.state, "principal", None))
        if principal is None:
            raise Unauthenticated("This service answers enrolled principals only.")
        if principal.role not in roles:
            raise Forbidden(
                f"{principal.name} has the role {principal.role}; this needs {' or '.join(roles)}."
            )
        return principal

    return caller
