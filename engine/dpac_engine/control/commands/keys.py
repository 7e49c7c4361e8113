"""`dpac key`: a copy of the key outside this host. Works on the data folder itself: keys never travel over REST."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpac_engine.control.commands.session import DATA, DataFolder, Json, moment, print_json, say

app = typer.Typer(help="The key to everything a site has copied, and its escrow copy.", no_args_is_help=True)


@app.command("export")
def export(
    to: Annotated[
        Path, typer.Option("--to", dir_okay=False, help="A new file for the copy (0600). Keep it off this host.")
    ],
    data: DataFolder = DATA,
) -> None:
    """Write a copy of the site's key-encryption key. Whoever has it can read every copy; without it nobody can."""
    from dpac_engine.control.site import Site
    from dpac_engine.io.keys import Keyring

    site = Site.read(data.expanduser().absolute())
    mark = Keyring(site.keys).export_kek(to.expanduser().absolute(), site.site_uid)
    say(f"The key of site {site.name} is in {to} (fingerprint {mark}).")
    say(f"Move it off this host, then: dpac key confirm {to} --data {data}")


@app.command("confirm")
def confirm(
    copy: Annotated[Path, typer.Argument(metavar="FILE", help="The copy, read back from where it is kept.")],
    data: DataFolder = DATA,
) -> None:
    """Confirm that a copy of the key is kept off this host, by reading it back: ends the condition KeyNotEscrowed."""
    import time

    from dpac_engine.control.site import Site
    from dpac_engine.io.keys import Keyring, read_escrow

    site = Site.read(data.expanduser().absolute())
    _, mark = read_escrow(copy.expanduser())
    Keyring(site.keys).confirm_escrow(mark, time.time_ns())
    say(f"Noted: a copy of the key of site {site.name} (fingerprint {mark}) is kept outside this host.")


@app.command("status")
def status(data: DataFolder = DATA, json: Json = False) -> None:
    """Which key the site uses, and whether a copy of it was confirmed."""
    from datetime import UTC, datetime

    from dpac_engine.control.site import Site
    from dpac_engine.io.keys import Keyring

    site = Site.read(data.expanduser().absolute())
    found = Keyring(site.keys).escrow_status()
    confirmed = None if found.confirmed_ns is None else datetime.fromtimestamp(found.confirmed_ns / 1e9, UTC)
    if json:
        print_json(
            {
                "fingerprint": found.fingerprint,
                "confirmed": confirmed.isoformat().replace("+00:00", "Z") if confirmed else None,
            }
        )
    else:
        escrow = (
            f"a copy was confirmed at {moment(confirmed)}" if confirmed else "no copy was confirmed: `dpac key export`"
        )
        say(f"fingerprint {found.fingerprint}; {escrow}")
