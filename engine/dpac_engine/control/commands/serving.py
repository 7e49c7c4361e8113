"""`dpac serve` and `dpac stop`: the backend on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpac_engine.control.commands.session import DATA, DataFolder, say


def serve(
    data: DataFolder = DATA,
    detach: Annotated[bool, typer.Option("--detach", help="Start in the background; return once it answers.")] = False,
    name: Annotated[str, typer.Option("--name", help="The site's name; counts when the site is made.")] = "local",
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="IP:PORT",
            help="REST's address; else 127.0.0.1 and last time's port, 8700 or a free one.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Worker processes; else one fewer than cores, at most 8.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", file_okay=False, help="Where the sockets are; else DATA/run.")
    ] = None,
    nbd_tcp: Annotated[
        str | None,
        typer.Option(
            "--nbd-tcp", metavar="IP:PORT", help="Exports over TCP too; worker 0's port, the next worker's is the next."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="PEM certificate chain for REST and NBD over TCP.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its PEM private key.")] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option("--tls-ca", help="PEM authority that clients of NBD over TCP must have certificates of."),
    ] = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Serve addresses that other hosts reach without TLS.")
    ] = False,
    log_files: Annotated[bool, typer.Option("--log-files", help="Log to DATA/log instead of standard error.")] = False,
) -> None:
    """Run the replication backend: REST, exports, replication."""
    from dpac_engine.control.serve import serve as run
    from dpac_engine.control.serve_options import ServeOptions

    options = ServeOptions(
        data=str(data),
        name=name,
        listen=listen,
        workers=workers,
        run_dir=str(run_dir) if run_dir else None,
        nbd_tcp=nbd_tcp,
        tls_cert=str(tls_cert) if tls_cert else None,
        tls_key=str(tls_key) if tls_key else None,
        tls_ca=str(tls_ca) if tls_ca else None,
        plaintext=plaintext,
        log_files=log_files,
    )
    raise typer.Exit(run(options, detach=detach, say=say))


def stop(
    data: DataFolder = DATA,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for the end.")] = 60.0,
) -> None:
    """Stop the backend of a data folder; everything stays on disk."""
    from dpac_engine.control.serve import stop as end

    say("The backend is stopped." if end(data, timeout) else f"No backend serves {data}.")
