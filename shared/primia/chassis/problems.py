"""Problem details (RFC 9457): every error leaves a service in this form and no other."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from primia.chassis.telemetry import current_request_id, get_logger
from primia.errors import PrimiaError

MEDIA_TYPE = "application/problem+json"
_TYPE = "urn:primia:problem:"
_STATUS_CODES = {404: "not-found", 405: "method-not-allowed", 400: "malformed-request"}
log = get_logger(__name__)


class Problem(BaseModel):
    """The body of every error answer."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = None
    request_id: str


def document(error: PrimiaError) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": _TYPE + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "request_id": current_request_id(),
    }
    if error.hint:
        body["hint"] = error.hint
    return {**error.extra, **body}


def response(error: PrimiaError) -> Response:
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 503:
        headers["Retry-After"] = str(error.extra.get("retry_after", 1))
    return JSONResponse(document(error), error.status, headers, media_type=MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses=`` of a route: these statuses answer with a Problem."""
    return {
        status: {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": "Problem details"}
        for status in (401, 403, *statuses)
    }


def install(app: FastAPI) -> None:
    """Turn every exception of a route into a problem document."""

    @app.exception_handler(PrimiaError)
    async def _known(_request: Request, error: PrimiaError) -> Response:
        if error.status >= 500:
            log.warning("request failed", code=error.code, detail=error.detail)
        return response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        # The input itself is not echoed: it may hold what must not reach a log.
        wrong = [
            {"where": ".".join(str(part) for part in e["loc"]), "what": e["msg"]}
            for e in error.errors()
        ]
        named = "; ".join(f"{e['where']}: {e['what']}" for e in wrong[:5])
        problem = PrimiaError(f"The request is not valid: {named}.", errors=wrong[:100])
        return _plain(problem, 422, "invalid-input", "Invalid input")

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> Response:
        code = _STATUS_CODES.get(error.status_code, "http-error")
        found = _plain(PrimiaError(str(error.detail)), error.status_code, code, str(error.detail))
        found.headers.update(error.headers or {})
        return found

    @app.exception_handler(Exception)
    async def _unknown(_request: Request, error: Exception) -> Response:
        log.error("unexpected error", error=type(error).__name__, exc_info=error)
        return response(PrimiaError("The service failed unexpectedly; its log says more."))


def _plain(error: PrimiaError, status: int, code: str, title: str) -> Response:
    body = {**document(error), "status": status, "type": _TYPE + code, "title": title}
    return JSONResponse(body, status, media_type=MEDIA_TYPE)
