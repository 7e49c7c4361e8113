"""The context of this checkout's site, so that `dpac` finds it with no flags. Runs in `.venv`: it shares the package's own code.

    .venv/bin/python -m setup.context note SITE_UID NAME URL TOKEN_FILE     prints `current`, or the name of the context to use
    .venv/bin/python -m setup.context forget SITE_UID

A site that still exists keeps its context, and stays the current one: programs must not change
backends because somebody tried the quickstart.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dpac_api.contexts import Context, Contexts, read_contexts, remove_context, write_context
from dpac_api.errors import DpacError


def note(site_uid: str, name: str, url: str, token_file: str) -> str:
    """Write the site's context; returns `current` if it is the current one now, else its name."""
    known = read_contexts()
    own = _own(known, site_uid) or (name if not _alive(known, name) else f"{name}-{site_uid[:6]}")
    before = known.contexts.get(own)
    ca_file = before.ca_file if before and before.site_uid == site_uid else None
    current = known.current in (None, own) or not _alive(known, known.current)
    context = Context(endpoint=url, token_file=token_file, ca_file=ca_file, site_uid=site_uid)
    if before != context or (current and known.current != own):
        write_context(own, context, make_current=current)
    return "current" if current else own


def forget(site_uid: str) -> None:
    """Remove the contexts of a site that is being removed."""
    for name, context in read_contexts().contexts.items():
        if context.site_uid == site_uid:
            remove_context(name)


def _own(known: Contexts, site_uid: str) -> str | None:
    return next((name for name, context in known.contexts.items() if context.site_uid == site_uid), None)


def _alive(known: Contexts, name: str | None) -> bool:
    """True unless the context is not there, or the token it names is gone: then so is its site on this host."""
    context = known.contexts.get(name) if name else None
    return context is not None and (context.token_file is None or Path(context.token_file).expanduser().exists())


def main(arguments: list[str]) -> int:
    """One command, with the arguments the docstring names."""
    command, *rest = arguments
    try:
        if command == "note":
            print(note(*rest))
        else:
            forget(*rest)
    except DpacError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
