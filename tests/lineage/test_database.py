"""The database under the index: migrated when it is opened, shared by several processes, on SQLite and PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from adapterline.errors import MachineError
from adapterline.lineage import Index
from adapterline.lineage.answers import VersionFilter
from adapterline.lineage.database import Database
from adapterline.lineage.tables import HEAD, metadata
from adapterline.settings import Settings
from adapterline.values import Package
from tests.lineage.recorded import export, record_of
from tests.servers import postgresql

ROOT = Path(__file__).parent.parent.parent
_WRITER = """
import sys
from adapterline.lineage import Index
from adapterline.values import LineageRecord
for line in sys.stdin:
    assert Index(sys.argv[1]).add(LineageRecord.model_validate_json(line))
"""


def test_the_migrations_make_the_tables(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'index'}").reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "adapterline/lineage/migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_an_index_of_the_first_tables_is_brought_up_to_date(
    records: Path, tmp_path: Path, make: Callable[..., Package]
) -> None:
    index = Index()
    index.add(record_of(make(1)))
    index.add(record_of(None, day=2, outcome="failed", error="No.", error_type="MachineError"))
    found = index.show("tiny")
    engine = create_engine(Settings().index)
    with engine.begin() as connection:
        for table in ("drifts", "searches", "sweeps"):
            connection.execute(text(f"DROP TABLE {table}"))
        for name in ("records_by_end", "versions_by_outcome"):
            connection.execute(text(f"DROP INDEX {name}"))
        connection.execute(text("ALTER TABLE records DROP COLUMN error_type"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    engine.dispose()
    assert Index().show("tiny") == found
    assert Index().versions(VersionFilter(search="TINY")).total == 1
    assert Index().versions(VersionFilter(search="tinier")).total == 0
    with Database(Settings().index).reading() as connection:
        told = connection.execute(text("SELECT error_type FROM records ORDER BY id")).scalars().all()
    assert told == [None, "MachineError"]


def test_an_index_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'index'}"
    assert Index(url).counts().versions == 0
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    with pytest.raises(MachineError, match="another version of adapterline"):
        Index(url).counts()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "later"
    engine.dispose()


def test_the_same_record_twice_is_one(records: Path, tmp_path: Path, make: Callable[..., Package]) -> None:
    record = export(make(1), str(tmp_path / "published"))
    before = Index().show("tiny")
    assert Index().add(record) is False
    assert Index().show("tiny") == before
    assert Index().runs().total == 1


def test_the_order_of_arrival_makes_no_difference(tmp_path: Path, make: Callable[..., Package]) -> None:
    """Two runs made the same bundle, with manifests that differ: the earlier one's counts."""
    written = [record_of(make(1, tool=str(day)), day=day) for day in (1, 2, 3)]
    answers = []
    for number, order in enumerate([(0, 1, 2), (2, 1, 0), (1, 2, 0)]):
        index = Index(f"sqlite:///{tmp_path / f'index-{number}'}")
        for each in order:
            index.add(written[each])
        answers.append(index.show("tiny"))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0].manifest == written[0].manifest


def test_processes_write_a_new_index_at_once(tmp_path: Path, make: Callable[..., Package]) -> None:
    _write_at_once(f"sqlite:///{tmp_path / 'new' / 'index'}", make)


def _write_at_once(url: str, make: Callable[..., Package], writers: int = 3, each: int = 8) -> None:
    """Processes that all begin before there is a table, and all tell of the same version."""
    package = make(1)
    processes = []
    for writer in range(writers):
        given = [record_of(package, day=writer * each + number + 1) for number in range(each)]
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, url], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append((process, "".join(f"{record.model_dump_json()}\n" for record in given)))
    for process, given in processes:
        assert process.stdin is not None
        process.stdin.write(given)
        process.stdin.close()
    for process, _ in processes:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
        assert process.stderr is not None
        process.stderr.close()
    counts = Index(url).counts()
    assert (counts.runs, counts.versions) == (writers * each, 1)


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of an empty database of a real server."""
    with postgresql() as database:
        yield f"postgresql://{database}"


@pytest.mark.slow
def test_postgres_migrates_once_for_several_writers(postgres: str, make: Callable[..., Package]) -> None:
    _write_at_once(postgres, make)
    with Database(postgres).reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, metadata) == []


@pytest.mark.slow
def test_postgres_answers_what_sqlite_answers(
    postgres: str, records: Path, tmp_path: Path, make: Callable[..., Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "published")
    for day, package in enumerate((make(1), make(2), make(3, name="other")), 1):
        export(package, place, day=day)
    sqlite, other = Index(), Index(postgres)
    assert other.reindex() == sqlite.reindex()
    assert other.versions() == sqlite.versions()
    assert other.versions(sort="finished") == sqlite.versions(sort="finished")
    assert other.runs() == sqlite.runs()
    assert other.counts() == sqlite.counts()
    assert other.choices() == sqlite.choices()
    assert other.failures() == sqlite.failures()
    version = sqlite.versions().versions[0]
    for digits in (version.digest, version.source_digest[:8]):
        assert other.digests(digits) == sqlite.digests(digits)
    run = sqlite.runs().runs[0].id
    assert other.run(run) == sqlite.run(run)
    for what in ("tiny", "other@latest"):
        assert other.show(what) == sqlite.show(what)
