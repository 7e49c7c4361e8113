"""Errors as REST answers: the one tree, and what FastAPI and pydantic refuse, in the same shape."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dpac_api.errors import DpacError, Invalid, NotFound, Temporary

_log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Answer every error in the tree's shape; no body of a request is ever logged or sent back."""
    app.add_exception_handler(DpacError, _dpac_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


def _answer(error: DpacError, status: int | None = None) -> JSONResponse:
    headers = {"Retry-After": "1"} if isinstance(error, Temporary) else None
    return JSONResponse(error.to_wire(), status or error.http_status, headers)


async def _dpac_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DpacError)
    return _answer(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _answer(invalid(error.errors(), error.body))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(NotFound(f"There is no route {request.url.path}. See /openapi.json for those there are."))
    return _answer(Invalid(f"{request.method} {request.url.path}: {error.detail}."), error.status_code)


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(DpacError(f"An internal error: {type(error).__name__}. The backend's log has the rest."))


def invalid(problems: Sequence[Any], body: Any) -> Invalid:
    """What pydantic found, as one error that names the first property and tells of the others."""
    told = [(property_path(problem["loc"], body), _message(problem)) for problem in problems]
    path, first = told[0]
    others = "".join(f"; {where}: {what}" if where else f"; {what}" for where, what in told[1:6])
    more = f"; and {len(told) - 6} more" if len(told) > 6 else ""
    return Invalid(f"{path}: {first}{others}{more}" if path else f"{first}{others}{more}", property_path=path or None)


def _message(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such property; check its spelling"
    if problem["type"] == "missing":
        return "it is missing; give it"
    return str(problem["msg"]).removeprefix("Value error, ")


def property_path(location: Sequence[str | int], body: Any) -> str:
    """`spec.members.disk.size` for pydantic's `("body", "spec", "members", "disk", "volume", "size")`.

    Pydantic puts a union's tag between: it is the `kind` of the object it stands behind, and no key of it.
    """
    parts: list[str] = []
    here = body
    for part in location[1:] if location and location[0] in ("body", "query", "path", "header") else location:
        if isinstance(here, dict) and part not in here and part == here.get("kind"):
            continue
        if part == "[key]":
            continue
        parts.append(str(part))
        here = here.get(part) if isinstance(here, dict) else None
    return ".".join(parts)
