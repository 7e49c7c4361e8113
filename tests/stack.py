"""A Pulumi project in a folder of its own, driven by the real CLI through the Automation API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi.automation as auto

from tests.tools import require_pulumi


class Stack:
    """One stack of a project whose program a test writes and changes, or of one that is there (`project=None`)."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, name: str = "test", project: str | None = "shop"
    ) -> None:
        self.folder = folder
        if project is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (folder / "Pulumi.yaml").write_text(f"name: {project}\nruntime: python\n")
            self.write("")
        self.stack = auto.create_or_select_stack(
            stack_name=name,
            work_dir=str(folder),
            opts=auto.LocalWorkspaceOptions(env_vars=dict(environment), pulumi_command=_command(folder)),
        )

    def write(self, body: str) -> None:
        """The program, after the imports."""
        (self.folder / "__main__.py").write_text(f"import pulumi\nimport dpac\n{body}\n")

    def environment(self, **variables: str) -> None:
        """Set variables of the next commands."""
        for name, value in variables.items():
            self.stack.workspace.env_vars[name] = value

    def up(self, **options: Any) -> auto.UpResult:
        """`pulumi up`; raises with the CLI's output if it fails."""
        return self.stack.up(**options)

    def preview(self) -> dict[str, Step]:
        """What `pulumi up` would do, by the resource's name; unchanged ones left out."""
        events: list[Any] = []
        self.stack.preview(on_event=events.append)
        steps = [event.resource_pre_event.metadata for event in events if event.resource_pre_event is not None]
        return {Step(step).name: Step(step) for step in steps if Step(step).operation != "same"}

    def refresh(self, **options: Any) -> auto.RefreshResult:
        """`pulumi refresh`."""
        return self.stack.refresh(**options)

    def destroy(self) -> auto.DestroyResult:
        """`pulumi destroy`."""
        return self.stack.destroy()

    def exported(self, *, show_secrets: bool = False) -> str:
        """The text of `pulumi stack export`."""
        return self.cli("stack", "export", *(["--show-secrets"] if show_secrets else []))

    def cli(self, *arguments: str) -> str:
        """What `pulumi ARGUMENTS` prints; raises with its output if it fails."""
        workspace = self.stack.workspace
        command = [*arguments, "--stack", self.stack.name, "--non-interactive"]
        return str(workspace.pulumi_command.run(command, str(self.folder), workspace.env_vars).stdout)

    def rename(self, name: str) -> None:
        """`pulumi stack rename`."""
        self.cli("stack", "rename", name)
        self.stack = auto.select_stack(
            stack_name=name,
            work_dir=str(self.folder),
            opts=auto.LocalWorkspaceOptions(
                env_vars=dict(self.stack.workspace.env_vars), pulumi_command=self.stack.workspace.pulumi_command
            ),
        )

    def configure(self, path: str, value: str) -> None:
        """`pulumi config set --path`."""
        self.stack.set_config(path, auto.ConfigValue(value), path=True)

    def resources(self) -> dict[str, dict[str, Any]]:
        """The resources in state by name."""
        return {
            held["urn"].rsplit("::", 1)[1]: held
            for held in json.loads(self.exported())["deployment"].get("resources", [])
        }


class Step:
    """What one resource is about to go through."""

    def __init__(self, metadata: Any) -> None:
        self.name: str = metadata.urn.rsplit("::", 1)[1]
        self.operation: str = metadata.op.value if hasattr(metadata.op, "value") else str(metadata.op)
        self._old: dict[str, Any] = (metadata.old.inputs if metadata.old else None) or {}
        self._new: dict[str, Any] = (metadata.new.inputs if metadata.new else None) or {}

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """Every leaf of the inputs that differs, by its path, as (before, after)."""
        before, after = dict(_leaves(self._old)), dict(_leaves(self._new))
        paths = sorted(before.keys() | after.keys())
        return {path: (before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)}


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(path, value)]
    return [
        leaf
        for key, held in value.items()
        if not key.startswith("__")
        for leaf in _leaves(held, f"{path}.{key}" if path else key)
    ]


def _command(folder: Path) -> auto.PulumiCommand:
    # The Automation API looks for ROOT/bin/pulumi and asks it for its version.
    root = folder / ".cli"
    root.mkdir(exist_ok=True)
    link = root / "bin"
    if not link.exists():
        link.symlink_to(require_pulumi())
    return auto.PulumiCommand(root=str(root))
