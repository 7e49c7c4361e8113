"""`dpac`: the command line. Everything but `serve`, `stop`, `key`, `catalogue` and `target preseed` goes through the REST client."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from dpac_api.errors import DpacError
from dpac_engine.control.commands import (
    browsing,
    catalogue,
    checkpoints,
    contexts,
    groups,
    keys,
    legs,
    operations,
    policy,
    preseed,
    restore,
    serving,
    session,
    space,
    statuses,
    targets,
    tokens,
)

app = typer.Typer(
    name="dpac",
    help="Data protection as code: what is protected, how well, and how to get it back.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    statuses.status,
    checkpoints.checkpoint,
    checkpoints.checkpoints,
    checkpoints.hold,
    checkpoints.release,
    space.space,
    checkpoints.mount,
    checkpoints.unmount,
    checkpoints.mounts,
    browsing.files,
    browsing.diff,
    restore.restore,
    operations.drill,
    operations.verify,
    legs.pause,
    legs.resume,
    legs.resync,
    serving.serve,
    serving.stop,
):
    app.command()(command)
for name, group in (
    ("group", groups.app),
    ("target", targets.app),
    ("operation", operations.app),
    ("token", tokens.app),
    ("key", keys.app),
    ("catalogue", catalogue.app),
    ("context", contexts.app),
    ("policy", policy.app),
):
    app.add_typer(group, name=name)


targets.app.command("preseed")(preseed.preseed)
targets.app.command("preseed-kit")(preseed.preseed_kit)


@app.callback()
def options(
    site: Annotated[
        str | None,
        typer.Option(
            "--site", metavar="NAME", help="The context, or DPAC_ENDPOINT_NAME, to use; else the current one."
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    """Which site to speak to."""
    session.chosen.site = site
    if version:
        from importlib.metadata import version as installed

        session.say(f"dpac {installed('dpac')}")
        raise typer.Exit


# Newer typers carry a click of their own; what they raise has one root, whichever it is.
_USAGE_ERRORS: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. A user's mistake is one message, never a traceback."""
    try:
        status = app(args=None if arguments is None else list(arguments), prog_name="dpac", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except DpacError as error:
        where = f"{error.property_path}: " if error.property_path and error.property_path not in error.message else ""
        typer.echo(f"dpac: {where}{error.message}", err=True)
        return error.exit_code
    except typer.Abort:
        typer.echo("dpac: stopped; nothing more was done.", err=True)
        return 130
    except _USAGE_ERRORS as error:
        error.show()
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        return 141
