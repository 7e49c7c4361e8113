"""`dpac key`: what opens the copies when this host is lost.

Works on the data folder, or on a target, itself: keys never travel over REST.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpac_engine.control.commands.session import (
    DATA,
    DataFolder,
    Json,
    aside,
    console,
    escape,
    moment,
    print_json,
    say,
    table,
)

if TYPE_CHECKING:
    from dpac_engine.control.escrow_check import EscrowCheck

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


@app.command("generate-escrow")
def generate_escrow(
    to: Annotated[Path, typer.Option("--to", dir_okay=False, help="A new file for the private half (0600).")],
) -> None:
    """Make an escrow key: the private half goes to a file, the public half, which programs declare, is printed."""
    from dpac_engine.io.escrow import PrivateKey

    key = PrivateKey.generate()
    key.write(to.expanduser().absolute())
    say(key.public)
    aside().print(
        f"The private half is in {escape(str(to))}. Keep it off the hosts that are backed up. Declare the public half: "
        "encryption=dpac.Encryption(escrow=...).",
        soft_wrap=True,
    )


@app.command("check-escrow")
def check_escrow(
    private: Annotated[Path, typer.Option("--private", dir_okay=False, help="The file with the private half.")],
    target_path: Annotated[
        Path,
        typer.Option("--target-path", file_okay=False, help="The folder of a filesystem target, or a copy of one."),
    ],
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="UID", help="Only this group's; else every group's that lies there."),
    ] = None,
    json: Json = False,
) -> None:
    """Prove that a private escrow key opens what lies at a target, with neither backend nor site keys at hand."""
    from dpac_api.errors import NotFound
    from dpac_engine.control.escrow_check import check_escrow
    from dpac_engine.io.escrow import PrivateKey
    from dpac_engine.io.stores.filesystem import FilesystemStore

    key = PrivateKey.read(private.expanduser())
    found = check_escrow(FilesystemStore(target_path.expanduser().absolute()), key, group)
    if json:
        print_json({"escrow_key": key.public, "groups": [_opened(one) for one in found]})
    else:
        rows = table("GROUP", "UID", "OPENS", "NEWEST", "TIME", "")
        for one in found:
            opens = "no" if one.problem else "yes"
            at = moment(one.checkpoint_time)
            rows.add_row(one.group or "-", one.group_uid, opens, one.checkpoint or "-", at, escape(one.problem or ""))
        console().print(rows)
    closed = [one.group or one.group_uid for one in found if one.problem]
    if closed:
        raise NotFound(f"This key does not open the copies of {', '.join(closed)} at {target_path}.")


def _opened(one: EscrowCheck) -> dict[str, Any]:
    return {
        "group_uid": one.group_uid,
        "group": one.group,
        "checkpoint": one.checkpoint,
        "checkpoint_time": None
        if one.checkpoint_time is None
        else one.checkpoint_time.isoformat().replace("+00:00", "Z"),
        "problem": one.problem,
    }
