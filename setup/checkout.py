"""Where this checkout keeps things, and how they are moved.

| what | default | moved by |
|---|---|---|
| Python environment | `.venv` | |
| state of `make up` (site, data, copies, Pulumi's home and stacks) | `.dpac` | `DPAC_STATE_DIR` |
| tools built or downloaded, shared by all checkouts | `~/.cache/dpac/tools` | `DPAC_TOOLS_DIR` |
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_BIN = VENV / "bin"
QUICKSTART = ROOT / "examples" / "quickstart"


def tools_folder() -> Path:
    """The folder of downloaded and built tools, one versioned folder each."""
    chosen = os.environ.get("DPAC_TOOLS_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "dpac" / "tools"


@dataclass(frozen=True)
class State:
    """The folders and files that `make up` fills and `make down` keeps."""

    root: Path

    @classmethod
    def of_checkout(cls) -> State:
        """The state of this checkout, or the one `DPAC_STATE_DIR` names."""
        return cls(Path(os.environ.get("DPAC_STATE_DIR") or ROOT / ".dpac").expanduser().absolute())

    @property
    def site(self) -> Path:
        """The backend's data."""
        return self.root / "site"

    @property
    def data(self) -> Path:
        """What is protected: the order application's folder and the volume."""
        return self.root / "data"

    @property
    def copies(self) -> Path:
        """Where the quickstart's target keeps its copies."""
        return self.root / "copies"

    @property
    def primary_copies(self) -> Path:
        """Where the stack `primary` keeps its copies, as stacks/Pulumi.primary.yaml comes."""
        return self.root / "primary-copies"

    @property
    def orders(self) -> Path:
        """The order application's folder, a protected member."""
        return self.data / "orders"

    @property
    def acknowledged(self) -> Path:
        """Every order the application was told is safe, kept outside what is protected."""
        return self.root / "orders.acknowledged"

    @property
    def orders_pid(self) -> Path:
        """The process id of the order application."""
        return self.root / "orders.pid"

    @property
    def orders_log(self) -> Path:
        """What the order application prints."""
        return self.root / "orders.log"

    @property
    def shell_environment(self) -> Path:
        """A file to source for running Pulumi by hand."""
        return self.root / "env"

    @property
    def pulumi(self) -> Path:
        """Pulumi's private home, stacks and passphrase."""
        return self.root / "pulumi"
