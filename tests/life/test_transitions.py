"""The state machine: every verb in every state, and long random lives beside a model of a hundred lines."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pgqueue import PgQueue, State, db
from pgqueue.drivers import Steps
from pgqueue.enqueue import NewJob, Options
from pgqueue.job import TRANSITIONS
from pgqueue.sql import Statements, statements
from tests.helpers import job_in, run
from tests.life.workbench import ended, everything

Look = psycopg.Connection[Any]

# -- every verb in every state --------------------------------------------------------------------------------------

NO_STATEMENT_YET = {"block", "unblock"}  # concurrency keys, ordering keys and dependencies are to come


def _claim(sql: Statements, owner: UUID, job: int, fence: int) -> Steps[Any]:
    row = {"host": "h", "pid": 1, "queues": None, "tasks": [], "concurrency": 1, "version": "test"}
    yield from db.register(sql, worker := uuid4(), lease=60, **row)
    return (yield from db.claim(sql, worker, ["test.task"], None, 100))


def _cancel(sql: Statements, owner: UUID, job: int, fence: int) -> Steps[Any]:
    """By whoever is in charge: an operator while nobody runs the job, its worker while it does."""
    yield from db.cancel(sql, [job], "no")
    yield from db.cancel_running(sql, owner, [job], [fence], ["no"])


def _expire(sql: Statements, owner: UUID, job: int, fence: int) -> Steps[Any]:
    return db.expire(sql, 100, datetime.now(UTC) + timedelta(days=1))


# The verb, tried with the owner and the fence that the job has or had last: only its state can be in the way.
VERBS: dict[str, Callable[[Statements, UUID, int, int], Steps[Any]]] = {
    "claim": _claim,
    "complete": lambda sql, owner, job, fence: db.complete(sql, owner, [job], [fence], [None]),
    "retry": lambda sql, owner, job, fence: db.retry(sql, owner, [job], [fence], [0.0], ["no"], [None]),
    "snooze": lambda sql, owner, job, fence: db.give_back(sql, owner, [job], [fence], [0.0]),
    "release": lambda sql, owner, job, fence: db.give_back(sql, owner, [job], [fence], [None]),
    "hinder": lambda sql, owner, job, fence: db.hinder(
        sql, owner, [job], [fence], [0.0], ["no"], [None], most=1, longest=60.0
    ),
    "rescue": lambda sql, owner, job, fence: db.rescue(sql, [owner], crashed=False, why="gone", max_crashes=3),
    "dead_letter": lambda sql, owner, job, fence: db.dead_letter(sql, owner, [job], [fence], ["never"], ["no"], [None]),
    "cancel": _cancel,
    "expire": _expire,
    "redrive": lambda sql, owner, job, fence: db.redrive(sql, [job]),
}


def test_every_verb_of_the_table_has_a_statement_here_or_is_to_come() -> None:
    assert set(VERBS) | NO_STATEMENT_YET == set(TRANSITIONS)
    assert not set(VERBS) & NO_STATEMENT_YET


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_leads_where_the_table_says_and_nowhere_else(
    verb: str, state: State, app: PgQueue, connection: Look
) -> None:
    job = job_in(app, connection, state)
    connection.execute("update pgqueue.jobs set expires_at = run_at + interval '1 hour'")
    before, stored = ended(connection, job), everything(connection)
    assert before.state == state
    run(connection, VERBS[verb](app.statements, before.worker_id or uuid4(), job, before.fence))
    allowed, target = TRANSITIONS[verb]
    if state in allowed:
        after = ended(connection, job)
        assert (after.state, after.id, after.task, after.created_at) == (target, job, before.task, before.created_at)
        assert after.fence == before.fence + (verb == "claim")
        if target is State.QUEUED:
            assert after.worker_id is None
        elif state is State.RUNNING:
            assert after.worker_id == before.worker_id  # who ran it last
    else:
        assert everything(connection) == stored


def test_a_rescue_with_its_crashes_used_up_takes_the_dead_letter_edge(app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, "running")
    owner = [ended(connection, job).worker_id]
    run(connection, db.rescue(app.statements, owner, crashed=True, why="killed", max_crashes=1))
    assert (ended(connection, job).state, ended(connection, job).reason) == (TRANSITIONS["dead_letter"][1], "crashed")


def test_all_jobs_shows_each_job_in_exactly_one_place(app: PgQueue, connection: Look) -> None:
    jobs = {state: job_in(app, connection, state, task=f"{state}.task") for state in State}
    rows = connection.execute("select id, state, task from pgqueue.all_jobs order by id").fetchall()
    assert rows == [(job, state, f"{state}.task") for state, job in jobs.items()]
    assert [found.id for found in app.jobs.list(limit=100)] == sorted(jobs.values(), reverse=True)
    for state, job in jobs.items():
        assert app.jobs.get(job).state is state
        assert [found.id for found in app.jobs.list(state=state)] == [job]


# -- long lives beside a model --------------------------------------------------------------------------------------

START = datetime.now(UTC).replace(microsecond=0)
LEASE = 3600.0
MAX_CRASHES = 3


class Model:
    """What a job's row must say, in Python: by id, and only what a statement may change."""

    def __init__(self) -> None:
        self.jobs: dict[int, dict[str, Any]] = {}

    def add(self, job: int, **columns: Any) -> None:
        new = {"state": "queued", "attempt": 0, "fence": 0, "crashes": 0, "owner": None, "errors": 0, "asked": False}
        self.jobs[job] = new | columns

    def within(self, *states: str) -> list[int]:
        return [job for job, row in self.jobs.items() if row["state"] in states]

    def due(self, now: datetime, *, suspects: bool = False) -> list[int]:
        """Which a claim takes, in its order; jobs under which a process died are for a claim of their own."""
        rows = [
            (row["crashes"], -row["priority"], row["run_at"], job)
            for job, row in self.jobs.items()
            if row["state"] == "queued" and (row["crashes"] > 0) is suspects
        ]
        late = {job for job, row in self.jobs.items() if row["expires_at"] is not None and row["expires_at"] <= now}
        return [job for _, _, run_at, job in sorted(rows) if run_at <= now and job not in late]

    def holds(self, job: int, owner: UUID, fence: int) -> bool:
        row = self.jobs[job]
        return (row["state"], row["owner"], row["fence"]) == ("running", owner, fence)

    def back(self, job: int, **columns: Any) -> None:
        self.jobs[job] |= {"state": "queued", "owner": None} | columns

    def end(self, job: int, state: str, **columns: Any) -> None:
        self.jobs[job] |= {"state": state} | columns


