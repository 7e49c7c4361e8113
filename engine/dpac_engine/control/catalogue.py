"""The catalogue: what was asked of this site, and what was decided about it.

SQLite in WAL mode, one writer at a time, every commit durable. A change and the
answer to its request are one transaction, so that a retry after a crash finds
either both or neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, delete, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from dpac_api.errors import Conflict, Corruption, Temporary, Unsupported
from dpac_engine.control.catalogue_schema import RequestRow

REQUEST_AGE_MAX = timedelta(days=7)
"""How long a changing request's answer is kept for its retries."""
_BUSY_TIMEOUT_MS = 10_000


class Catalogue:
    """One site's catalogue; its methods may be called from any thread."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._path = path
        self.damaged = False
        """A page that cannot be read was met since it was opened."""

    @classmethod
    def open(cls, path: Path) -> Catalogue:
        """The catalogue in file `path`, created or migrated to this build's tables.

        Corruption if it is no database or damaged, Unsupported if a newer dpac wrote it, Temporary if it is in use.
        """
        catalogue = cls(_engine(path), path)
        try:
            with catalogue._told(), catalogue._engine.connect() as connection:
                _check_pages(connection, path)
                migrate(connection)
        except CommandError as cause:
            catalogue.close()
            raise Unsupported(
                f"The catalogue {path} was written by a newer dpac ({cause}). Use that version or a newer one; this one "
                "touches nothing."
            ) from cause
        except BaseException:
            catalogue.close()
            raise
        return catalogue

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view. Corruption if it is damaged, Temporary if its disk is full or does not answer."""
        with self._told(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that nothing else writes beside; undone if the block raises. Errors as of `read`."""
        engine = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        with self._told(), Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the database raises, as errors of the one tree."""
        try:
            yield
        except OperationalError as cause:
            raise Temporary(
                f"The catalogue {self._path} cannot be used now: {cause.orig}. Look at the disk it lies on, and whether "
                "another process uses it."
            ) from cause
        except DatabaseError as cause:
            if type(cause) is not DatabaseError:
                raise  # a statement that is wrong, not a file
            self.damaged = True
            raise damaged(self._path, str(cause.orig)) from cause

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def damaged(path: Path, what: str) -> Corruption:
    """What a person is told of a catalogue that cannot be used."""
    return Corruption(
        f"The catalogue {path} is damaged: {what}. Exports are served and changes are replicated as before, but nothing can be "
        f"declared or recovered here. Make it again with `dpac catalogue rebuild --data {path.parent}`, or put back a copy "
        "of it while the backend is stopped."
    )


def _check_pages(connection: Connection, path: Path) -> None:
    """Corruption if a page is damaged: met now, it is told at once, and not in the middle of something."""
    (said,) = connection.exec_driver_sql("PRAGMA quick_check(1)").scalars().all()
    connection.rollback()
    if said != "ok":
        raise damaged(path, str(said).splitlines()[-1])


def migrate(connection: Connection) -> None:
    """Bring the tables behind `connection` to the newest migration."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", execution_options={"begin": "BEGIN"})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where _begin says, not where the driver guesses
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options()["begin"])

    return engine


# ------------------------------------------------------------------ request ids


def fingerprint_of(method: str, path: str, body: Any) -> str:
    """What a request asks for, without its id: two requests of one fingerprint ask for the same."""
    canonical = json.dumps([method, path, body], sort_keys=True, default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def recall(session: Session, request_id: str, fingerprint: str) -> dict[str, Any] | None:
    """The answer given to this request before, or None. Conflict if the id belonged to a different request."""
    row = session.get(RequestRow, request_id)
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise Conflict(
            f"The request id {request_id!r} was used for a different request. Make a new id for every new request.",
            property_path="request_id",
        )
    return row.answer


def remember(session: Session, request_id: str, fingerprint: str, answer: dict[str, Any], now: datetime) -> None:
    """Keep the answer for retries; answers older than `REQUEST_AGE_MAX` go."""
    session.execute(delete(RequestRow).where(RequestRow.created < now - REQUEST_AGE_MAX))
    session.add(RequestRow(id=request_id, fingerprint=fingerprint, answer=answer, created=now))


def utc(now_ns: int) -> datetime:
    """A wall-clock reading as a moment in UTC, to the microsecond."""
    return datetime.fromtimestamp(now_ns // 10**9, UTC) + timedelta(microseconds=now_ns % 10**9 // 1000)
