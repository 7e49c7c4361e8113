"""docs/cli.md: no command and no option is undocumented, and none is documented that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dpac_api.errors import DpacError
from dpac_engine.control.cli import app

DOC = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
ROOT: Any = typer.main.get_command(app)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command, by its whole name."""
    for name, command in ROOT.commands.items():
        if hasattr(command, "commands"):
            for child, subcommand in command.commands.items():
                yield f"dpac {name} {child}", subcommand
        else:
            yield f"dpac {name}", command


COMMANDS = dict(commands())


def section(name: str) -> str:
    """What the document says of a command."""
    found = re.search(rf"^### `{re.escape(name)}`$(.*?)(?=^##|\Z)", DOC, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section '### `{name}`'"
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_with_every_option_and_argument(name: str) -> None:
    """And with what its own help says of it."""
    command, text = COMMANDS[name], section(name)
    options = {
        spelling for p in command.params for spelling in [*p.opts, *p.secondary_opts] if p.param_type_name == "option"
    }
    documented = set(re.findall(r"`(--?[a-z][a-z-]*)`", "\n".join(re.findall(r"^\|(.+?)\|", text, re.MULTILINE))))
    assert documented == options - {"--help"}
    for argument in (p for p in command.params if p.param_type_name == "argument"):
        assert argument.metavar.strip("[]") in text.split("```")[1]
    assert command.help.strip().split(". ")[0] in text


def test_no_section_is_of_a_command_that_is_not_there() -> None:
    """Docs follow the code both ways."""
    assert set(re.findall(r"^### `(dpac .+?)`$", DOC, re.MULTILINE)) == set(COMMANDS)


def test_every_exit_status_of_the_error_tree_is_documented() -> None:
    """Scripts branch on them."""

    def statuses(root: type[DpacError]) -> set[int]:
        return {root.exit_code}.union(*(statuses(child) for child in root.__subclasses__()))

    documented = {int(status) for status in re.findall(r"^\| ([0-9]+) \|", DOC, re.MULTILINE)}
    assert statuses(DpacError) | {0, 130} == documented


def test_every_listing_has_json_and_pages() -> None:
    """The three options come together."""
    listings = [
        name
        for name in COMMANDS
        if name.split()[-1] in ("list", "mounts", "checkpoints", "status") and name != "dpac key status"
    ]
    assert len(listings) >= 8
    for name in listings:
        options = {spelling for p in COMMANDS[name].params for spelling in p.opts}
        assert {"--json", "--limit", "--cursor"} <= options, name
