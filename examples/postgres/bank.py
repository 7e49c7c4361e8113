"""A bank in PostgreSQL on two protected volumes: set up, put to work, and recovered elsewhere from any checkpoint.

    python bank.py prepare --folder LIVE --data URI --wal URI            attach, format if blank, mount, start
    python bank.py load    --folder LIVE --receipts LOG --seconds 60     transfers, and a client that notes each COMMIT
    dpac mount postgres --at latest --json | python bank.py recover --folder COPY --receipts LOG
    python bank.py stop    --folder COPY                                 stop, unmount, detach

Needs root, for loop devices and mounts; the server runs as another user.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import receipts
from disks import Disk, DiskError
from server import Server, ServerError, program

ACCOUNTS = 5_000
BALANCE = 1_000
"""What every account begins with. Transfers never change the sum."""

SCHEMA = (
    "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL)",
    "CREATE TABLE transfers (id bigserial PRIMARY KEY, source int NOT NULL REFERENCES accounts, "
    "destination int NOT NULL REFERENCES accounts, amount bigint NOT NULL)",
    "CREATE INDEX ON transfers (source)",
    "CREATE INDEX ON transfers (destination)",
    receipts.SCHEMA,
    f"INSERT INTO accounts SELECT id, {BALANCE} FROM generate_series(1, {ACCOUNTS}) AS id",
)

WRONG_BALANCES = f"""
SELECT count(*) FROM accounts
LEFT JOIN (SELECT source AS id, sum(amount) AS paid FROM transfers GROUP BY source) AS debits USING (id)
LEFT JOIN (SELECT destination AS id, sum(amount) AS got FROM transfers GROUP BY destination) AS credits USING (id)
WHERE balance <> {BALANCE} - coalesce(paid, 0) + coalesce(got, 0)
"""
"""How many accounts do not have the balance that the transfers add up to."""


class Bank:
    """Two disks and the server on them, all below one folder."""

    def __init__(self, folder: Path, user: str, uris: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.disks = {name: Disk((uris or {}).get(name, ""), folder / name) for name in ("data", "wal")}
        self.server = Server(self.disks["data"].root, self.disks["wal"].root, folder / "run", user)

    def stop(self) -> None:
        """Stop the server and take both disks away; what is not there is not missed."""
        with ExitStack() as stack:  # the last one first, and every one, whatever fails
            for disk in self.disks.values():
                stack.callback(disk.detach)
            self.server.stop()


def prepare(bank: Bank) -> None:
    """Attach and mount both volumes, make on them what is not there yet, and start the server."""
    for name, disk in bank.disks.items():
        disk.attach()
        if disk.format_if_blank():
            print(f"{name}: formatted")
        disk.mount()
    fresh = bank.server.create()
    bank.server.start()
    if fresh:
        bank.server.sql("CREATE DATABASE bank", database="postgres")
        for statement in SCHEMA:
            bank.server.sql(statement)
    print(f"serves at {bank.server.socket_folder}")


def load(bank: Bank, log: Path, clients: int, seconds: int) -> None:
    """Transfers by several clients, and one that notes receipts, until the time is over or SIGTERM or Ctrl-C come."""
    server, stop = bank.server, threading.Event()
    first = int(server.sql("SELECT coalesce(max(number), 0) + 1 FROM receipts"))
    script = Path(__file__).with_name("transfer.sql")
    name, *arguments = server.client("pgbench", "--no-vacuum", "--file=/dev/stdin", f"--define=accounts={ACCOUNTS}")
    arguments += [f"--client={clients}", "--jobs=1", f"--time={seconds}", "bank"]
    # The server's user may not be allowed to open the script itself.
    with (
        script.open("rb") as text,
        subprocess.Popen([program(name), *arguments], stdin=text, **server.as_user()) as work,
    ):
        told = threading.Event()

        def end(*_: object) -> None:
            told.set()
            work.terminate()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        recorder = threading.Thread(
            target=receipts.record, args=(server.reader_of_statements(), server.as_user(), first, log, stop)
        )
        recorder.start()
        try:
            work.wait()
        finally:
            stop.set()
            recorder.join()
    if work.returncode != 0 and not told.is_set():
        raise ServerError(f"pgbench ended with {work.returncode}; what it said is above.")


def recover(bank: Bank, log: Path, by: datetime) -> list[str]:
    """Start a copy of the server on a mounted checkpoint's volumes; returns what is wrong with it. It is left running."""
    try:
        for name, disk in bank.disks.items():
            disk.attach()
            replays = disk.needs_replay()
            disk.mount()  # the kernel replays the file system's journal
            disk.unmount()
            disk.check()
            disk.mount()
            print(f"{name}: {'journal replayed, ' if replays else ''}file system whole")
        bank.server.take_over_copy()
        bank.server.start()
    except (DiskError, ServerError) as error:
        return [str(error), *bank.server.log_lines("FATAL:", "PANIC:")]
    print(*bank.server.log_lines("redo starts", "redo done", "redo is not required"), sep="\n")
    print(f"PostgreSQL: recovered, serves at {bank.server.socket_folder}")
    return check(bank.server, log, by)


