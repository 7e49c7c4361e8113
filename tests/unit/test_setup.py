"""Set-up: what it takes from the machine, what it trusts, and what it leaves alone."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from setup import checkout, console, environment, go_tools, packages, pulumi_tools, quickstart
from setup.checkout import State
from setup.console import SetupError
from setup.environment import Stamp
from setup.pulumi_environment import pulumi_environment
from tests import tools


def script(file: Path, text: str) -> Path:
    """An executable shell script."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def pulumi_folder(folder: Path, version: str) -> Path:
    """A folder that looks like Pulumi's tools and says this version."""
    for name in ("pulumi-language-python", "pulumi-language-python-exec", "pulumi-resource-pulumi-python"):
        script(folder / name, "exit 0")
    script(folder / "pulumi", f"echo v{version}")
    return folder


@pytest.fixture
def tools_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tools cache, and a PATH without Pulumi."""
    folder = tmp_path / "tools"
    monkeypatch.setenv("DPAC_TOOLS_DIR", str(folder))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return folder


# ------------------------------------------------------------------ Python


def run_python_finder(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{folder}:/usr/bin:/bin", **variables}
    finder = checkout.ROOT / "setup" / "python"
    return subprocess.run([finder, "-c", "print('ran')"], env=env, capture_output=True, text=True, check=False)


def test_a_shim_that_leads_nowhere_is_passed_over(tmp_path: Path) -> None:
    """`python3` that fails is not taken: the next candidate that runs is."""
    script(tmp_path / "python3", "echo 'pyenv: python3: command not found' >&2; exit 127")
    (tmp_path / "python3.13").symlink_to(sys.executable)
    assert run_python_finder(tmp_path).stdout == "ran\n"


def test_a_python_too_old_is_named_with_what_to_do(tmp_path: Path) -> None:
    """Without a new enough Python the message says what was found and what to install."""
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        script(tmp_path / name, '[ "$1" = --version ] && echo "Python 3.9.2"; exit 0')
    script(tmp_path / "uv", "exit 1")
    result = run_python_finder(tmp_path)
    assert result.returncode == 1
    assert "found: Python 3.9.2" in result.stderr
    assert "DPAC_PYTHON=" in result.stderr


# ------------------------------------------------------------------ environment


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A project folder with a usable environment, and what set-up installs into it."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    installed: list[str] = []
    monkeypatch.setattr(environment, "run", lambda command, **_: installed.append(str(command[-1])))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    return tmp_path, installed


def test_the_package_is_installed_once_until_its_project_file_changes(project: tuple[Path, list[str]]) -> None:
    """A second run installs nothing; a changed pyproject.toml does."""
    root, installed = project
    for _ in range(2):
        environment.ensure(["backend"], venv=root / "venv", root=root)
    assert installed == [f"{root}[backend]"]
    (root / "pyproject.toml").write_text("[project]\nname = 'y'\n")
    environment.ensure(["backend"], venv=root / "venv", root=root)
    assert len(installed) == 2


def test_make_up_after_make_test_keeps_the_test_tools(project: tuple[Path, list[str]]) -> None:
    """Extras that are there already are asked for again when something is installed, and satisfy a smaller wish."""
    root, installed = project
    for extras in (["backend", "aws", "test"], ["backend"]):
        environment.ensure(extras, venv=root / "venv", root=root)
    assert len(installed) == 1
    (root / "pyproject.toml").write_text("[project]\nname = 'y'\n")
    environment.ensure(["backend"], venv=root / "venv", root=root)
    assert installed[-1] == f"{root}[aws,backend,test]"


def test_an_interrupted_installation_is_done_again(project: tuple[Path, list[str]]) -> None:
    """The stamp is written last, so that a run that failed is not taken for one that succeeded."""
    root, installed = project

    def fail(*_: object, **__: object) -> None:
        raise SetupError("the network is down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "run", fail)
        with pytest.raises(SetupError):
            environment.ensure(["backend"], venv=root / "venv", root=root)
    environment.ensure(["backend"], venv=root / "venv", root=root)
    assert installed == [f"{root}[backend]"]


def test_an_environment_of_a_moved_checkout_is_made_anew(project: tuple[Path, list[str]]) -> None:
    """Scripts in it name the old place."""
    root, installed = project
    Stamp("x", "/somewhere/else", ("backend",)).write(root / "venv" / ".dpac-installed")
    environment.ensure(["backend"], venv=root / "venv", root=root)
    assert installed == [str(root / "venv"), f"{root}[backend]"]


# ------------------------------------------------------------------ Pulumi tools


def test_a_recent_pulumi_on_path_is_used(tools_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if PATH has only a link to it, as package managers make them."""
    folder = pulumi_folder(tmp_path / "opt", "3.219.4")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "pulumi").symlink_to(folder / "pulumi")
    monkeypatch.setenv("PATH", f"{tmp_path / 'linked'}:/usr/bin:/bin")
    assert pulumi_tools.find() == folder


