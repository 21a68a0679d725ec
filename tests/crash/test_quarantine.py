"""Which of the jobs in a process killed it nobody can tell: so each runs alone until it has shown what it does."""

from __future__ import annotations

import os
import signal

import pytest

from pgqueue import PgQueue
from tests.crash import tasks
from tests.crash.processes import ended, is_alive, processes_with, row
from tests.helpers import eventually
from tests.life.workbench import working

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")

NEIGHBOURS = 24


def test_jobs_that_kill_their_process_are_dead_after_three_crashes_and_their_neighbours_complete(
    start, ledger, connection
):
    ways = ("segfault", "exit 0", "exit in C", "kill", "memory", "fork bomb")
    poison = {tasks.die.enqueue(connection, [way] * 4).id: way for way in ways[:3]}
    innocent = tasks.slow.enqueue_many(connection, [(0.2,)] * NEIGHBOURS)
    poison |= {tasks.die.enqueue(connection, [way] * 4).id: way for way in ways[3:]}

    worker = start(drain=True, concurrency=12, processes=2)

    assert worker.wait() == 0
    for job in poison:
        end = row(connection, job)
        assert (end.state, end.reason, end.attempt, end.crashes, end.fence) == ("dead", "crashed", 1, 3, 3)
        assert [error["attempt"] for error in end.errors] == [1, 1, 1]
        # It may have been claimed, and not started, when the first process died: the other two deaths are its own.
        runs = ledger.entries("started", job)[-2:]
        assert len({run.pid for run in runs}) == 2
        # Alone: since it was a suspect, nothing else has run in its process when it did.
        for run in runs:
            others = [one for one in ledger.entries("started") if one.pid == run.pid and one.job != job]
            assert all(ledger.entries("finished", one.job)[-1].at < run.at for one in others)
    suspected = 0
    for job in innocent:
        end = row(connection, job)
        assert (end.state, end.attempt) == ("completed", 1)
        assert end.crashes <= 1  # by the company it was in when it was not known yet
        # It may have ended a moment before its process did, and nobody was told.
        assert 1 <= len(ledger.entries("finished", job)) <= 1 + end.crashes
        suspected += end.crashes
    assert suspected
    assert {line["job_id"] for line in worker.log("job_dead_lettered")} == set(poison)
    eventually(lambda: not processes_with(ledger.path))  # what one of them has forked goes with it


def test_a_suspect_starts_in_a_process_of_its_own_that_ends_when_none_is_left(start, ledger, connection):
    job = tasks.hold_thread.enqueue(connection, "gate").id
    worker = start()
    child = ledger.wait_for("started", job).pid

    os.kill(child, signal.SIGKILL)

    again = ledger.wait_for("started", job, times=2)
    eventually(lambda: len(worker.log("worker_started")) == 3)
    restricted = [
        line["message"].endswith("only jobs under which a process died") for line in worker.log("worker_started")
    ]
    assert restricted.count(True) == 1
    fresh = tasks.quick.enqueue(connection).id
    assert ended(connection, fresh).state == "completed"
    assert ledger.wait_for("started", fresh).pid != again.pid
    ledger.open("gate")
    assert ended(connection, job)[:4] == ("completed", 1, 2, 1)
    eventually(lambda: not is_alive(again.pid))
    assert len(worker.log("child_died")) == 1


def test_a_suspect_that_nobody_is_told_of_is_found_by_a_sweep_and_drained_too(start, ledger, connection):
    cleared = tasks.fail.enqueue(connection, "fails").id
    job = tasks.quick.enqueue(connection).id
    connection.execute("update pgqueue.jobs set crashes = 2, fence = 2")  # its supervisor died after its burial

    worker = start(drain=True)

    assert worker.wait() == 0
    assert row(connection, job)[:3] == ("completed", 1, 3)
    end = row(connection, cleared)
    assert (end.state, end.reason, end.crashes) == ("dead", "attempts", 0)  # failing is no crime of that kind
    alone, freely = ledger.entries("started", cleared)
    assert freely.pid not in (alone.pid, ledger.wait_for("started", job).pid)


def test_a_terminated_connection_or_a_lapsed_lease_makes_no_suspect(start, ledger, connection):
    job = tasks.hold_slot.enqueue(connection, "gate").id
    first = start(lease=2)
    child = ledger.wait_for("started", job).pid
    terminate = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    for _ in range(3):
        assert connection.execute(terminate).fetchone() != (0,)
        eventually(lambda: connection.execute(terminate.replace("pg_terminate_backend", "")).fetchone()[0] >= 4)
    assert row(connection, job)[:4] == ("running", 1, 1, 0)
    os.kill(child, signal.SIGSTOP)
    again = ledger.wait_for("started", job, times=2)
    assert row(connection, job)[:4] == ("running", 1, 2, 0)
    first.signal(signal.SIGKILL)
    eventually(lambda: not is_alive(again.pid))
    start()
    ledger.wait_for("started", job, times=3)
    ledger.open("gate")
    assert ended(connection, job)[:4] == ("completed", 1, 3, 0)


def test_a_worker_without_a_supervisor_runs_a_suspect_when_nothing_else_runs(app: PgQueue, connection) -> None:
    running: list[int] = []
    beside: list[list[int]] = []

    @app.task(name="test.look")
    async def look(number: int) -> None:
        import asyncio

        running.append(number)
        beside.append(list(running))
        await asyncio.sleep(0.02)
        running.remove(number)

    suspects = [look.delay(number).id for number in range(2)]
    connection.execute("update pgqueue.jobs set crashes = 1")
    others = [look.delay(number).id for number in range(2, 8)]
    with working(app, concurrency=3):
        jobs = [ended(connection, job) for job in suspects + others]
    assert {job.state for job in jobs} == {"completed"}
    assert [0] in beside
    assert [1] in beside
    assert not [seen for seen in beside if len(seen) > 1 and min(seen) < 2]
    assert max(len(seen) for seen in beside) == 3
