"""What users did, kept in a database that several workers share: SQLite or PostgreSQL.

Events are only ever added. One that is sent again (the same user, item and time) is kept once, so a client that got no
answer may send it again.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql, sqlite

from ...errors import InputError
from .batching import OverloadedError

SCHEMA = 1
"""Version of the tables; a store of another version is refused."""
TRIES = 3
LOCK_SECONDS = 10
INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}

_tables = sa.MetaData()
_version = sa.Table("bbqrec_schema", _tables, sa.Column("version", sa.Integer, primary_key=True))
_events = sa.Table(
    "bbqrec_events",
    _tables,
    # SQLite counts up by itself in a column of exactly this type.
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("time", sa.Double, nullable=False),
    sa.UniqueConstraint("user_id", "time", "item_id"),  # and the index by which a history is read
)


class Event(NamedTuple):
    """A user met an item; `time` in seconds since 1970."""

    user: str
    item: str
    time: float


class Store:
    """Histories of users.

    Parameters
    ----------
    place : path of an SQLite file, or the address of a PostgreSQL database, `postgresql://user@host/name`.

    Raises
    ------
    InputError : the database cannot be opened, or its tables are of another version.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        url = _url(place)
        self._engine = sa.create_engine(url, pool_pre_ping=True, hide_parameters=True)
        self._insert = INSERTS[self._engine.dialect.name](_events).on_conflict_do_nothing()
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _set_up_sqlite)
        try:
            found = self._version()
        except exc.SQLAlchemyError as error:
            shown = url.render_as_string(hide_password=True)
            raise InputError(f"--store: {shown}: {_reason(error)}; name a file, or a database that answers") from error
        if found != SCHEMA:
            raise InputError(f"--store: found tables of version {found}, expected {SCHEMA}; name another store")

    def _version(self) -> int | None:
        """Version of the tables, which are made where there are none."""
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":  # of several that begin together one makes the tables
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(6504636)"))
            _tables.create_all(connection)
            if connection.scalar(sa.select(_version.c.version)) is None:
                connection.execute(_version.insert().values(version=SCHEMA))
            return connection.scalar(sa.select(_version.c.version))

    def add(self, events: Sequence[Event]) -> None:
        """Keep events, in order. When this returns they are on the disk; else an `OverloadedError` says why not."""
        rows = [{"user_id": user, "item_id": item, "time": time} for user, item, time in events]
        for last in (*[False] * (TRIES - 1), True):
            with _as_overload(last), self._engine.begin() as connection:
                connection.execute(self._insert, rows)
                break

    def histories(self, users: Iterable[str], length: int) -> list[list[str]]:
        """Items of each user in time order, the last `length`; an empty list where nothing is known of one."""
        latest = sa.select(_events.c.item_id).order_by(_events.c.time.desc(), _events.c.seq.desc()).limit(length)
        with _as_overload(True), self._engine.connect() as connection:
            return [
                [*connection.scalars(latest.where(_events.c.user_id == sa.bindparam("user")), {"user": user})][::-1]
                for user in users
            ]

    def close(self) -> None:
        self._engine.dispose()


def _url(place: str) -> sa.URL:
    if "://" not in place:
        if not Path(place).absolute().parent.is_dir():
            raise InputError(f"--store: {place}: no such folder; make it, or name another file")
        return sa.URL.create("sqlite", database=place)
    kind = place.partition("://")[0]
    if kind not in ("postgresql", "postgres"):
        raise InputError(f"--store: found {kind}://, expected the path of a file or postgresql://user@host/name")
    try:
        return sa.make_url(place).set(drivername="postgresql+psycopg")
    except (exc.ArgumentError, ValueError) as error:
        raise InputError("--store: no address of a database; expected postgresql://user@host/name") from error


def _set_up_sqlite(connection: Any, _: Any) -> None:
    """Make what is committed outlast a power cut, and let workers read while one writes."""
    for pragma in (f"busy_timeout={LOCK_SECONDS * 1000}", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


@contextlib.contextmanager
def _as_overload(last: bool) -> Iterator[None]:
    """Turn an error that another try may mend into an `OverloadedError` on the `last` try; pass over it before.

    That a transaction may have been committed before its connection broke does no harm: events are kept once.
    """
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        if last:
            raise OverloadedError(f"the store does not answer ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())[:200]
