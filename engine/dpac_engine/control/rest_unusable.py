"""What control answers while it cannot use its catalogue: why, to everybody, and never that something does not exist."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from dpac_api.errors import DpacError
from dpac_api.models import API_VERSION, SiteInfo

_log = logging.getLogger(__name__)


def unusable_app(site: SiteInfo, error: DpacError) -> FastAPI:
    """An ASGI application that answers every request, `/healthz` too, with the error."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _log.error("control answers nothing else than this: %s", error.message)
        yield

    app = FastAPI(
        title="dpac", version=site.version, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )

    @app.api_route("/{path:path}", methods=["GET", "PUT", "POST", "DELETE"])
    async def refuse(request: Request) -> JSONResponse:  # noqa: ARG001
        headers = {"Dpac-Site": site.site_uid, "Dpac-Api-Version": str(API_VERSION)}
        return JSONResponse(error.to_wire(), error.http_status, headers)

    return app
