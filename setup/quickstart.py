"""`make up`, `make preview`, `make down` and `make clean`: the quickstart on this machine, no root needed.

    python -m setup.quickstart up | preview | down | clean

Every step looks first and acts only where something is missing, so that each can be run again at any time.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from setup import environment, orders, pulumi_tools
from setup.checkout import QUICKSTART, ROOT, VENV_BIN, State
from setup.console import SetupError, alone, capture, run, say
from setup.pulumi_environment import pulumi_environment

STACK = "local"
GROUP = "quickstart"
_CURRENT = "current"
_DPAC = VENV_BIN / "dpac"
_STACK_SETTINGS = QUICKSTART / f"Pulumi.{STACK}.yaml"


def up() -> None:
    """Install, start and declare everything, then show what is protected."""
    state = State.of_checkout()
    with alone(state.root):
        environment.ensure(["backend"])
        tools = pulumi_tools.ensure()
        run([_DPAC, "serve", "--detach", "--data", state.site], env=_without_site())
        context = _note_context(state)
        orders.start(state)
        variables = _pulumi_variables(state, tools)
        _write_shell_environment(state, tools, variables)
        _select_stack(state, variables)
        _pulumi(["up", "--yes"], variables)
    _show(state, variables)
    if context != _CURRENT:
        _explain_context(state, context)


def preview() -> None:
    """What `pulumi up` would change."""
    state = State.of_checkout()
    variables = _pulumi_variables(state, _existing_tools(state))
    _pulumi(["preview", "--stack", STACK], variables)


def down() -> None:
    """Stop the application, then the backend; everything they wrote stays."""
    state = State.of_checkout()
    if not state.root.exists():
        return
    with alone(state.root):
        orders.stop(state)
        if _DPAC.exists() and state.site.exists():
            run([_DPAC, "stop", "--data", state.site], env=_without_site())
    say("stopped; data, copies and stack are kept, `make up` goes on with them")


def clean() -> None:
    """Stop, then remove what the quickstart wrote: nothing else that may lie in the same folder."""
    state = State.of_checkout()
    if os.environ.get("YES") != "1":
        _confirm(f"Remove the quickstart's data, its copies and its stack from {state.root}?")
    down()
    _forget_context(state)
    for folder in (state.site, state.data, state.copies, state.primary_copies, state.pulumi):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (state.acknowledged, state.orders_pid, state.orders_log, state.shell_environment, _STACK_SETTINGS):
        file.unlink(missing_ok=True)
    say("removed")


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise SetupError(f"{question} Nobody is there to answer; run `make clean YES=1`.")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise SetupError("nothing was removed")


def _without_site() -> dict[str, str]:
    """This environment without a backend that the user may have named: the quickstart is for its own site only."""
    named = ("DPAC_ENDPOINT", "DPAC_TOKEN_FILE", "DPAC_CA_FILE")
    return {name: value for name, value in os.environ.items() if name not in named}


def _site(state: State) -> dict[str, str]:
    """Who the site is: its `site.json`."""
    return dict(json.loads((state.site / "site.json").read_text()))


def _endpoint(state: State) -> dict[str, str]:
    """Where the site listens. Its run folder lies elsewhere where the path would be too long for sockets."""
    return dict(json.loads((Path(_site(state)["run"]) / "endpoint.json").read_text()))


def _own_site(state: State) -> dict[str, str]:
    """Variables that name the quickstart's own site, whichever context is current; none before its first start."""
    try:
        endpoint = _endpoint(state)
        return {"DPAC_ENDPOINT": endpoint["url"], "DPAC_TOKEN_FILE": endpoint["token_file"]}
    except (OSError, ValueError, KeyError):
        return {}


def _note_context(state: State) -> str:
    """Make the site known to `dpac`; `_CURRENT`, or the name of its context where another one stays the current one."""
    site, endpoint = _site(state), _endpoint(state)
    what = [site["site_uid"], site["name"], endpoint["url"], endpoint["token_file"]]
    return capture([VENV_BIN / "python", "-m", "setup.context", "note", *what], cwd=ROOT).strip()


def _forget_context(state: State) -> None:
    if (state.site / "site.json").exists() and (VENV_BIN / "python").exists():
        run([VENV_BIN / "python", "-m", "setup.context", "forget", _site(state)["site_uid"]], cwd=ROOT)


def _explain_context(state: State, context: str) -> None:
    print(f"""Another site stays the one that `dpac` speaks to; for this one, first:
. {_from_here(state.shell_environment)}                      in this shell, or
{_from_here(_DPAC)} context use {context}    from now on
""")


def _pulumi_variables(state: State, tools: Path) -> dict[str, str]:
    base = _without_site() | _own_site(state)
    return pulumi_environment(state.pulumi, tools=tools, venv_bin=VENV_BIN, base=base)


