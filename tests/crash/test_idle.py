"""What a worker costs a database while there is nothing to do, and the most it takes of one while there is."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from pgqueue.embedded import EmbeddedPostgres
from pgqueue.migrate import upgrade
from pgqueue.testing import _temp_dir
from tests.crash import tasks
from tests.crash.processes import DEFAULTS, ended
from tests.helpers import eventually, in_time, whole_lines

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")

SPOKEN = re.compile(r"(\d+\.\d+) (pgqueue [a-z]+) LOG:  (?:statement|execute [^:]*): (.*)")

PROCESSES, SLOTS = 2, 3
ASKS = 8.0  # statements a second and process: about twice a poll interval for work, the rest seldom
OPEN = 1.0  # seconds
POLL = 1.0
ASLEEP = """
    select 1 from pg_stat_activity
    where application_name = 'pgqueue claim' and state = 'idle' and query like '%min(due.run_at)%'
"""  # the last thing that it asks before it waits
ROLES = "pgqueue claim", "pgqueue settle", "pgqueue listener", "pgqueue chores"
QUIET = Counter({**dict.fromkeys(ROLES, PROCESSES), "pgqueue heartbeat": 1})


class Statement(NamedTuple):
    at: float  # the server's clock, in seconds
    who: str
    text: str


class Server(EmbeddedPostgres):
    """One that writes every statement down, with the name of who sent it and the time."""

    def heard(self) -> list[Statement]:
        found = (SPOKEN.match(line) for line in whole_lines(self.log))
        return [Statement(float(one[1]), one[2], one[3]) for one in found if one]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(dir=_temp_dir(), prefix="pgqueue-") as directory:
        os.chmod(directory, 0o755)  # as root, the server runs as somebody else
        settings = {"log_statement": "all", "log_line_prefix": "%n %a "}
        kept = Server(Path(directory, "data"), fsync=False, settings=settings)
        kept.start()
        try:
            upgrade(kept.url(), schema="pgqueue")
            yield kept
        finally:
            kept.stop()


@pytest.fixture
def connection(server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.url(), autocommit=True, application_name="test") as made:
        yield made


def held(connection: psycopg.Connection) -> Counter[str]:
    """The connections of workers, by name; none of which is in a transaction that began more than a second ago."""
    found = connection.execute(
        "select application_name, pid, extract(epoch from clock_timestamp() - xact_start)::float8, query"
        " from pg_stat_activity where application_name like 'pgqueue %'"
    ).fetchall()
    assert not [one for one in found if (one[2] or 0.0) > OPEN]
    return Counter(name for name, *_ in found)


@pytest.mark.parametrize("idle", ["with nothing at all", "with jobs that it may not run"])
def test_an_idle_worker_asks_little_keeps_no_transaction_open_and_has_few_connections(
    start, ledger, server, connection, idle
):
    if idle == "with jobs that it may not run":
        connection.execute("select pgqueue.pause('paused')")
        tasks.quick.options(queue="paused").enqueue_many(connection, [()] * 100)
        tasks.quick.options(delay=3600).enqueue_many(connection, [()] * 100)
        connection.execute("select pgqueue.enqueue('nobody.knows') from generate_series(1, 100)")
    worker = start(url=server.url(), processes=PROCESSES, **DEFAULTS)
    ledger.wait_for("finished", tasks.quick.enqueue(connection).id)
    eventually(lambda: held(connection)["pgqueue listener"] == PROCESSES)

    begun = server.heard()[-1].at
    most: Counter[str] = Counter()

    def beats() -> list[float]:
        """Of the heart, every five seconds; what is held is looked at meanwhile."""
        nonlocal most
        most |= held(connection)
        return [one.at for one in server.heard() if one.at > begun and one.who == "pgqueue heartbeat"]

    first, *_, last = eventually(lambda: len(found := beats()) >= 3 and found, timeout=40, interval=0.1)
    asked = Counter(one.who for one in server.heard() if first <= one.at < last)
    assert sum(asked.values()) / (last - first) <= PROCESSES * ASKS, asked
    assert most <= QUIET, most
    assert "Traceback" not in worker.text()


@pytest.mark.parametrize("task", [tasks.transact_thread, tasks.transact_slot], ids=["in threads", "on the event loop"])
def test_a_busy_worker_has_as_many_connections_as_it_may_and_no_more(start, server, connection, task):
    connection.execute("create table if not exists effects (job_id bigint, fence int)")
    connection.execute("delete from pgqueue.jobs")  # what another test left
    jobs = task.enqueue_many(connection, [()] * 100)
    start(url=server.url(), processes=PROCESSES, **DEFAULTS | {"concurrency": SLOTS})
    left = "select count(*) from pgqueue.jobs"
    most: Counter[str] = Counter()
    while connection.execute(left).fetchone() != (0,):
        most |= held(connection)
    assert most <= QUIET + Counter({"pgqueue job": PROCESSES * SLOTS}), most
    assert most["pgqueue job"] > PROCESSES
    assert {ended(connection, job)[:2] for job in jobs} == {("completed", 1)}


def test_a_job_of_which_nobody_is_notified_starts_within_the_poll_interval_and_a_second(
    start, ledger, server, connection
):
    worker = start(url=server.url(), **DEFAULTS)
    ledger.wait_for("finished", tasks.quick.enqueue(connection).id)
    silent = tasks.quick.options(wake=False)

    def take() -> float:
        """Seconds from the commit of an enqueue to the job's start, the most of ten, each on an idle worker."""
        late = []
        for _ in range(10):
            eventually(lambda: connection.execute(ASLEEP).fetchone())
            job = silent.enqueue(connection).id
            committed = time.monotonic_ns()
            late.append((ledger.wait_for("started", job).at - committed) / 1e9)
        return max(late)

    in_time(take, POLL + 1.0)
    assert not worker.log("database_away")