class Lives(RuleBasedStateMachine):
    """Two workers, one operator and one clock; after each step the tables must say what the model says."""

    sql = statements("pgqueue")
    connection: Look
    jobs = st.integers(0, 11)  # which of the candidates, modulo their number
    seconds = st.sampled_from([0.0, 1.0, 60.0])

    def __init__(self) -> None:
        super().__init__()
        self.connection.execute("truncate pgqueue.jobs, pgqueue.job_errors, pgqueue.finished_jobs, pgqueue.dead_jobs")
        self.model, self.now, self.claims = Model(), START, list[tuple[int, UUID, int]]()
        self.workers = [uuid4(), uuid4()]

    def run(self, steps: Steps[Any]) -> Any:
        return run(self.connection, steps)

    @rule(seconds=seconds)
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds + 0.5)

    @rule(priority=st.sampled_from([0, 0, 5]), delay=seconds, expires_in=st.sampled_from([None, None, 30.0]))
    def enqueue(self, priority: int, delay: float, expires_in: float | None) -> None:
        new = NewJob("t", "{}", Options(priority=priority))
        (job, *_), _ = self.run(db.enqueue(self.sql, new.columns()))
        run_at = self.now + timedelta(seconds=delay)
        expires_at = None if expires_in is None else run_at + timedelta(seconds=expires_in)
        # enqueue takes no clock but the server's
        self.connection.execute(
            "update pgqueue.jobs set run_at = %s, expires_at = %s where id = %s", [run_at, expires_at, job]
        )
        self.model.add(job, priority=priority, run_at=run_at, expires_at=expires_at)

    @rule(worker=st.integers(0, 1), limit=st.integers(1, 3))
    def claim(self, worker: int, limit: int) -> None:
        owner = self.workers[worker]
        row = {"host": "h", "pid": 1, "queues": None, "tasks": [], "concurrency": 1, "version": "test"}
        if not self.run(db.heartbeat(self.sql, [owner], LEASE, now=self.now)):
            self.run(db.register(self.sql, owner, lease=LEASE, now=self.now, **row))
        claims = self.run(db.claim(self.sql, owner, ["t"], None, limit, now=self.now))
        assert [claim.id for claim in claims] == self.model.due(self.now)[:limit]
        suspects = self.model.due(self.now, suspects=True)
        assert self.run(db.suspects(self.sql, ["t"], None, 100, now=self.now)) == len(suspects)
        if not claims:
            claims = self.run(db.claim_suspect(self.sql, owner, ["t"], None, now=self.now))
            assert [claim.id for claim in claims] == suspects[:1]
        for claim in claims:
            known = self.model.jobs[claim.id]
            known |= {"state": "running", "owner": owner, "fence": known["fence"] + 1, "attempt": known["attempt"] + 1}
            assert (claim.fence, claim.attempt) == (known["fence"], known["attempt"])
            self.claims.append((claim.id, owner, claim.fence))

    @precondition(lambda self: self.claims)
    @rule(
        which=jobs,
        verb=st.sampled_from(["complete", "retry", "snooze", "release", "hinder", "dead_letter", "cancel"]),
        delay=seconds,
    )
    def settle(self, which: int, verb: str, delay: float) -> None:
        """With a claim that is held or was held once: a late finish changes nothing."""
        job, owner, fence = self.claims[which % len(self.claims)]
        mine: tuple[Any, ...] = (self.sql, owner, [job], [fence])
        held, row = self.model.holds(job, owner, fence), self.model.jobs[job]
        later = self.now + timedelta(seconds=delay)
        match verb:
            case "complete":
                done = self.run(db.complete(*mine, ["1"], self.now))
                change: tuple[Any, ...] = ("completed", {})
            case "retry":
                done = self.run(db.retry(*mine, [delay], ["no"], [None], self.now))
                change = ("queued", {"run_at": later, "errors": row["errors"] + 1, "crashes": 0})
            case "snooze":
                done = self.run(db.give_back(*mine, [delay], self.now))
                change = ("queued", {"run_at": later, "attempt": row["attempt"] - 1, "crashes": 0})
            case "release":
                done = self.run(db.give_back(*mine, [None], self.now))
                change = ("queued", {"attempt": row["attempt"] - 1})
            case "hinder":
                most, errors = {"most": 2, "longest": 3.0}, row["errors"]
                answer = self.run(db.hinder(*mine, [delay], ["no"], [None], **most, now=self.now))
                # What it has behind it beyond its used attempts: returns like this one, and crashes.
                times = errors - row["attempt"] + 1
                done = set(answer)
                assert set(answer.values()) <= {times < 2}
                later = self.now + timedelta(seconds=min(3.0, delay * 2 ** max(times, 0)))
                change = ("queued", {"run_at": later, "attempt": row["attempt"] - 1, "errors": errors + 1})
                if held and not row["asked"] and times >= 2:
                    assert done == {job}
                    return  # it stays ours
            case "dead_letter":
                done = self.run(db.dead_letter(*mine, ["never"], ["no"], [None], self.now))
                change = ("dead", {"errors": row["errors"] + 1})
            case _:
                done = self.run(db.cancel_running(*mine, ["no"], self.now))
                change = ("cancelled", {})
        if held and row["asked"] and verb not in ("complete", "cancel"):  # a late failure does not revive it
            assert done == set()
            done = {one.id for one in self.run(db.cancel_asked(*mine, self.now))}
            change = ("cancelled", {})
        assert done == ({job} if held else set())
        if held and change[0] == "queued":
            self.model.back(job, **change[1])
        elif held:
            self.model.end(job, change[0], **change[1])

    @rule(worker=st.integers(0, 1), crashed=st.booleans())
    def a_worker_dies(self, worker: int, crashed: bool) -> None:
        owner = self.workers[worker]
        self.run(db.leave(self.sql, [owner]))
        lost = [job for job in self.model.within("running") if self.model.jobs[job]["owner"] == owner]
        steps = db.rescue(self.sql, [owner], crashed=crashed, why="x", max_crashes=MAX_CRASHES, now=self.now)
        rescued = self.run(steps)
        assert sorted(job.id for job in rescued) == sorted(lost)
        assert {job.id for job in rescued if job.cancelled} == {job for job in lost if self.model.jobs[job]["asked"]}
        for job in lost:
            row = self.model.jobs[job]
            if row["asked"]:
                self.model.end(job, "cancelled")
                continue
            crashes, errors = row["crashes"] + crashed, row["errors"] + crashed
            if crashed and crashes >= MAX_CRASHES:
                self.model.end(job, "dead", crashes=crashes, errors=errors)
            else:
                self.model.back(job, crashes=crashes, errors=errors, attempt=row["attempt"] - 1)

    @precondition(lambda self: self.model.jobs)
    @rule(which=jobs)
    def cancel(self, which: int) -> None:
        job = sorted(self.model.jobs)[which % len(self.model.jobs)]
        row = self.model.jobs[job]
        runs = row["state"] == "running"
        expected = [(job, None if runs else "no")] if row["state"] == "queued" or (runs and not row["asked"]) else []
        done = self.run(db.cancel(self.sql, [job], "no", self.now))
        assert [(one.id, one.why) for one in done] == expected
        if runs:
            row["asked"] = True
        elif expected:
            self.model.end(job, "cancelled")

    @precondition(lambda self: self.model.jobs)
    @rule(which=jobs)
    def retry_now(self, which: int) -> None:
        """No edge of the table: the job stays queued, and is due."""
        job = sorted(self.model.jobs)[which % len(self.model.jobs)]
        row = self.model.jobs[job]
        in_time = row["expires_at"] is None or row["expires_at"] > self.now
        expected = {job} if row["state"] == "queued" and row["run_at"] > self.now and in_time else set()
        assert self.run(db.retry_now(self.sql, [job], self.now)) == expected
        if expected:
            self.model.back(job, run_at=self.now)

    @precondition(lambda self: self.model.jobs)
    @rule(which=jobs, priority=st.sampled_from([None, 5, -5]), delay=st.sampled_from([0.0, 60.0]))
    def change(self, which: int, priority: int | None, delay: float) -> None:
        """No edge either: another place in the queue."""
        job = sorted(self.model.jobs)[which % len(self.model.jobs)]
        row, later = self.model.jobs[job], self.now + timedelta(seconds=delay)
        in_time = row["expires_at"] is None or row["expires_at"] > later
        expected = {job} if row["state"] == "queued" and in_time else set()
        steps = db.change(self.sql, [job], priority=priority, delay=delay, now=self.now)
        assert self.run(steps) == expected
        if expected:
            self.model.back(job, run_at=later, **({} if priority is None else {"priority": priority}))

    @rule()
    def expire(self) -> None:
        queued = [(job, self.model.jobs[job]["expires_at"]) for job in self.model.within("queued")]
        late = {job for job, expires_at in queued if expires_at is not None and expires_at <= self.now}
        assert {row[0] for row in self.run(db.expire(self.sql, 100, self.now))} == late
        for job in late:
            self.model.end(job, "expired")

    @precondition(lambda self: self.model.jobs)
    @rule(which=jobs)
    def redrive(self, which: int) -> None:
        job = sorted(self.model.jobs)[which % len(self.model.jobs)]
        expected = [job] if job in self.model.within("dead") else []
        assert [one.id for one in self.run(db.redrive(self.sql, [job], None, self.now))] == expected
        if expected:
            self.model.back(job, attempt=0, crashes=0, errors=0, run_at=self.now, expires_at=None)

    @invariant()
    def the_tables_say_what_the_model_says(self) -> None:
        rows = self.connection.execute(
            "select id, state, attempt, fence, crashes, case when state = 'running' then worker_id end, priority,"
            " run_at, expires_at, coalesce(jsonb_array_length(errors), 0) from pgqueue.all_jobs order by id"
        ).fetchall()
        names = ("state", "attempt", "fence", "crashes", "owner", "priority", "run_at", "expires_at", "errors")
        expected = []
        for job, row in sorted(self.model.jobs.items()):
            owner = row["owner"] if row["state"] == "running" else None
            expected.append((job, *({**row, "owner": owner}[name] for name in names)))
        assert rows == expected
        orphans = "select count(*) from pgqueue.job_errors where job_id not in (select id from pgqueue.jobs)"
        assert self.connection.execute(orphans).fetchone() == (0,)


def test_whatever_happens_in_whatever_order_the_tables_say_what_the_model_says(connection: Look) -> None:
    machine = type("Lives", (Lives,), {"connection": connection})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            database=None,  # leaves nothing in the tree
            suppress_health_check=list(HealthCheck),
        ),
    )
