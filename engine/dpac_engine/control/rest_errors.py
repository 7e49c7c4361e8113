"""Errors as REST answers: the one tree, and what FastAPI and pydantic refuse, in the same shape."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dpac_api.errors import DpacError, Invalid, Temporary, Unsupported
from dpac_engine.control.property_paths import invalid

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
        # Not NotFound: a client of another version must not take it for "this thing is gone".
        return _answer(
            Unsupported(
                f"This backend has no route {request.url.path}. Upgrade it, or see /openapi.json for the routes it has."
            )
        )
    return _answer(Invalid(f"{request.method} {request.url.path}: {error.detail}."), error.status_code)


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(DpacError(f"An internal error: {type(error).__name__}. The backend's log has the rest."))
