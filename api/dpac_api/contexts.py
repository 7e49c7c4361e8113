"""The context file: the endpoints this user knows, by name, and which of them is current.

`$DPAC_CONFIG_DIR/contexts.json`, by default `~/.config/dpac/contexts.json`. It names token files and never
holds a token. `make up`, `dpac serve --detach` and `dpac context` write it; `dpac_api.resolve` reads it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from dpac_api.errors import Invalid, NotFound
from dpac_api.models import Model, Uid

FILE_NAME = "contexts.json"


class Context(Model):
    """How one site is reached."""

    endpoint: str = Field(description="The backend's URL, such as http://127.0.0.1:8650.")
    token_file: str | None = Field(default=None, description="The file that holds the token, read at every call.")
    ca_file: str | None = Field(default=None, description="PEM certificates to trust instead of the system's.")
    site_uid: Uid | None = Field(
        default=None, description="The site that shall answer there; None: whichever does, which `dpac serve` fills in."
    )


class Contexts(Model):
    """The whole file."""

    current: str | None = Field(default=None, description="The context used when nothing names another.")
    contexts: dict[str, Context] = Field(default={}, description="Contexts by name.")


def config_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of the context file: `DPAC_CONFIG_DIR`, else `dpac` in `XDG_CONFIG_HOME`, else `~/.config/dpac`."""
    environ = os.environ if environ is None else environ
    if chosen := environ.get("DPAC_CONFIG_DIR"):
        return Path(chosen).expanduser()
    base = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "dpac"


def read_contexts(environ: Mapping[str, str] | None = None) -> Contexts:
    """What the context file holds; nothing if there is no such file.

    Raises `Invalid` if it cannot be read or is not a context file.
    """
    path = config_dir(environ) / FILE_NAME
    try:
        return Contexts.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise Invalid(f"{path} cannot be read ({error.strerror}). Correct its permissions.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Invalid(
            f"{path} is not a context file: {where}: {first['msg']}. Correct it, or remove it and run `dpac context` again."
        ) from error


def write_context(
    name: str, context: Context, *, make_current: bool = True, environ: Mapping[str, str] | None = None
) -> Path:
    """Add or replace one context, atomically, and return the file's path (0600, in a folder of 0700)."""
    known = read_contexts(environ)
    current = name if make_current or known.current is None else known.current
    return _write(Contexts(current=current, contexts={**known.contexts, name: context}), environ)


def use_context(name: str, environ: Mapping[str, str] | None = None) -> Path:
    """Make a context the current one. Raises `NotFound` if the file holds none of that name."""
    known = read_contexts(environ)
    _require(known, name, environ)
    return _write(known.model_copy(update={"current": name}), environ)


def remove_context(name: str, environ: Mapping[str, str] | None = None) -> Path:
    """Forget a context; if it was the current one, none is. Raises `NotFound` if there is none of that name."""
    known = read_contexts(environ)
    _require(known, name, environ)
    left = {other: context for other, context in known.contexts.items() if other != name}
    return _write(Contexts(current=None if known.current == name else known.current, contexts=left), environ)


def _require(known: Contexts, name: str, environ: Mapping[str, str] | None) -> None:
    if name not in known.contexts:
        names = ", ".join(sorted(known.contexts)) or "none"
        raise NotFound(f"{config_dir(environ) / FILE_NAME} has no context {name!r}; it has: {names}.")


def _write(contexts: Contexts, environ: Mapping[str, str] | None) -> Path:
    folder = config_dir(environ)
    text = json.dumps(contexts.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, scratch = tempfile.mkstemp(dir=folder, prefix=".contexts-")  # made 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(scratch).replace(folder / FILE_NAME)
    except OSError as error:
        raise Invalid(f"{folder / FILE_NAME} cannot be written ({error.strerror}). Set DPAC_CONFIG_DIR.") from error
    return folder / FILE_NAME
