"""run_in="process": jobs with a process to themselves, which is kept, killed, or dies; and takes no other along."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import Context, InvalidOption, InvalidTask, PgQueue, RetryPolicy, Task
from pgqueue.worker.processes import ProcessRun
from tests.helpers import eventually
from tests.life.workbench import ended
from tests.worker import in_processes as tasks

Look = psycopg.Connection[Any]
AT_ONCE = RetryPolicy(delay=0)


def alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(mark: Path) -> list[int]:
    return [int(one) for one in eventually(lambda: mark.exists() and mark.read_text().split(), timeout=30)]


@pytest.fixture
def task(app: PgQueue) -> Callable[..., Task[..., Any]]:
    def make(function: Any, **options: Any) -> Any:
        return app.task(name=f"test.{function.__name__}", run_in="process", **options)(function)

    return make


@pytest.fixture
def state(connection: Look) -> Callable[[Any], str]:
    return lambda job: ended(connection, job).state


def test_jobs_run_in_processes_of_their_own_that_are_kept_and_share_nothing(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any
) -> None:
    where, where_async = task(tasks.where), task(tasks.where_async)
    tasks.HERE[:] = [1, 2, 3]  # spawned, not forked: they do not see it
    work(concurrency=1)
    jobs = [where.enqueue(connection, n).id for n in range(4)]
    jobs.append(where_async.options(tags=["a"]).enqueue(connection).id)
    eventually(lambda: {state(job) for job in jobs} == {"completed"}, timeout=30)
    *results, last = [ended(connection, job).result for job in jobs]
    assert [one["n"] for one in results] == [0, 1, 2, 3]
    assert [one["seen"] for one in results] == [1, 2, 3, 4]  # the process is kept
    assert len({one["pid"] for one in [*results, last]}) == 1
    assert {one["parent"] for one in results} == {os.getpid()}
    assert (last["job"], last["attempt"], last["tags"]) == (jobs[-1], 1, ["a"])
    tasks.HERE.clear()


def test_as_many_at_once_as_there_are_slots_and_none_is_left_when_the_worker_stops(
    app: PgQueue, connection: Look, work: Any, task: Any, tmp_path: Path
) -> None:
    spin = task(tasks.spin)
    worker = work(concurrency=3, grace=0.1)
    marks = [tmp_path / str(n) for n in range(3)]
    jobs = [spin.enqueue(connection, str(mark)).id for mark in marks]
    found = [pid for mark in marks for pid in pids(mark)]
    assert len(set(found)) == 6
    worker.stop()
    eventually(lambda: not any(map(alive, found)), timeout=30)
    eventually(lambda: [ended(connection, job).attempt for job in jobs] == [0, 0, 0], timeout=30)  # released


@pytest.mark.parametrize("kind", ["odd", "nested", "exit"])
def test_an_error_comes_back_as_text_and_is_judged_by_its_class(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, kind: str
) -> None:
    policy = RetryPolicy(delay=0, on=(tasks.Odd, KeyError, SystemExit), never=())
    asked: list[BaseException] = []
    fail = task(tasks.fail, retry=policy, max_attempts=2)
    work()
    job = fail.enqueue(connection, kind).id
    eventually(lambda: state(job) == "dead", timeout=30)
    row = ended(connection, job)
    said = {"odd": "tests.worker.in_processes.Odd: it is odd (7)", "nested": "Hidden: 'no'", "exit": "SystemExit: 3"}
    assert (row.reason, row.attempt) == ("attempts", 2)
    assert row.error.endswith(said[kind])
    assert "in_processes.py" in row.errors[0]["traceback"]
    assert "pgqueue/worker" not in row.errors[0]["traceback"]
    assert not asked


def test_an_error_that_the_policy_never_retries_is_dead_at_once(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any
) -> None:
    fail = task(tasks.fail, retry=RetryPolicy(delay=0, never=(tasks.Odd,)))
    work()
    job = fail.enqueue(connection, "odd").id
    eventually(lambda: state(job) == "dead", timeout=30)
    assert (ended(connection, job).reason, ended(connection, job).attempt) == ("never", 1)


def test_a_job_steers_itself_and_its_odd_results_leave_a_marker(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any
) -> None:
    fail, odd = task(tasks.fail), task(tasks.odd_result)
    work(concurrency=1)
    ends = {"cancel": "cancelled", "dead letter": "dead", "snooze": "queued", "retry later": "queued"}
    jobs = {kind: fail.enqueue(connection, kind).id for kind in ends}
    results = [odd.enqueue(connection, kind).id for kind in ("unserializable", "large")]
    eventually(lambda: {state(job) for job in results} == {"completed"}, timeout=30)
    eventually(lambda: {kind: state(job) for kind, job in jobs.items()} == ends)
    assert ended(connection, jobs["cancel"]).error == "of its own"
    assert [ended(connection, jobs[kind]).attempt for kind in ("snooze", "retry later")] == [0, 1]
    assert all(ended(connection, job).result["$pgqueue"] == "result dropped" for job in results)


def test_what_a_job_logs_arrives_at_the_workers_handlers(
    app: PgQueue, connection: Look, work: Any, task: Any, logged: Any, caplog: pytest.LogCaptureFixture
) -> None:
    where_async, shout = task(tasks.where_async), task(tasks.shout)
    work(concurrency=1)
    job = where_async.enqueue(connection).id
    shout.enqueue(connection, "50% done")
    eventually(lambda: logged("inside"), timeout=30)
    (line,) = logged("inside")
    assert (line.getMessage(), line.job_id, line.levelname) == ("from inside", job, "WARNING")
    eventually(lambda: [one for one in caplog.records if one.name == "shop" and one.getMessage() == "50% done"])


def test_how_far_it_is_is_seen_while_it_runs_and_its_last_word_after(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, tmp_path: Path
) -> None:
    halfway = task(tasks.halfway)
    work()
    job = halfway.enqueue(connection, str(tmp_path / "mark")).id
    said = eventually(lambda: app.jobs.progress(job), timeout=30)
    assert (said.fraction, said.note, said.attempt, state(job)) == (0.5, "half of it", 1, "running")
    app.jobs.cancel(job)
    eventually(lambda: state(job) == "cancelled", timeout=30)
    said = app.jobs.progress(job)
    assert (said.fraction, said.note) == (0.75, "told")


def test_a_job_that_was_taken_from_it_is_told_when_it_says_how_far_it_is(
    app: PgQueue, connection: Look, work: Any, task: Any, tmp_path: Path, logged: Any
) -> None:
    halfway = task(tasks.halfway)
    work()
    job = halfway.enqueue(connection, str(tmp_path / "mark")).id
    eventually(lambda: app.jobs.progress(job), timeout=30)
    connection.execute("update pgqueue.jobs set worker_id = null, state = 'queued', run_at = now() + interval '1 day'")
    eventually((tmp_path / "mark").exists, timeout=30)
    eventually(lambda: logged("claim_lost"))
    assert (ended(connection, job).state, app.jobs.progress(job).note) == ("queued", "half of it")


@pytest.mark.parametrize("end", ["returns", "transaction", "dies"])
def test_what_it_says_in_its_log_is_kept_while_it_runs_and_at_its_end(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, tmp_path: Path, end: str
) -> None:
    talk, quiet = task(tasks.talk, keep_log=True), task(tasks.where_async)
    work()
    job, other = talk.enqueue(connection, str(tmp_path / "mark"), end).id, quiet.enqueue(connection).id
    (line,) = eventually(lambda: app.jobs.log(job), timeout=30)
    assert (line.attempt, line.level, line.message, state(job)) == (1, "INFO", "begins in a process", "running")
    if end == "dies":  # it takes its last second along, and no more
        connection.execute("update pgqueue.jobs set crashes = 2 where id = %s", [job])
    (tmp_path / "mark").touch()
    eventually(lambda: state(job) in ("completed", "dead", "queued"), timeout=30)
    lines = [one.message for one in app.jobs.log(job, attempt=1)]
    inside = ["inside"] if end == "transaction" else []
    if end != "dies":
        eventually(lambda: len(app.jobs.log(job)) == 1_001)
        lines = [one.message for one in app.jobs.log(job)]
        warnings = [rf"line {number} \ud800" for number in range(999 - len(inside))]
        assert lines == ["begins in a process", *inside, *warnings, f"{201 + len(inside)} more dropped"]
    assert lines[0] == "begins in a process"
    eventually(lambda: state(other) == "completed", timeout=30)
    assert app.jobs.log(other) == []


# -- the end of a process ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "exits"])
def test_a_death_is_a_crash_of_that_job_alone_and_the_third_one_dead_letters_it(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, tmp_path: Path, logged: Any, how: str
) -> None:
    die, obedient = task(tasks.die), task(tasks.obedient)
    work(concurrency=2, grace=0.1)
    neighbour = obedient.enqueue(connection, str(tmp_path / "mark")).id
    (pid,) = pids(tmp_path / "mark")
    job = die.enqueue(connection, how).id
    eventually(lambda: ended(connection, job).crashes == 1 and state(job) == "queued", timeout=30)
    assert ended(connection, job).attempt == 0
    assert (state(neighbour), ended(connection, neighbour).crashes, alive(pid)) == ("running", 0, True)
    app.jobs.cancel(neighbour)  # what crashed before runs alone, and this worker has nobody above it
    eventually(lambda: state(job) == "dead", timeout=30)
    row = ended(connection, job)
    death = "was killed by SIGKILL" if how == "killed" else "exited with code 3"
    assert (row.reason, row.crashes, row.attempt) == ("crashed", 3, 1)
    assert [one["error"] for one in row.errors] == [f"its process {death}"] * 3
    assert len(eventually(lambda: logged("job_crashed"))) == 2


def test_a_process_that_died_at_rest_costs_the_next_job_nothing(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any
) -> None:
    where = task(tasks.where)
    work(concurrency=1)
    found = []
    for n in range(2):
        job = where.enqueue(connection, n).id
        eventually(lambda job=job: state(job) == "completed", timeout=30)
        row = ended(connection, job)
        assert (row.attempt, row.crashes, row.errors) == (1, 0, None)
        found.append(row.result["pid"])
        os.kill(found[-1], 9)
    assert len(set(found)) == 2


@pytest.mark.parametrize("options", [{"timeout": 0.3}, {"hard_timeout": 0.3}])
def test_a_job_that_cannot_be_told_is_killed_at_its_timeout_with_all_that_it_started(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, tmp_path: Path, options: dict[str, float]
) -> None:
    spin = task(tasks.spin, max_attempts=1, **options)
    work()
    job = spin.enqueue(connection, str(tmp_path / "mark")).id
    found = pids(tmp_path / "mark")
    eventually(lambda: state(job) == "dead", timeout=30)
    row = ended(connection, job)
    (name,) = options
    assert (row.reason, row.crashes) == ("timeout", 0)
    assert f"killed: it ran longer than its {name} of 0.3 s" in row.error
    eventually(lambda: not any(map(alive, found)))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_job_that_can_be_told_is_told_at_its_timeout_and_ends_by_itself(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, tmp_path: Path, logged: Any, kind: str
) -> None:
    obedient = task(tasks.obedient if kind == "sync" else tasks.obedient_async, max_attempts=1, timeout=0.2)
    work()
    job = obedient.enqueue(connection, str(tmp_path / "mark")).id
    eventually(lambda: state(job) == "dead", timeout=30)
    assert (tmp_path / "mark.told").exists()
    row = ended(connection, job)
    assert (row.reason, row.error) == (
        "timeout",
        "pgqueue.errors.TaskTimeout: the attempt ran longer than its timeout of 0.2 s",
    )
    assert not logged("job_killed")


@pytest.mark.parametrize("function", [tasks.spin, tasks.obedient, tasks.obedient_async], ids=lambda one: one.__name__)
def test_a_cancelled_job_is_told_or_killed_and_ends_so(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, tmp_path: Path, function: Any
) -> None:
    cancelled = task(function, retry=AT_ONCE)
    work()
    job = cancelled.enqueue(connection, str(tmp_path / "mark")).id
    found = pids(tmp_path / "mark")
    assert app.jobs.cancel(job, "enough") is True
    eventually(lambda: state(job) == "cancelled", timeout=30)
    row = ended(connection, job)
    assert (row.error, row.attempt, row.crashes) == ("enough", 1, 0)
    if function is tasks.spin:
        eventually(lambda: not any(map(alive, found)))
    else:
        assert (tmp_path / "mark.told").exists()


@pytest.mark.parametrize("end", ["ends well", "fails"])
def test_its_own_transaction_is_one_commit_there_too(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, end: str
) -> None:
    connection.execute("create table effects (job_id bigint)")
    transact = task(tasks.transact, max_attempts=1)
    work()
    job = transact.enqueue(connection, end=end).id
    eventually(lambda: state(job) == ("completed" if end == "ends well" else "dead"), timeout=30)
    effects = [row[0] for row in connection.execute("select job_id from effects")]
    assert effects == ([job] if end == "ends well" else [])
    if end == "ends well":
        assert ended(connection, job).result["by"] != os.getpid()


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_what_cannot_run_there_is_refused_when_it_is_declared(app: PgQueue) -> None:
    def inside() -> None: ...

    async def inside_async() -> None: ...

    def declare(function: Any, **options: Any) -> None:
        app.task(name="test.refused", **options)(function)

    with pytest.raises(InvalidTask, match="inside is to run in a process, which imports it by its name: define it"):
        declare(inside, run_in="process")
    with pytest.raises(InvalidOption, match="run_in must be one of auto, loop, thread, process, not 'fiber'"):
        declare(inside, run_in="fiber")
    with pytest.raises(InvalidOption, match="run_in='loop' is for an async def"):
        declare(inside, run_in="loop")
    with pytest.raises(InvalidOption, match="run_in='thread' is for a def"):
        declare(inside_async, run_in="thread")
    with pytest.raises(InvalidOption, match=r"hard_timeout must not be shorter than timeout, 5 s"):
        declare(inside, timeout=5, hard_timeout=4)
    with pytest.raises(InvalidOption, match=r"hard_timeout must be between 0.001 and"):
        declare(inside, hard_timeout=0)
    with pytest.raises(InvalidOption, match="hard_timeout must be a number of seconds, not str"):
        declare(inside, hard_timeout="5")
    declare(inside, run_in="thread", hard_timeout=5)
    app.task(name="test.taken", run_in="process")(tasks.where_async)


def test_a_module_that_cannot_be_imported_there_fails_the_attempt_and_says_why(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.shout, "__module__", "tests.worker.nowhere")
    shout = task(tasks.shout, max_attempts=1)
    work()
    job = shout.enqueue(connection, "x").id
    eventually(lambda: state(job) == "dead", timeout=30)
    assert ended(connection, job).error == "ModuleNotFoundError: No module named 'tests.worker.nowhere'"


def test_what_dies_while_it_imports_its_task_is_a_crash_of_the_job_and_not_tried_for_ever(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.shout, "__module__", "tests.worker.dies_on_import")
    shout = task(tasks.shout)
    work()
    job = shout.enqueue(connection, "x").id
    eventually(lambda: state(job) == "dead", timeout=30)
    row = ended(connection, job)
    assert (row.reason, row.crashes) == ("crashed", 3)
    assert row.error == "its process exited with code 9 before the job began"


@pytest.mark.parametrize("what", ["middleware", "middleware of its own", "lifespans"])
def test_what_another_process_cannot_find_is_said_and_not_left_out(
    app: PgQueue, connection: Look, work: Any, task: Any, state: Any, what: str
) -> None:
    def around(ctx: Context) -> Iterator[None]:
        yield

    if what == "middleware":
        app.middleware(around)
    elif what == "lifespans":
        app.lifespan(around)
    plain = task(tasks.plain, max_attempts=1, middleware=[around] if "own" in what else [])
    work()
    job = plain.enqueue(connection).id
    eventually(lambda: state(job) == "dead", timeout=30)
    assert ended(connection, job).error == (
        f"pgqueue.errors.InvalidTask: test.plain has {what}, which no other process can find: "
        "keep the app, and what @app.task returns, at the top of a module"
    )


def test_a_job_whose_transaction_was_cut_off_or_whose_process_did_not_start_in_time_loses_no_attempt(
    app: PgQueue, connection: Look, drain: Any, task: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue.worker.settle.HINDERED_DELAY", (0.01, 0.02))
    job = task(tasks.cut_once, max_attempts=1).enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence) == ("completed", 1, 2)

    honest, limits = ProcessRun._kill_in, [0.001]
    monkeypatch.setattr(ProcessRun, "_kill_in", lambda run, seconds, why: honest(run, (limits or [60.0]).pop(), why))
    late = task(tasks.where, max_attempts=1).enqueue(connection, 1)
    drain()
    row = ended(connection, late)
    assert (row.state, row.attempt, row.fence) == ("completed", 1, 2)
    assert "it did not start within" in row.errors[0]["error"]
    assert [line.job_id for line in logged("job_hindered")] == [job.id, late.id]


def test_a_process_whose_worker_died_while_it_was_starting_runs_nothing_that_is_left_for_it():
    """Nobody tells it of a death before it asked to be told: it looks."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgqueue.worker.jobprocess", str(gone.pid), str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
        )
        assert process.wait(timeout=30) == 0  # and not when the channel closes, which it does not
