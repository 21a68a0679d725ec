"""What lifespans open is there before the first job of each process and closed after its last, however it stops."""

from __future__ import annotations

import signal

from tests.crash import resources
from tests.crash.processes import ended
from tests.helpers import eventually

APP = "tests.crash.resources:app"


def events(ledger):
    return [entry.event for entry in ledger.entries()]


def test_a_stop_closes_in_reverse_and_after_the_last_job(start, ledger, connection):
    job = resources.hold.enqueue(connection, "gate").id
    worker = start(APP)
    ledger.wait_for("started", job)
    worker.signal(signal.SIGTERM)
    ledger.open("gate")
    assert worker.wait() == 0
    assert events(ledger) == ["opened", "started", "finished", "closed_second", "closed_first"]


def test_each_process_has_its_own_also_that_of_a_suspect_and_the_one_that_replaces_another(start, ledger, connection):
    job = resources.kill_its_process_once.enqueue(connection).id
    worker = start(APP)
    assert ended(connection, job).state == "completed"
    eventually(lambda: events(ledger).count("closed_first") == 1)  # the suspect's process has ended by itself
    eventually(lambda: events(ledger).count("opened") == 3)  # one died, one was its job's own, one took its place
    eventually(lambda: len(worker.log("worker_started")) == 3)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert events(ledger).count("closed_first") == 2
    assert "elsewhere" not in events(ledger)


def test_a_process_that_is_recycled_closes_what_it_had_opened(start, ledger, connection):
    resources.look.enqueue_many(connection, [()] * 3)
    worker = start(APP, max_jobs_per_process=3)
    eventually(lambda: events(ledger).count("closed_first") == 1, timeout=30)
    assert events(ledger).count("opened") == 2
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert events(ledger).count("closed_first") == 2


def test_a_failing_start_is_one_line_and_an_exit_code_and_no_job_is_touched(start, ledger, connection):
    job = resources.look.enqueue(connection).id
    worker = start(APP, processes=3, env={"RESOURCES": "start"})
    assert worker.wait() == 1
    (line,) = worker.text().splitlines()
    assert line.startswith(
        "pgqueue: lifespan tests.crash.resources.second did not open: ConnectionError: redis is away"
    )
    assert "resources.py, line" in line
    assert connection.execute("select state, attempt, fence from pgqueue.jobs where id = %s", [job]).fetchone() == (
        "queued",
        0,
        0,
    )
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)
    assert events(ledger) == ["closed_first"]  # what had been opened before it


def test_a_start_that_fails_later_is_tried_again_more_and_more_slowly(start, ledger, connection):
    worker = start(APP, env={"RESOURCES": "restart"})
    eventually(lambda: worker.log("worker_started"), timeout=30)
    ledger.open("once")
    job = resources.kill_its_process_once.enqueue(connection).id
    eventually(lambda: "starting another in 1 s" in worker.text(), timeout=30)
    assert worker.process.poll() is None
    (ledger.path.parent / "once").unlink()
    assert ended(connection, job).state == "completed"
    worker.signal(signal.SIGTERM)
    worker.wait()


def test_a_close_that_hangs_is_cut_off_within_the_bound_of_the_stop(start, ledger):
    worker = start(APP, env={"RESOURCES": "close"}, grace=0)
    eventually(lambda: worker.log("worker_started"), timeout=30)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert "asked_to_hurry" in events(ledger)
    (line,) = worker.log("lifespan_failed")
    assert "tests.crash.resources.second" in line["message"]
    assert "did not close within" in line["message"]
    assert "did not stop in time" not in worker.text()  # it saw to its own end, before its supervisor had to


def test_one_that_ends_by_itself_takes_its_process_along_and_charges_no_job(start, ledger, connection):
    worker = start(APP, grace=1)
    eventually(lambda: worker.log("worker_started"), timeout=30)
    ledger.open("fail")
    (line,) = eventually(lambda: worker.log("lifespan_failed"), timeout=30)[:1]
    assert "second ended by itself: ConnectionError: redis went away" in line["message"]
    eventually(lambda: worker.log("child_died"), timeout=30)
    (ledger.path.parent / "fail").unlink()
    job = resources.look.enqueue(connection).id
    assert ended(connection, job)[:4] == ("completed", 1, 1, 0)
    worker.signal(signal.SIGTERM)
    worker.wait()
