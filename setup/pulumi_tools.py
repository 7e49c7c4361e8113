"""The Pulumi CLI with its Python language host: found on PATH, downloaded, or built.

Everything lands in one versioned folder of the tools cache and appears there by
a rename, so that a folder that exists is complete: an interrupted run leaves
nothing that a later one would trust, and runs at the same time wait for each
other. PATH and the user's own `~/.pulumi` are never changed.

    python -m setup.pulumi_tools            prints the folder, after getting the tools if need be
    python -m setup.pulumi_tools --find     prints the folder, or ends with status 1
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from setup import checkout, go_build
from setup.console import SetupError, alone, say
from setup.go_build import GoProgram
from setup.tools_cache import appearing

VERSION = "3.210.0"
"""The version that is downloaded or built."""
OLDEST = (3, 200)
"""The oldest CLI on PATH that is good enough."""

_INSTALLER = "https://get.pulumi.com"
_CONNECT_SECONDS = 5
_DOWNLOAD_SECONDS = 600
_CLI_MODULE = "github.com/pulumi/pulumi/pkg/v3"
_SDK_MODULE = "github.com/pulumi/pulumi/sdk/v3"
_LANGUAGE_HOST_SDK = "3.68.0"
"""The newest sdk module that still contains the language host; later it moved to a module of its own."""
_GO_OLDEST = (1, 24)

_SCRIPTS = (
    "python/cmd/pulumi-language-python-exec",
    "python/dist/pulumi-resource-pulumi-python",
    "python/dist/pulumi-analyzer-policy-python",
)
_NEEDED = ("pulumi", "pulumi-language-python", "pulumi-language-python-exec", "pulumi-resource-pulumi-python")


_PROGRAMS = (
    GoProgram(
        "pulumi",
        _CLI_MODULE,
        VERSION,
        f"{_CLI_MODULE}/cmd/pulumi",
        f"-s -w -X {_SDK_MODULE}/go/common/version.Version=v{VERSION}",
    ),
    GoProgram(
        "pulumi-language-python",
        _SDK_MODULE,
        _LANGUAGE_HOST_SDK,
        f"{_SDK_MODULE}/python/cmd/pulumi-language-python",
    ),
)


def find() -> Path | None:
    """The folder of usable Pulumi tools, from PATH or from the cache; None if there is none yet."""
    return _on_path() or _in_cache()


def ensure() -> Path:
    """The folder of usable Pulumi tools, getting them first if need be. SetupError if no way leads there."""
    found = find()
    if found:
        return found
    with alone(checkout.tools_folder()):
        # Another run may have finished while this one waited.
        return _in_cache() or _get()


def _on_path() -> Path | None:
    cli = shutil.which("pulumi")
    if cli is None:
        return None
    # A package manager may link only the CLI; its companions lie beside the file it links to.
    for folder in (Path(cli).parent, Path(cli).resolve().parent):
        if _complete(folder) and (_version(folder) or (0, 0)) >= OLDEST:
            return folder
    return None


def _in_cache() -> Path | None:
    folder = _cache_folder()
    return folder if _complete(folder) else None


def _cache_folder() -> Path:
    return checkout.tools_folder() / f"pulumi-{VERSION}"


def _complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in _NEEDED)


def _version(folder: Path) -> tuple[int, int] | None:
    """Major and minor version of the CLI in `folder`; None if it does not run or does not say."""
    environment = {**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"}
    try:
        printed = subprocess.run(
            [folder / "pulumi", "version"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"v?(\d+)\.(\d+)\.", printed.strip())
    return (int(match[1]), int(match[2])) if match else None


def _get() -> Path:
    target = _cache_folder()
    say(
        f"no Pulumi CLI >= {OLDEST[0]}.{OLDEST[1]} with a Python language host on PATH; getting {VERSION} into {target}"
    )
    with appearing(target) as partial:
        if not _download(partial):
            _build(partial)
        if not _complete(partial) or _version(partial) is None:
            raise SetupError(
                f"The Pulumi tools in {partial} do not run. Install Pulumi from https://www.pulumi.com/docs/install/"
            )
    return target


def _download(folder: Path) -> bool:
    """Run the official installer into `folder`; False if it cannot be reached or fails."""
    try:
        with urllib.request.urlopen(_INSTALLER, timeout=_CONNECT_SECONDS) as answer:
            script = answer.read()
    except (OSError, urllib.error.URLError) as error:
        say(f"the official installer is out of reach ({error}); building from source instead")
        return False
    with tempfile.TemporaryDirectory() as scratch:
        installer = Path(scratch) / "install.sh"
        installer.write_bytes(script)
        command = ["sh", str(installer), "--version", VERSION, "--install-root", scratch, "--no-edit-path"]
        try:
            subprocess.run(command, check=True, timeout=_DOWNLOAD_SECONDS, stdin=subprocess.DEVNULL, stdout=sys.stderr)
            for file in (Path(scratch) / "bin").iterdir():
                shutil.move(file, folder / file.name)
        except (OSError, subprocess.SubprocessError) as error:
            say(f"the official installer did not succeed ({error}); building from source instead")
            return False
    return _complete(folder)


def _build(folder: Path) -> None:
    go_build.require_go("Pulumi", _GO_OLDEST, "Install Pulumi (https://www.pulumi.com/docs/install/)")
    for program in _PROGRAMS:
        go_build.build(program, folder)
    sdk = go_build.module_folder(_SDK_MODULE, VERSION)
    for script in _SCRIPTS:
        destination = folder / Path(script).name
        shutil.copyfile(sdk / script, destination)
        destination.chmod(0o755)


def main(arguments: list[str]) -> int:
    try:
        folder = find() if "--find" in arguments else ensure()
    except SetupError as error:
        say(str(error))
        return 1
    if folder is None:
        say("no Pulumi tools yet; `make tools` gets them")
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
