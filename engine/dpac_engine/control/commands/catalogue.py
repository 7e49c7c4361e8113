"""`dpac catalogue`: what was declared, made again after its file was lost. Works on the data folder itself."""

from __future__ import annotations

import typer

from dpac_engine.control.commands.session import DATA, DataFolder, Json, chosen, print_json, say

app = typer.Typer(help="The site's own record of what was declared.", no_args_is_help=True)


@app.callback()
def _catalogue() -> None:
    """A group of commands, though it has one so far."""


@app.command("rebuild")
def rebuild(data: DataFolder = DATA, json: Json = False) -> None:
    """Make a lost or damaged catalogue again from what the workers have and what lies at the targets. The data path goes on meanwhile."""
    from datetime import UTC, datetime

    from dpac_engine.control import catalogue_rebuild
    from dpac_engine.control.site import Site

    assert chosen.stored_groups is not None, "the wiring sets it"
    site = Site.read(data.expanduser().absolute())
    done = catalogue_rebuild.rebuild(site, chosen.stored_groups(site), datetime.now(UTC))
    if json:
        print_json({**done._asdict(), "aside": str(done.aside) if done.aside else None})
        return
    for what, names in (("groups", done.groups), ("retained groups", done.retained), ("targets", done.targets)):
        say(f"{what}: {', '.join(names) or 'none'}")
    if done.mounts:
        say(f"mounts: {', '.join(done.mounts)}")
    for note in done.notes:
        say(f"note: {note}")
    if done.aside:
        say(f"The damaged file is kept as {done.aside}.")
    say("Not rebuilt: past operations, API tokens (make new ones: `dpac token create`), targets that no group used.")
    say("A backend that runs takes the catalogue up within seconds.")
