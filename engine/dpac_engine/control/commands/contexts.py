"""`dpac context`: the sites this user knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpac_engine.control.commands.session import (
    PAGE,
    Cursor,
    Json,
    Limit,
    console,
    page_of,
    print_page,
    say,
    say_more,
    table,
)

app = typer.Typer(help="The sites you know, and the current one.", no_args_is_help=True)
ContextName = Annotated[str, typer.Argument(metavar="NAME", help="The context's name.")]


@app.command("list")
def list_contexts(json: Json = False, limit: Limit = PAGE, cursor: Cursor = None) -> None:
    """Contexts by name; the current one has a star."""
    from dpac_api.contexts import read_contexts

    known = read_contexts()
    names, more = page_of(sorted(known.contexts), str, limit, cursor)
    if json:
        print_page(
            [
                {"name": name, "current": name == known.current, **known.contexts[name].model_dump(mode="json")}
                for name in names
            ],
            more,
        )
        return
    rows = table("", "NAME", "ENDPOINT", "TOKEN FILE", "SITE")
    for name in names:
        context = known.contexts[name]
        rows.add_row(
            "*" if name == known.current else "",
            name,
            context.endpoint,
            context.token_file or "-",
            context.site_uid or "any",
        )
    console().print(rows)
    say_more(more)


@app.command("use")
def use(name: ContextName) -> None:
    """Make a context the current one."""
    from dpac_api.contexts import use_context

    use_context(name)
    say(f"The current context is {name}.")


@app.command("set")
def set_context(
    name: ContextName,
    endpoint: Annotated[str, typer.Option("--endpoint", metavar="URL", help="The backend's URL.")],
    token_file: Annotated[
        Path | None, typer.Option("--token-file", dir_okay=False, help="The file that holds the token.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", dir_okay=False, help="PEM certificates to trust.")
    ] = None,
    site_uid: Annotated[
        str | None, typer.Option("--site-uid", help="The site that must answer; else whichever does.")
    ] = None,
) -> None:
    """Write a context and make it the current one."""
    from pydantic import ValidationError

    from dpac_api.contexts import Context, write_context
    from dpac_engine.control.property_paths import invalid

    try:
        context = Context(
            endpoint=endpoint,
            token_file=str(token_file.expanduser().absolute()) if token_file else None,
            ca_file=str(ca_file.expanduser().absolute()) if ca_file else None,
            site_uid=site_uid,
        )
    except ValidationError as error:
        raise invalid(error.errors(), None) from None
    say(f"The context {name} is in {write_context(name, context)}.")


@app.command("remove")
def remove(name: ContextName) -> None:
    """Forget a context; the site itself is not touched."""
    from dpac_api.contexts import remove_context

    remove_context(name)
    say(f"The context {name} is gone.")
