"""Clients for handlers: which site a resource belongs to, asked at call time and never kept in state.

A provider process serves one `pulumi` command, so the stack's configuration is the process's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from threading import Lock
from typing import Any

from dpac_api.client import Client
from dpac_api.resolve import Endpoint, resolve

_configuration: dict[str, Mapping[str, Any] | str | None] = {"sites": None}
_making = Lock()


def configure(sites: Mapping[str, Any] | str | None) -> None:
    """Remember the stack's `dpac:sites`."""
    _configuration["sites"] = sites


def connect(site: str | None, site_uid: str | None) -> Client:
    """A client for a site; made sure that it is the one with `site_uid`, where that is given, and that versions overlap.

    Raises `Invalid` if no endpoint is known, `Unreachable` if nothing answers, `WrongSite` if another site does.
    """
    client = _client(resolve(site, sites=_configuration["sites"]), site_uid)
    client.site()
    return client


def _client(endpoint: Endpoint, site_uid: str | None) -> Client:
    with _making:
        return _kept_client(endpoint, site_uid)


@lru_cache(maxsize=32)
def _kept_client(endpoint: Endpoint, site_uid: str | None) -> Client:
    # A client costs a TLS context, thousands of resources share it; httpx's are safe to share between threads.
    return Client(endpoint, site_uid=site_uid)
