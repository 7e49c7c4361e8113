"""The environment variables under which this checkout runs Pulumi, apart from the user's own login and home."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

_OWN_VARIABLES = ("PULUMI_ACCESS_TOKEN", "PULUMI_CONFIG_PASSPHRASE", "PULUMI_STACK", "PULUMI_PYTHON_CMD")
"""Settings of the user that would lead away from the private home and backend."""


def pulumi_environment(
    folder: Path, *, tools: Path, venv_bin: Path, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Variables for Pulumi with everything it keeps (home, stacks, passphrase) under `folder`.

    The Python environment comes first on PATH, because older language hosts
    run whatever `python3` is there, and the dynamic provider with it.
    """
    inherited = os.environ if base is None else base
    home, stacks, passphrase = folder / "home", folder / "stacks", folder / "passphrase"
    for needed in (home, stacks):
        needed.mkdir(parents=True, exist_ok=True)
    _keep_passphrase(passphrase)
    environment = {name: value for name, value in inherited.items() if name not in _OWN_VARIABLES}
    environment |= {
        "PATH": os.pathsep.join([str(venv_bin), str(tools), inherited.get("PATH", os.defpath)]),
        "VIRTUAL_ENV": str(venv_bin.parent),
        "PULUMI_HOME": str(home),
        "PULUMI_BACKEND_URL": stacks.as_uri(),
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(passphrase),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    return environment


def _keep_passphrase(file: Path) -> None:
    """Make the stacks' passphrase once, readable by its owner only."""
    if file.exists():
        return
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as written:
        written.write(secrets.token_urlsafe(32) + "\n")
    try:
        # A link never replaces a passphrase that another run has made meanwhile.
        os.link(scratch, file)
    except FileExistsError:
        pass
    finally:
        scratch.unlink()
