"""A migration beside people at work: nobody waits behind it for long, and one that is killed leaves what was there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL

from pgqueue import SchemaError, migrate
from tests.helpers import eventually
from tests.migrate.pictures import picture

# The promise is one second. A machine on which a timer of half a second fires so late is not one to test on.
TOO_LONG = "5s"


class Writer:
    """Enqueues, reads and commits without a pause; the server ends a statement that waits too long for a lock."""

    def __init__(self, url: str) -> None:
        self.commits = 0
        self.longest = 0.0  # seconds that one of them took
        self.error: BaseException | None = None
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        try:
            with psycopg.connect(self._url) as connection:
                connection.execute(SQL("set lock_timeout = {}").format(TOO_LONG))
                connection.commit()
                while not self._stop.is_set():
                    began = time.monotonic()
                    connection.execute("select pgqueue.enqueue('t')")
                    connection.execute("select count(*) from pgqueue.workers").fetchone()
                    connection.commit()
                    self.commits += 1
                    self.longest = max(self.longest, time.monotonic() - began)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def gets_on(self) -> None:
        """Returns when it has committed twice more: a commit may have been under way."""
        before = self.commits
        eventually(lambda: self.error or self.commits > before + 1)
        assert self.error is None, self.error


@contextmanager
def reader(url: str, table: str = "jobs") -> Iterator[psycopg.Connection[Any]]:
    """Somebody's report: it has read the table, and its transaction stays open."""
    with psycopg.connect(url) as connection:
        connection.execute(SQL("select count(*) from pgqueue.{}").format(psycopg.sql.Identifier(table)))
        yield connection
        connection.rollback()


@pytest.mark.parametrize(("start", "way"), [("head", "0001"), ("0001", "head")], ids=["down", "up"])
def test_who_works_while_a_migration_cannot_get_its_locks_goes_on_working(
    pgqueue_database: str, monkeypatch: pytest.MonkeyPatch, start: str, way: str
) -> None:
    """DROP INDEX waits for whoever has read the table, CREATE INDEX for whoever has written: and everybody else behind
    them, as long as they wait."""
    migrate.to(pgqueue_database, "pgqueue", start)
    tries: list[int] = []
    with reader(pgqueue_database) as open_one, Writer(pgqueue_database) as writer:
        if start == "0001":
            open_one.execute("insert into pgqueue.jobs (task) values ('t')")

        def pause(tried: int) -> None:
            """Called when everything was given back. The open transaction ends after the third time."""
            tries.append(tried)
            writer.gets_on()
            if tried == 3:
                open_one.rollback()

        monkeypatch.setattr(migrate, "_pause", pause)
        migrate.to(pgqueue_database, "pgqueue", way)
        writer.gets_on()
    assert tries[:3] == [1, 2, 3]
    assert writer.error is None
    assert migrate.current(pgqueue_database) == (migrate.head() if way == "head" else way)


