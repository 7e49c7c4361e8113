"""Which backend does a program, or a command, talk to? The one answer, shared by provider and CLI.

Nothing is guessed and nothing is started. In this order:

1. the environment: `DPAC_ENDPOINT`, `DPAC_TOKEN_FILE`, `DPAC_CA_FILE`. They speak for the site that has no name; for
   `dpac.Site("fra")` it is `DPAC_ENDPOINT_FRA` and so on, because one endpoint cannot be two sites;
2. the stack's configuration: `dpac:sites` = `{NAME: {endpoint, tokenFile, caFile?}}`;
3. the context file (`dpac_api.contexts`): the context of that name, or the current one;
4. otherwise an error that says how.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dpac_api.contexts import FILE_NAME, Context, config_dir, read_contexts
from dpac_api.errors import Invalid

CONFIG_KEY = "dpac:sites"
_CONFIG_FIELDS = {"endpoint", "tokenFile", "caFile"}
_HOW = (
    "Set DPAC_ENDPOINT and DPAC_TOKEN_FILE, or `pulumi config set --path dpac:sites.{name}.endpoint URL` and "
    "`... dpac:sites.{name}.tokenFile FILE`, or write a context with `dpac context`."
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a site answers, and who told."""

    url: str
    """Without a slash at the end."""
    source: str
    """Where this was found, for messages: `DPAC_ENDPOINT`, `dpac:sites.fra`, `context 'local'`."""
    token_file: Path | None = None
    ca_file: Path | None = None
    site_uid: str | None = None
    """The site that must answer, where the context names it."""


def resolve(
    site: str | None = None, *, sites: Mapping[str, Any] | str | None = None, environ: Mapping[str, str] | None = None
) -> Endpoint:
    """The endpoint of the site called `site`, or of the only or current one if that is None.

    `sites` is the stack's `dpac:sites`, as an object or as the JSON text of one. Raises `Invalid` with the ways to
    name an endpoint if there is none, or if what was found is not one.
    """
    environ = os.environ if environ is None else environ
    found = _from_environment(site, environ) or _from_config(site, _parsed(sites)) or _from_contexts(site, environ)
    if found is None:
        whom = f"the site {site!r}" if site else "a backend"
        extra = f" DPAC_ENDPOINT speaks for unnamed sites only; use DPAC_ENDPOINT_{_suffix(site)}." if site else ""
        raise Invalid(f"No endpoint of {whom} is known. {_HOW.format(name=site or 'NAME')}{extra}")
    return found


def _suffix(site: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", site.upper())


def _from_environment(site: str | None, environ: Mapping[str, str]) -> Endpoint | None:
    tail = f"_{_suffix(site)}" if site else ""
    variable = f"DPAC_ENDPOINT{tail}"
    url = environ.get(variable)
    if not url:
        return None
    return Endpoint(
        url=_url(url, variable),
        source=variable,
        token_file=_file(environ.get(f"DPAC_TOKEN_FILE{tail}"), f"DPAC_TOKEN_FILE{tail}"),
        ca_file=_file(environ.get(f"DPAC_CA_FILE{tail}"), f"DPAC_CA_FILE{tail}"),
    )


def _parsed(sites: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    if isinstance(sites, str):
        try:
            sites = json.loads(sites)
        except ValueError as error:
            raise Invalid(
                f"The configuration {CONFIG_KEY} is not an object. {_HOW.format(name='NAME')}", property_path=CONFIG_KEY
            ) from error
    if sites is None:
        return {}
    if not isinstance(sites, Mapping):
        raise Invalid(
            f"The configuration {CONFIG_KEY} is not an object. {_HOW.format(name='NAME')}", property_path=CONFIG_KEY
        )
    return sites


def _from_config(site: str | None, sites: Mapping[str, Any]) -> Endpoint | None:
    if not sites or (site is not None and site not in sites):
        return None
    if site is None:
        if len(sites) > 1:
            names = ", ".join(sorted(sites))
            raise Invalid(
                f"The stack's configuration names several sites ({names}). Say which with dpac.Site(NAME).",
                property_path=CONFIG_KEY,
            )
        site = next(iter(sites))
    source = f"{CONFIG_KEY}.{site}"
    entry = sites[site]
    if not isinstance(entry, Mapping) or not isinstance(entry.get("endpoint"), str):
        raise Invalid(f"{source} has no endpoint. {_HOW.format(name=site)}", property_path=source)
    if unknown := sorted(set(entry) - _CONFIG_FIELDS):
        raise Invalid(
            f"{source} has {unknown[0]!r}; it may have endpoint, tokenFile and caFile.",
            property_path=f"{source}.{unknown[0]}",
        )
    return Endpoint(
        url=_url(entry["endpoint"], f"{source}.endpoint"),
        source=source,
        token_file=_file(entry.get("tokenFile"), f"{source}.tokenFile"),
        ca_file=_file(entry.get("caFile"), f"{source}.caFile"),
    )


def _from_contexts(site: str | None, environ: Mapping[str, str]) -> Endpoint | None:
    known = read_contexts(environ)
    name = site or known.current
    context: Context | None = known.contexts.get(name) if name else None
    if context is None:
        return None
    where = f"context {name!r} in {config_dir(environ) / FILE_NAME}"
    return Endpoint(
        url=_url(context.endpoint, where),
        source=where,
        token_file=_file(context.token_file, where),
        ca_file=_file(context.ca_file, where),
        site_uid=context.site_uid,
    )


def _url(text: str, source: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.username or parts.password)
        _ = parts.port  # raises ValueError when it is no number
    except ValueError:
        usable = False
    if not usable:
        # The text itself may hold a password, so the message does not repeat it.
        raise Invalid(
            f"{source} is not an endpoint; write http://HOST:PORT or https://HOST:PORT without a user name.",
            property_path=source,
        )
    return text.rstrip("/")


def _file(text: object, source: str) -> Path | None:
    if text is None or text == "":
        return None
    path = Path(str(text)).expanduser()
    if not path.is_absolute():
        raise Invalid(f"{source}: {str(text)!r} must be an absolute path (or begin with ~).", property_path=source)
    return path