def check(server: Server, log: Path, by: datetime) -> list[str]:
    """What is wrong with the database at the moment `by`: broken tables or indexes, money made or lost, receipts missing."""
    try:
        server.amcheck()
        print("pg_amcheck: every table and index whole, every row indexed")
        total, wrong = int(server.sql("SELECT sum(balance) FROM accounts")), int(server.sql(WRONG_BALANCES))
        present = receipts.parse_listing(server.sql(receipts.LISTED).splitlines())
    except ServerError as error:
        return [str(error)]
    transfers = server.sql("SELECT count(*) FROM transfers")
    print(f"accounts: {total} in all, after {transfers} transfers")
    print(f"receipts: {len(present)} there")
    problems = receipts.compare(present, receipts.read_log(log), by)
    if total != ACCOUNTS * BALANCE:
        problems.append(f"all balances sum to {total} instead of {ACCOUNTS * BALANCE}")
    if wrong:
        problems.append(f"{wrong} accounts do not have the balance that their transfers add up to")
    return problems


def main() -> int:
    """Run one command; the status is 1 if a recovered bank is wrong, 2 if something could not be done."""
    options = _parser().parse_args()
    if os.geteuid() != 0:
        print("bank.py: loop devices and mounts need root", file=sys.stderr)
        return 2
    try:
        return _run(options)
    except (DiskError, ServerError) as error:
        print(f"bank.py: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    folder = options.folder.absolute()
    if options.command == "prepare":
        prepare(Bank(folder, options.user, {"data": options.data, "wal": options.wal}))
    elif options.command == "load":
        load(Bank(folder, options.user), options.receipts, options.clients, options.seconds)
    elif options.command == "recover":
        mount = json.load(options.mount)
        bank = Bank(folder, options.user, mount["members"])
        problems = recover(bank, options.receipts, options.by or datetime.fromisoformat(mount["checkpoint_time"]))
        print("\n".join(problems) if problems else "whole, nothing missing")
        return 1 if problems else 0
    else:
        Bank(folder, options.user).stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A bank in PostgreSQL on two protected volumes.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = {
        name: commands.add_parser(name, help=text)
        for name, text in (
            ("prepare", "attach, format if blank, mount, start"),
            ("load", "transfers, and a client that notes each COMMIT"),
            ("recover", "start a copy on a mounted checkpoint, and check it"),
            ("stop", "stop the server, unmount, detach"),
        )
    }
    for command in made.values():
        command.add_argument("--folder", type=Path, required=True, help="where disks are mounted and the socket is")
        command.add_argument("--user", default="postgres", help="whom the server runs as (postgres)")
    made["prepare"].add_argument("--data", required=True, metavar="URI", help="the volume of the data")
    made["prepare"].add_argument("--wal", required=True, metavar="URI", help="the volume of the WAL")
    for name in ("load", "recover"):
        made[name].add_argument(
            "--receipts", type=Path, required=True, help="log of acknowledged transactions, kept elsewhere"
        )
    made["load"].add_argument("--seconds", type=int, default=60)
    made["load"].add_argument("--clients", type=int, default=4)
    made["recover"].add_argument(
        "--mount", type=argparse.FileType(), default="-", help="what `dpac mount --json` printed (standard input)"
    )
    made["recover"].add_argument(
        "--by", type=datetime.fromisoformat, help="which moment it shall be of (the mounted checkpoint's)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