def test_the_statements_of_a_migration_share_the_time_for_which_others_wait(
    pgqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several tables in use: what the first statements locked is not held while each of the others waits anew."""
    monkeypatch.setattr(migrate, "_pause", lambda tried: None)
    monkeypatch.setattr(migrate, "PATIENCE", 0.0)
    seen: list[int] = []
    execute = psycopg.Cursor.execute

    def note(self: Any, query: Any, *rest: Any, **more: Any) -> Any:
        if found := re.match(r"SELECT set_config\('lock_timeout', '(\d+)', true\)", str(query)):
            seen.append(int(found[1]))
        return execute(self, query, *rest, **more)

    monkeypatch.setattr(psycopg.Cursor, "execute", note)
    for act in (migrate.downgrade, migrate.upgrade):
        seen.clear()
        act(pgqueue_database)
        assert seen[0] == migrate.LOCK_BOUND * 1000
        assert seen == sorted(seen, reverse=True)
        assert len(seen) > 10
        assert seen[-1] < seen[0]


def test_a_table_that_stays_in_use_is_told_in_one_line_and_nothing_has_changed(
    pgqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_BOUND", 0.02)
    monkeypatch.setattr(migrate, "PATIENCE", 0.0)
    with psycopg.connect(pgqueue_database, autocommit=True) as eyes, reader(pgqueue_database):
        before = picture(eyes)
        with pytest.raises(
            SchemaError, match="changed nothing: somebody's transaction has been holding pgqueue's tables"
        ):
            migrate.to(pgqueue_database, "pgqueue", "0001")
        assert picture(eyes) == before


def test_the_longest_enqueue_during_the_whole_way_over_many_jobs_is_within_the_budget(
    pgqueue_database: str, record_property: Callable[[str, object], None]
) -> None:
    """All revisions are one transaction, so what the first of them locks is held until the last has ended: measured,
    0.7 s over 200,000 jobs with unique keys, 1.0 s over 1,000,000."""
    migrate.to(pgqueue_database, "pgqueue", "0001")
    with psycopg.connect(pgqueue_database, autocommit=True) as eyes:
        eyes.execute(
            "insert into pgqueue.jobs (task, args, unique_key) "
            "select 't', jsonb_build_object('n', n), 'key ' || n from generate_series(1, 200000) n"
        )
    with Writer(pgqueue_database) as writer:
        writer.gets_on()
        migrate.upgrade(pgqueue_database)
        writer.gets_on()
    record_property("longest enqueue", f"{writer.longest:.2f} s")
    assert writer.error is None  # one of more than TOO_LONG would be
    assert migrate.current(pgqueue_database) == migrate.head()


def test_a_statement_that_would_take_too_long_is_given_up_and_says_how_to_run_it(
    pgqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index over so many jobs that whoever enqueues would wait for more than a second."""
    migrate.to(pgqueue_database, "pgqueue", "0001")
    with psycopg.connect(pgqueue_database, autocommit=True) as eyes:
        eyes.execute("insert into pgqueue.jobs (task) select 't' from generate_series(1, 50000)")
        before = picture(eyes)
        monkeypatch.setattr(migrate, "LONGEST", 0.001)
        with pytest.raises(SchemaError, match=r"changed nothing: a statement took longer .* FROM:TO --sql"):
            migrate.upgrade(pgqueue_database)
        assert picture(eyes) == before
        monkeypatch.undo()
        eyes.execute(migrate.script(revision="0001:head"))
    assert migrate.current(pgqueue_database) == migrate.head()


def test_a_migrator_that_is_killed_midway_leaves_the_old_schema_as_it_was(pgqueue_database: str) -> None:
    waits = (
        "select pid from pg_stat_activity join pg_locks using (pid) where datname = current_database() "
        "and application_name = 'pgqueue migrate' and not granted and relation = 'pgqueue.dead_jobs'::regclass"
    )
    here = "select 1 from pg_stat_activity where datname = current_database() and application_name = 'pgqueue migrate'"
    with psycopg.connect(pgqueue_database, autocommit=True) as eyes:
        before = picture(eyes)
        with reader(pgqueue_database, "dead_jobs"):
            # It has dropped the functions, the views and three tables when it comes to dead_jobs.
            migrator = subprocess.Popen(
                [sys.executable, "-m", "pgqueue", "migrate", "base"],
                env={**os.environ, "PGQUEUE_DATABASE_URL": pgqueue_database},
            )
            try:
                eventually(lambda: eyes.execute(waits).fetchall(), interval=0.002, timeout=30)
            finally:
                migrator.send_signal(signal.SIGKILL)
                migrator.wait()
            eventually(lambda: not eyes.execute(here).fetchall())
            assert picture(eyes) == before
            assert migrate.check(pgqueue_database).differences == []
            assert eyes.execute("select pgqueue.enqueue('t') > 0").fetchone() == (True,)
    migrate.downgrade(pgqueue_database)
    migrate.upgrade(pgqueue_database)
