"""The OpenAPI pages, served wholly from here (a hospital's browser reaches nothing else).

A browser cannot send a bearer token by itself: ``/sign-in?token=…`` (made by ``primia docs``)
exchanges one for a cookie that opens these pages and nothing else.
"""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse, RedirectResponse, Response

from primia.chassis.auth import COOKIE
from primia.chassis.context import Ctx
from primia.chassis.identity import MAX_LIFETIME, pages_audience, verify_token

_STATIC = "/static-offline-docs"


def install(app: FastAPI) -> None:
    assets = Path(fastapi_offline.__file__).parent / "static"
    app.mount(_STATIC, StaticFiles(directory=assets), name="pages")
    app.include_router(_router(app))


def _router(app: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    def swagger(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root}{_STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{_STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{root}{_STATIC}/favicon.png",
        )

    @router.get("/redoc")
    def redoc(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_redoc_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            redoc_js_url=f"{root}{_STATIC}/redoc.standalone.js",
            redoc_favicon_url=f"{root}{_STATIC}/favicon.png",
            with_google_fonts=False,
        )

    @router.get("/sign-in")
    def sign_in(ctx: Ctx, request: Request, token: str = Query(max_length=4096)) -> Response:
        verify_token(token, pages_audience(ctx.identity.name), ctx.principals)
        answer = RedirectResponse(f"{request.scope.get('root_path', '')}/docs", 303)
        answer.set_cookie(
            COOKIE,
            token,
            max_age=MAX_LIFETIME,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["Cache-Control"] = "no-store"
        return answer

    return router