def _existing_tools(state: State) -> Path:
    tools = pulumi_tools.find()
    if tools is None or not _stack_file(state).exists():
        raise SetupError("the quickstart is not set up here; run `make up` first")
    return tools


def _pulumi(arguments: list[str], variables: dict[str, str]) -> None:
    cli = shutil.which("pulumi", path=variables["PATH"]) or "pulumi"
    run([cli, *arguments, "--cwd", QUICKSTART], env=variables, interactive=True)


def _stack_file(state: State) -> Path:
    return state.pulumi / "stacks" / ".pulumi" / "stacks" / GROUP / f"{STACK}.json"


def _select_stack(state: State, variables: dict[str, str]) -> None:
    """Make the stack if it is not there, free it from a run that died, and tell the program where things lie."""
    if _stack_file(state).exists():
        _free_stack(state, variables)
    else:
        # Settings of a stack that is gone carry the salt of its passphrase, which is gone too.
        _STACK_SETTINGS.unlink(missing_ok=True)
    _pulumi(["stack", "select", STACK, "--create"], variables)
    settings = {"data": state.data, "copies": state.copies}
    pairs = [part for name, value in settings.items() for part in ("--plaintext", f"{name}={value}")]
    _pulumi(["config", "set-all", "--stack", STACK, *pairs], variables)


def _free_stack(state: State, variables: dict[str, str]) -> None:
    """Release the stack's lock if the process that took it, on this machine, is no more."""
    locks = state.pulumi / "stacks" / ".pulumi" / "locks" / "organization" / GROUP / STACK
    holders = [_holder(file) for file in locks.glob("*.json")]
    if holders and not any(holders):
        say("an earlier `pulumi up` was killed; releasing its lock")
        _pulumi(["cancel", "--yes", STACK], variables)


def _holder(lock: Path) -> bool:
    """True if whoever took this lock may still be at work."""
    try:
        found = json.loads(lock.read_text())
        if found["hostname"] != socket.gethostname():
            return True
        process = int(found["pid"])
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, KeyError):
        return True
    return not _has_ended(process)


def _has_ended(process: int) -> bool:
    """Whether a process that still has its number has ended, as one has that nobody waits for. Only Linux tells."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return False


def _write_shell_environment(state: State, tools: Path, variables: dict[str, str]) -> None:
    """A file to source: `pulumi` in a shell then means this stack, `dpac` this site."""
    names = [name for name in variables if name.startswith(("PULUMI_", "DPAC_")) or name == "VIRTUAL_ENV"]
    lines = [f"export {name}={shlex.quote(variables[name])}" for name in sorted(names)]
    lines.append(f'export PATH={shlex.quote(f"{VENV_BIN}{os.pathsep}{tools}")}{os.pathsep}"$PATH"')
    lines.append("unset PULUMI_ACCESS_TOKEN PULUMI_CONFIG_PASSPHRASE PULUMI_STACK PULUMI_PYTHON_CMD")
    state.shell_environment.write_text("\n".join(lines) + "\n")


def _show(state: State, variables: dict[str, str]) -> None:
    print("\n--- what is protected", flush=True)
    run([_DPAC, "status", GROUP], env=variables)
    print("\n--- to which moments it can go back", flush=True)
    run([_DPAC, "checkpoints", GROUP], env=variables)
    dpac, python = (_from_here(VENV_BIN / name) for name in ("dpac", "python"))
    restored = state.root / "restored"
    print(f"""
--- what to try next
{dpac} status {GROUP} --watch
{dpac} checkpoint {GROUP} --app --tag before-migration
{dpac} restore {GROUP} --member orders --at tag:before-migration --to {_from_here(restored)}
{python} {_from_here(QUICKSTART / "orders.py")} check {_from_here(restored / "orders.db")} --acknowledged {_from_here(state.acknowledged)}
{dpac} mount {GROUP} --at tag:before-migration --member disk
edit {_from_here(QUICKSTART / "__main__.py")}, then: make preview, make up
pulumi by hand: . {_from_here(state.shell_environment)} && pulumi stack --cwd {_from_here(QUICKSTART)}
make down      stops application and backend, keeps everything
""")


def _from_here(path: Path) -> str:
    """A path as one would type it in this folder."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


_COMMANDS: dict[str, Callable[[], None]] = {"up": up, "preview": preview, "down": down, "clean": clean}


def main(arguments: list[str]) -> int:
    """Run one command; a failure is one message, not a traceback."""
    if len(arguments) != 1 or arguments[0] not in _COMMANDS:
        say(f"usage: python -m setup.quickstart {' | '.join(_COMMANDS)}")
        return 2
    try:
        _COMMANDS[arguments[0]]()
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; run it again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
