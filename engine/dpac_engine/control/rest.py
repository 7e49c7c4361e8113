"""REST: `/v1` as docs/rest.md tells it, `/metrics`, `/healthz` and `/openapi.json`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from dpac_api.models import API_VERSION, NewToken, SiteInfo, TokenInfo
from dpac_engine.control import auth, metrics
from dpac_engine.control.plane import Deps, Plane
from dpac_engine.control.rest_access import requires
from dpac_engine.control.rest_errors import install
from dpac_engine.control.rest_groups import group_routes, target_routes
from dpac_engine.control.rest_legs import leg_routes
from dpac_engine.control.rest_recovery import checkpoint_routes, mount_routes, operation_routes

ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An error of the one tree",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["code", "message", "property_path"],
                            "properties": {
                                "code": {"type": "string"},
                                "message": {"type": "string"},
                                "property_path": {"type": ["string", "null"]},
                            },
                        }
                    },
                }
            }
        },
    }
}


def create_app(deps: Deps) -> FastAPI:
    """The control plane as an ASGI application; it works from its start-up to its shutdown."""
    plane = Plane(deps)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await plane.start()
        try:
            yield
        finally:
            await plane.stop()

    app = FastAPI(
        title="dpac", version=deps.host.site.version, lifespan=lifespan, docs_url=None, redoc_url=None, responses=ERRORS
    )
    app.state.plane = plane
    install(app)
    _sign_answers(app, deps.host.site)
    for routes in (
        _site_routes(plane),
        target_routes(plane),
        group_routes(plane),
        checkpoint_routes(plane),
        operation_routes(plane),
        leg_routes(plane),
        mount_routes(plane),
        _token_routes(plane),
        _observer_routes(plane),
    ):
        app.include_router(routes)
    return app


def _sign_answers(app: FastAPI, site: SiteInfo) -> None:
    @app.middleware("http")
    async def say_who_answers(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await go_on(request)
        response.headers["Dpac-Site"] = site.site_uid
        response.headers["Dpac-Api-Version"] = str(API_VERSION)
        return response


def _site_routes(plane: Plane) -> APIRouter:
    routes = APIRouter(tags=["site"])

    @routes.get("/v1/site", dependencies=[requires(plane, "read")])
    async def get_site() -> SiteInfo:
        """Who answers here."""
        return plane.host.site

    return routes


def _token_routes(plane: Plane) -> APIRouter:
    routes = APIRouter(prefix="/v1/tokens", tags=["tokens"], dependencies=[requires(plane, "admin")])

    @routes.get("")
    async def list_tokens() -> list[TokenInfo]:
        """Every token, without its secret."""
        found: list[TokenInfo] = await plane.read(auth.list_tokens)
        return found

    @routes.post("")
    async def create_token(create: auth.CreateToken) -> NewToken:
        """A new token; the answer is the only place its secret is ever shown."""
        made: NewToken = await plane.write(lambda session: auth.create_token(session, create, plane.now()))
        return made

    @routes.delete("/{token_id}", status_code=204)
    async def revoke_token(token_id: str) -> None:
        """End a token at once, by id or name."""
        await plane.write(lambda session: auth.revoke_token(session, token_id))

    return routes


def _observer_routes(plane: Plane) -> APIRouter:
    routes = APIRouter(tags=["observers"])

    @routes.get("/metrics", dependencies=[requires(plane, "read")], response_class=PlainTextResponse)
    async def get_metrics() -> PlainTextResponse:
        """Every group's status as Prometheus samples."""
        statuses = await plane.statuses()
        usages = await plane.target_usages(statuses)
        text = metrics.render(plane.host.site, statuses, await plane.operation_counts(), usages)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/healthz")
    async def get_health() -> dict[str, str]:
        """Whether control answers; needs no token."""
        return {"status": "ok"}

    return routes
