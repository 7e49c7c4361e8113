"""docs/pulumi.md says all there is to say, and nothing else."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import dpac
from dpac_api import models
from dpac_provider import inputs

TEXT = (Path(__file__).parents[2] / "docs/pulumi.md").read_text()
DOCUMENTED = [name for name in dpac.__all__ if name not in ("Member", "GroupView")]
"""Everything that takes arguments from a user."""
MODEL = {
    "Volume": models.VolumeSpec,
    "Directory": models.DirectorySpec,
    "Retention": models.RetentionSpec,
    "Journal": models.JournalSpec,
    "Async": models.AsyncLegSpec,
    "Encryption": models.EncryptionSpec,
    "FilesystemTarget": inputs.FilesystemTargetInputs,
    "S3Target": inputs.S3TargetInputs,
    "Sync": models.SyncLegSpec,
    "ProtectionGroup": inputs.GroupInputs,
    "Ready": inputs.ReadyInputs,
    "Checkpoint": inputs.CheckpointInputs,
    "Drill": inputs.DrillInputs,
}
# What a program does not write: discriminators, the stack's own label, and `to`, which becomes the target's name.
NOT_WRITTEN = {"kind", "mode", "owner"}


def _arguments(name: str) -> set[str]:
    return set(inspect.signature(getattr(dpac, name)).parameters) - {"resource_name"}


def _table(name: str) -> dict[str, list[str]]:
    """The rows of the first table after a heading, or a sentence's start, that names it: argument -> its other cells."""
    place = re.search(rf"^(?:#+ {name}|`{name}\()", TEXT, re.MULTILINE)
    assert place, f"docs/pulumi.md does not describe {name}"
    table = re.search(r"\| argument .*\n\|[-|]+\n((?:\|.*\n)+)", TEXT[place.end() :])
    assert table
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table[1].splitlines()]
    return {row[0].strip("` |"): row[1:] for row in rows}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_argument_is_documented_and_no_other(name: str) -> None:
    """An argument without a row, or a row without an argument, fails."""
    assert set(_table(name)) == _arguments(name)


@pytest.mark.parametrize("name", sorted(MODEL))
def test_a_component_offers_what_its_model_carries(name: str) -> None:
    """No option that the models do not carry, and none of theirs left out."""
    renamed = {"to": "target"} if name in ("Async", "Sync") else {}
    offered = {renamed.get(argument, argument) for argument in _arguments(name)} - {"opts"}
    assert offered == set(MODEL[name].model_fields) - NOT_WRITTEN


@pytest.mark.parametrize("name", sorted(MODEL))
def test_documented_defaults_are_those_of_the_models(name: str) -> None:
    """A default in code font is the model's."""
    renamed = {"to": "target"} if name in ("Async", "Sync") else {}
    for argument, cells in _table(name).items():
        if argument != "opts" and len(cells) == 2 and re.fullmatch(r"`[^`(]+`", cells[0]):
            default: Any = MODEL[name].model_fields[renamed.get(argument, argument)].default
            assert cells[0].strip("`") == str(default), f"{name}.{argument}"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_argument_is_described_to_an_editor(name: str) -> None:
    """In the constructor's docstring, or below the field."""
    kind = getattr(dpac, name)
    if dataclasses.is_dataclass(kind):
        source = inspect.getsource(kind)  # type: ignore[arg-type]
        for argument in _arguments(name):
            assert re.search(rf'    {argument}: .*\n    """', source), f"{name}.{argument}"
        return
    said = inspect.getdoc(kind.__init__ if inspect.isclass(kind) else kind) or ""
    assert set(re.findall(r":param (\w+):", said)) - {"resource_name"} == _arguments(name)


def test_everything_public_has_a_docstring() -> None:
    """Read in an editor, or with help()."""
    assert [name for name in dpac.__all__ if not inspect.getdoc(getattr(dpac, name))] == []
