"""`dpac token`: who may do what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dpac_engine.control.commands.session import (
    PAGE,
    Cursor,
    Json,
    Limit,
    aside,
    client,
    console,
    moment,
    page_of,
    print_json,
    print_page,
    say,
    say_more,
    table,
)

app = typer.Typer(help="Who may do what: tokens and their scopes.", no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    scope: Annotated[Literal["admin", "operate", "read"], typer.Option("--scope", help="What it may do.")] = "read",
    file: Annotated[
        Path | None,
        typer.Option("--file", dir_okay=False, help="Write the secret to this new file (0600) instead of printing it."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a token. Its secret is shown once, now."""
    import os

    from dpac_api.errors import Invalid

    descriptor = None
    if file is not None:
        try:  # before the token is made: a secret that cannot be written is lost
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise Invalid(f"{file} cannot be written ({error.strerror}). Name a new file.") from None
    try:
        with client() as site:
            made = site.create_token(name, scope)
    except BaseException:
        if descriptor is not None and file is not None:
            os.close(descriptor)
            file.unlink()
        raise
    if descriptor is not None:
        with open(descriptor, "w") as stream:
            stream.write(made.secret + "\n")
        made = made.model_copy(update={"secret": ""})
    if json:
        print_json(made)
    elif file is not None:
        say(f"The token {made.name} ({made.scope}, id {made.id}) is in {file}.")
    else:
        aside().print(f"The token {made.name} ({made.scope}, id {made.id}); it is not shown again:")
        say(made.secret)


@app.command("list")
def list_tokens(json: Json = False, limit: Limit = PAGE, cursor: Cursor = None) -> None:
    """Tokens, oldest first, without their secrets."""
    with client() as site:
        found, more = page_of(site.tokens(), lambda token: token.id, limit, cursor)
    if json:
        print_page(found, more)
        return
    rows = table("ID", "NAME", "SCOPE", "CREATED", "LAST USED")
    for token in found:
        rows.add_row(token.id, token.name, token.scope, moment(token.created), moment(token.last_used))
    console().print(rows)
    say_more(more)


@app.command("revoke")
def revoke(token: Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id or name.")]) -> None:
    """End a token at once."""
    with client() as site:
        site.revoke_token(token)
    say(f"The token {token} is revoked.")
