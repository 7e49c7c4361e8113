"""What every request passes before its route: version window, site, token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Header, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from dpac_api.errors import Invalid, Unsupported, WrongSite
from dpac_api.models import API_VERSION, API_VERSION_OLDEST
from dpac_engine.control.auth import Scope
from dpac_engine.control.plane import Plane

_bearer = HTTPBearer(auto_error=False, description="A dpac token")


def requires(plane: Plane, scope: Scope) -> Any:
    """The dependency of routes that need a token of that scope or more; its value is the token's name."""
    return Depends(_gate(plane, scope))


def _gate(plane: Plane, scope: Scope) -> Callable[..., Coroutine[Any, Any, str]]:
    site = plane.host.site

    async def pass_gate(
        token: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
        dpac_api_version: Annotated[str | None, Header(description="The wire version the client speaks.")] = None,
        dpac_site: Annotated[str | None, Header(description="The site that must answer; 421 from any other.")] = None,
    ) -> str:
        _check_version(dpac_api_version)
        if dpac_site is not None and dpac_site != site.site_uid:
            raise WrongSite(
                f"This is site {site.name!r} ({site.site_uid}), not {dpac_site}. Point the endpoint at the site that the state "
                "names; if this site replaces it for good, accept it with `dpac site accept`."
            )
        header = f"{token.scheme} {token.credentials}" if token else None
        return await asyncio.to_thread(plane.auth.require, header, scope, plane.now())

    return pass_gate


def _check_version(asked: str | None) -> None:
    if asked is None:  # a person with curl speaks whatever this backend speaks best
        return
    if not asked.isdecimal():
        raise Invalid("The header Dpac-Api-Version must be a number.")
    if not API_VERSION_OLDEST <= int(asked) <= API_VERSION:
        older = "client" if int(asked) < API_VERSION_OLDEST else "backend"
        raise Unsupported(
            f"The client speaks API version {asked}; this backend speaks {API_VERSION_OLDEST} to {API_VERSION}. Upgrade the {older}."
        )
