"""The database of the index: SQLite, or PostgreSQL by a URL; opened, migrated, its errors mapped.

Every transaction says whether it writes. In SQLite a writer takes the lock when it begins, and so waits for another one
instead of failing in the middle; readers are never kept waiting (write-ahead log).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from adapterline.errors import MachineError, UsageError, from_os_error
from adapterline.lineage.tables import HEAD

_MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_S = 30  # how long a writer waits for another one
_CONNECT_S = 5
#: Any number, as long as nobody else uses it: PostgreSQL's advisory lock of whoever migrates.
_MIGRATING = 0x61646170


class Database:
    """One index. MachineError where it cannot be reached or used; UsageError for a URL that names none."""

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        self._engine = _engine(self._url)
        self._is_current = False

    @property
    def is_sqlite(self) -> bool:
        """Is it a file?"""
        return self._url.get_backend_name() == "sqlite"

    @property
    def where(self) -> str:
        """Its URL, without the password."""
        return self._url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the index."""
        with self._errors("Reading"):
            self._migrate()
            with self._engine.connect() as connection, connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is the only one to write."""
        with self._errors("Writing"):
            self._migrate()
            with self._writer() as connection:
                yield connection

    def discard_if_damaged(self) -> bool:
        """Deletes a file that is no database of SQLite, or a damaged one: whoever calls this builds it anew."""
        if not self.is_sqlite or not self._url.database or not Path(self._url.database).exists():
            return False
        try:
            with self._engine.connect() as connection:
                sound = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() == "ok"
        except DBAPIError as error:
            if not _is_damage(error):
                raise self._mapped(error, "Reading") from error
            sound = False
        if not sound:
            self._engine.dispose()
            for suffix in ("", "-wal", "-shm", "-journal"):
                Path(f"{self._url.database}{suffix}").unlink(missing_ok=True)
        return not sound

    def close(self) -> None:
        """Its connections."""
        self._engine.dispose()

    @contextmanager
    def _writer(self) -> Iterator[Connection]:
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            if not self.is_sqlite:
                # As SQLite does it: what two writers derive from the same rows must not cross.
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
            yield connection

    def _migrate(self) -> None:
        if self._is_current:
            return
        if self.is_sqlite and self._url.database:
            folder = Path(self._url.database).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise from_os_error(error, f"Making {folder}") from error
        with self._engine.connect() as connection, connection.begin():
            found = _revision(connection)
        if found != HEAD:
            with self._writer() as connection:
                _upgrade(connection, self.where)
        self._is_current = True

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise self._mapped(error, doing) from error

    def _mapped(self, error: SQLAlchemyError, doing: str) -> MachineError:
        cause = getattr(error, "orig", None) or error
        return MachineError(
            f"{doing} the index {self.where}: {str(cause).strip().splitlines()[0][:300]}.",
            expected="a database that answers",
            remedy="Check ADAPTERLINE_INDEX. The index can be made again: adapterline lineage reindex.",
            transient=isinstance(error, DBAPIError) and not _is_damage(error),
        )


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise UsageError(
            f"The index {re.sub(r'//.*@', '//…@', url)!r} is no database that it can be kept in.",
            expected="sqlite:///path/to/file or postgresql://user@host/database",
            remedy="Correct ADAPTERLINE_INDEX.",
        )
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    file = parsed.database
    return parsed.set(
        drivername="sqlite+pysqlite",
        database=str(Path(file).expanduser().absolute()) if file and file != ":memory:" else None,
    )


def _engine(url: URL) -> Engine:
    arguments: dict[str, Any] = (
        {"timeout": BUSY_S} if url.get_backend_name() == "sqlite" else {"connect_timeout": _CONNECT_S}
    )
    try:
        # A process that writes once a run holds no connection in between, and a fork shares none.
        pool: dict[str, Any] = {"poolclass": NullPool} if url.get_backend_name() != "sqlite" or url.database else {}
        engine = create_engine(url, connect_args=arguments, **pool)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise MachineError(
            f"The index is on PostgreSQL, and its driver is not installed: {error}.",
            expected="psycopg",
            remedy="pip install 'adapterline[postgres]'",
        ) from error
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # None: sqlite3 of Python begins no transaction of its own, and in those of ours CREATE TABLE is rolled back too.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "case_sensitive_like=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _upgrade(connection: Connection, where: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if _revision(connection) == HEAD:  # another process was faster
        return
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, HEAD)
    except CommandError as error:
        raise MachineError(
            f"The index {where} was made by another version of adapterline: {error}.",
            expected=f"revision {HEAD}, or an earlier one",
            remedy="Use that version, or set ADAPTERLINE_INDEX to another database and reindex.",
        ) from error


def _is_damage(error: SQLAlchemyError) -> bool:
    cause = str(getattr(error, "orig", error))
    return "file is not a database" in cause or "malformed" in cause