@pytest.mark.parametrize("version", ["3.199.0", "2.99.1", ""])
def test_an_old_pulumi_on_path_is_not(
    version: str, tools_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is too old, or does not say how old it is, is passed over."""
    folder = pulumi_folder(tmp_path / "opt", version)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert pulumi_tools.find() is None


def test_pulumi_without_its_python_language_host_is_not_used(
    tools_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could run no program of ours."""
    folder = pulumi_folder(tmp_path / "opt", "3.219.4")
    (folder / "pulumi-language-python").unlink()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert pulumi_tools.find() is None


def test_what_an_interrupted_build_left_is_not_trusted_and_goes(
    tools_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The versioned folder appears by a rename once it is complete; a partial one is removed by the next run."""
    leftover = pulumi_folder(tools_dir / f"pulumi-{pulumi_tools.VERSION}.partial-dead", pulumi_tools.VERSION)
    assert pulumi_tools.find() is None
    monkeypatch.setattr(pulumi_tools, "_download", lambda folder: bool(pulumi_folder(folder, pulumi_tools.VERSION)))
    assert pulumi_tools.ensure() == tools_dir / f"pulumi-{pulumi_tools.VERSION}"
    assert not leftover.exists()


def test_a_failed_build_leaves_nothing(tools_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder that looks complete nor a partial one."""

    def fail(folder: Path) -> None:
        script(folder / "pulumi", "exit 1")
        raise SetupError("the compiler is out of memory")

    monkeypatch.setattr(pulumi_tools, "_download", lambda _: False)
    monkeypatch.setattr(pulumi_tools, "_build", fail)
    with pytest.raises(SetupError, match="out of memory"):
        pulumi_tools.ensure()
    assert list(tools_dir.iterdir()) == []


def test_runs_at_the_same_time_build_once(tools_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first and takes what it made."""
    entered, go_on = threading.Event(), threading.Event()
    builds: list[Path] = []

    def download(folder: Path) -> bool:
        builds.append(folder)
        entered.set()
        assert go_on.wait(30)
        return bool(pulumi_folder(folder, pulumi_tools.VERSION))

    monkeypatch.setattr(pulumi_tools, "_download", download)
    found: list[Path] = []
    runs = [threading.Thread(target=lambda: found.append(pulumi_tools.ensure())) for _ in range(2)]
    for run in runs:
        run.start()
    assert entered.wait(30)
    go_on.set()
    for run in runs:
        run.join(30)
    assert len(builds) == 1
    assert found == [tools_dir / f"pulumi-{pulumi_tools.VERSION}"] * 2


def test_without_network_and_go_the_message_says_what_to_install(
    tools_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not a traceback of whatever was tried last."""
    monkeypatch.setattr(pulumi_tools, "_download", lambda _: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"Install Pulumi \(https://www.pulumi.com/docs/install/\), or Go"):
        pulumi_tools.ensure()


def test_the_user_s_own_pulumi_is_left_alone(tmp_path: Path) -> None:
    """Home, stacks and passphrase are ours; the user's token and passphrase do not leak in."""
    user = {"PATH": "/usr/bin", "PULUMI_ACCESS_TOKEN": "pul-1", "PULUMI_CONFIG_PASSPHRASE": "p", "PULUMI_HOME": "/u"}
    made = pulumi_environment(tmp_path / "p", tools=Path("/t"), venv_bin=Path("/v/bin"), base=user)
    assert made["PATH"] == "/v/bin:/t:/usr/bin"
    assert made["PULUMI_HOME"] == str(tmp_path / "p" / "home")
    assert made["PULUMI_BACKEND_URL"] == f"file://{tmp_path}/p/stacks"
    assert not {"PULUMI_ACCESS_TOKEN", "PULUMI_CONFIG_PASSPHRASE"} & set(made)


def test_the_passphrase_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    """A second run keeps it: the stack's secrets depend on it."""
    read = []
    for _ in range(2):
        made = pulumi_environment(tmp_path, tools=Path("/t"), venv_bin=Path("/v/bin"), base={})
        file = Path(made["PULUMI_CONFIG_PASSPHRASE_FILE"])
        read.append(file.read_text())
    assert read[0] == read[1]
    assert len(read[0]) > 40
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


# ------------------------------------------------------------------ tools built with Go


def go_that_builds(folder: Path, monkeypatch: pytest.MonkeyPatch, build: str, version: str = "go1.26.8") -> Path:
    """A `go` that writes down what it was called with and in which module, and builds by this shell text; the log."""
    log = folder / "go.log"
    script(
        folder / "bin" / "go",
        f"""[ "$1" = version ] && echo "go version {version} linux/amd64" && exit
echo "$GOFLAGS $CGO_ENABLED $*" >> {log}
cat go.mod >> {log}
while [ "$1" != -o ]; do shift; done
{build}""",
    )
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    return log


WRITES_A_PROGRAM = "echo '#!/bin/sh' > $2; chmod +x $2"


def test_a_go_tool_is_built_once_into_a_versioned_folder(
    tools_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a throw-away module that names version and language, without C; a second call takes what is there."""
    log = go_that_builds(tmp_path, monkeypatch, WRITES_A_PROGRAM)
    program = go_tools.PROGRAMS["versitygw"]
    built = tools_dir / f"versitygw-{program.version}" / "versitygw"
    assert [go_tools.ensure("versitygw") for _ in range(2)] == [built, built]
    called = log.read_text()
    assert called.count("build -v") == 1
    assert "-mod=mod 0 build -v -ldflags -s -w -o" in called
    assert f"require {program.module} v{program.version}" in called
    assert [folder.name for folder in tools_dir.iterdir()] == [built.parent.name]


def test_a_go_tool_on_path_is_used(tools_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built where the program is installed."""
    go_that_builds(tmp_path, monkeypatch, "exit 1")
    installed = script(tmp_path / "bin" / "versitygw", "exit 0")
    assert go_tools.ensure("versitygw") == installed


def test_a_failed_go_build_leaves_nothing_and_shows_what_go_said(
    tools_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what an earlier interrupted one left is gone too."""
    script(tools_dir / "versitygw-1.0.0.partial-dead" / "versitygw", "exit 0")
    go_that_builds(tmp_path, monkeypatch, "echo 'module not found'; exit 1")
    with pytest.raises(SetupError, match="module not found"):
        go_tools.ensure("versitygw")
    assert list(tools_dir.iterdir()) == []


@pytest.mark.parametrize("version", [None, "go1.19.8"])
def test_without_go_the_message_says_how_to_get_the_tool(
    version: str | None, tools_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Go, or one too old, is named before anything is written."""
    if version:
        go_that_builds(tmp_path, monkeypatch, "exit 1", version)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"Put versitygw on PATH \(https://.*\), or Go 1.25 or newer"):
        go_tools.ensure("versitygw")
    assert list(tools_dir.iterdir()) == []


def test_an_unknown_go_tool_is_refused_with_those_known(capsys: pytest.CaptureFixture[str]) -> None:
    """A slip of the pen in a Makefile ends with status 2."""
    assert go_tools.main(["versitygateway"]) == 2
    assert "versitygw, kopia" in capsys.readouterr().err


def test_a_missing_go_tool_fails_its_test_in_continuous_integration(
    tools_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says how to build it."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(
        pytest.fail.Exception, match=r"needs versitygw: run `setup/python -m setup\.go_tools versitygw`"
    ):
        tools.require_go_tool("versitygw")


# ------------------------------------------------------------------ packages and tools of tests


def test_packages_are_never_installed_without_being_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a laptop it is said what is missing, and nothing is run."""
    monkeypatch.setattr(packages, "program", lambda name: None if name == "fio" else "/usr/bin/true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(packages, "run", lambda *_, **__: pytest.fail("something was run"))
    packages.install_missing()
    assert "sudo apt-get install fio" in capsys.readouterr().err


@pytest.mark.parametrize("failing", [False, True], ids=["installed", "fails"])
def test_postgresql_comes_without_a_database_of_its_own(
    failing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is installed, Debian's tools are told not to make one; afterwards everything is as it was."""
    settings = tmp_path / "postgresql-common" / "createcluster.d" / "dpac.conf"
    seen: list[str] = []

    def run(command: list[str], **_: object) -> None:
        if "install" in command:
            assert command[-1] == "postgresql"
            seen.append(settings.read_text())
            if failing:
                raise SetupError("no network")

    monkeypatch.setattr(packages, "_CLUSTER_SETTINGS", settings)
    monkeypatch.setattr(packages, "program", lambda name: None if name in ("initdb", "pgbench") else "/usr/bin/true")
    monkeypatch.setattr(packages, "run", run)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages.shutil, "which", lambda *_, **__: "/usr/bin/apt-get")
    packages.install_missing()
    assert seen == ["create_main_cluster = false\n"]
    assert not settings.parent.exists()


def test_a_program_is_found_where_debian_keeps_postgresqls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder a version, none of them on the PATH."""
    folder = tmp_path / "15" / "bin"
    folder.mkdir(parents=True)
    (folder / "pg_of_this_test").touch(mode=0o755)
    monkeypatch.setattr(packages, "_POSTGRESQL", tmp_path)
    assert packages.program("pg_of_this_test") == str(folder / "pg_of_this_test")


def test_a_missing_tool_is_a_named_skip_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the tool and the package that brings it."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(tools, "program", lambda _: None)
    with pytest.raises(pytest.skip.Exception, match="needs qemu-io: apt-get install qemu-utils"):
        tools.require_tool("qemu-io")


def test_a_missing_tool_is_a_failure_in_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI=true nothing is skipped unseen."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(tools, "program", lambda _: None)
    with pytest.raises(pytest.fail.Exception, match="needs qemu-io"):
        tools.require_tool("qemu-io")


@pytest.fixture
def state(tmp_path: Path) -> State:
    """A state folder."""
    return State(tmp_path / "state")


# ------------------------------------------------------------------ the quickstart


def lock_stack(state: State, **holder: object) -> None:
    """A lock as Pulumi leaves it."""
    folder = state.pulumi / "stacks" / ".pulumi" / "locks" / "organization" / "quickstart" / quickstart.STACK
    folder.mkdir(parents=True)
    (folder / "0.json").write_text(json.dumps({"hostname": socket.gethostname(), **holder}))


@pytest.fixture
def pulumi_calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What set-up calls Pulumi with."""
    calls: list[list[str]] = []
    monkeypatch.setattr(quickstart, "_pulumi", lambda arguments, _: calls.append(arguments))
    return calls


def test_the_lock_of_a_dead_pulumi_is_released(state: State, pulumi_calls: list[list[str]]) -> None:
    """So that `make up` after a kill -9 goes on."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock_stack(state, pid=dead.pid)
    quickstart._free_stack(state, {})
    assert pulumi_calls == [["cancel", "--yes", quickstart.STACK]]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_the_lock_of_a_dead_pulumi_that_nobody_waited_for_is_released(
    state: State, pulumi_calls: list[list[str]]
) -> None:
    """In a container whose first process reaps nobody, the dead keep their numbers."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    try:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        lock_stack(state, pid=dead.pid)
        quickstart._free_stack(state, {})
    finally:
        dead.wait()
    assert pulumi_calls == [["cancel", "--yes", quickstart.STACK]]


@pytest.mark.parametrize("holder", [{"pid": os.getpid()}, {"pid": 1, "hostname": "another"}, {}])
def test_the_lock_of_a_pulumi_that_may_live_is_kept(
    holder: dict[str, object], state: State, pulumi_calls: list[list[str]]
) -> None:
    """It runs here, or on another machine, or does not say."""
    lock_stack(state, **holder)
    quickstart._free_stack(state, {})
    assert pulumi_calls == []


def test_clean_removes_only_what_the_quickstart_wrote(
    state: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the copies of the stack `primary`, whose site goes too; a state folder that holds something else keeps it."""
    monkeypatch.setenv("DPAC_STATE_DIR", str(state.root))
    monkeypatch.setenv("YES", "1")
    monkeypatch.setattr(quickstart, "_STACK_SETTINGS", tmp_path / "Pulumi.local.yaml")
    for folder in (state.data, state.copies, state.primary_copies, state.pulumi):
        folder.mkdir(parents=True)
    (state.root / "thesis.txt").write_text("mine")
    quickstart.clean()
    assert [file.name for file in state.root.iterdir()] == ["thesis.txt"]


def test_clean_asks_first(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can answer, nothing is removed."""
    monkeypatch.setenv("DPAC_STATE_DIR", str(state.root))
    monkeypatch.delenv("YES", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    state.data.mkdir(parents=True)
    with pytest.raises(SetupError, match="make clean YES=1"):
        quickstart.clean()
    assert state.data.exists()


def test_the_quickstart_never_reaches_the_backend_a_user_named(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPAC_ENDPOINT may name production; `make up` speaks to its own site only."""
    monkeypatch.setenv("DPAC_ENDPOINT", "https://production.example")
    assert "DPAC_ENDPOINT" not in quickstart._pulumi_variables(state, Path("/t"))


def test_a_folder_held_by_another_run_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the person is told for what."""
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    entered = threading.Event()

    def enter() -> None:
        with console.alone(tmp_path):
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    deadline = time.monotonic() + 60
    said = ""
    while "waiting" not in said:
        assert time.monotonic() < deadline
        said += capsys.readouterr().err
    assert not entered.is_set()
    os.close(held)
    assert entered.wait(10)
    waiting.join()
