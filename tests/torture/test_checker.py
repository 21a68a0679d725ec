"""The checker by itself: a story in which all went well has no violation, and each way to break it has its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.torture.checker import DEAF, HOLDING_UP, INVARIANTS, Change, Evidence, Rules, Snapshot, check, report
from tests.torture.faults import FAULTS, POINTS
from tests.torture.ledger import Line

OFFSET = 1_000_000.0  # the database's clock is so far ahead of the monotonic one

RULES = Rules(
    lease=10.0,
    sweep=1.0,
    grace=5.0,
    slack=1.0,
    delays={"test.retried": lambda attempt: 2.0**attempt},
    killers=frozenset({"test.poison"}),
    transactional=frozenset({"test.transact"}),
    stays=frozenset({"test.unknown"}),
    bad=frozenset({"test.bad"}),
    connections={"pgqueue claim": 1},
)


class Story:
    """Evidence, a step at a time; each takes a second."""

    def __init__(self) -> None:
        self.clock = 100.0
        self.e = Evidence(offset=OFFSET, rules=RULES)
        self.tx = 0
        self.jobs: dict[int, dict[str, Any]] = {}
        self.pids: dict[str, int] = {}
        self.leases: dict[str, dict[str, Any]] = {}
        self.beating: set[str] = set()

    def step(self, seconds: float = 1.0) -> float:
        self.clock += seconds
        self.tx += 1
        for name in self.beating:
            old = self.leases[name]
            self.leases[name] = old | {"expires_at": self.clock + OFFSET + RULES.lease}
            self.change("workers", name, old, self.leases[name])
        self.tx += 1
        return self.clock

    # -- what the ledger says

    def say(self, event: str, job: int = 0, *, note: str = "", run: bool = False, key: str = "", **other: Any) -> None:
        row = self.jobs.get(job, {})
        fence, attempt = (row["fence"], row["attempt"]) if run else (0, 0)
        fence, worker = other.get("fence", fence), other.get("worker", row.get("worker_id") if run else "") or ""
        pid = other.get("pid", self.pids.get(worker, 1))
        key = key or str(row.get("key") or "")
        self.e.lines.append(Line(int(self.clock * 1e9), pid, worker, job, fence, attempt, key, event, note))

    # -- what the history says

    def change(self, table: str, id: Any, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        now = self.clock + OFFSET
        copies = (None if row is None else dict(row) for row in (old, new))
        self.e.changes.append(Change(len(self.e.changes), self.tx, now, now, table, str(id), *copies))

    def worker(self, name: str, pid: int) -> None:
        self.step()
        self.pids[name] = pid
        self.leases[name] = {"pid": pid, "expires_at": self.clock + OFFSET + RULES.lease}
        self.change("workers", name, None, self.leases[name])
        self.beating.add(name)

    def leave(self, name: str) -> None:
        self.beating.discard(name)
        self.change("workers", name, self.leases[name], None)

    def enqueue(self, job: int, task: str = "test.quick", *, note: str = "", **columns: Any) -> None:
        self.step()
        self.say("intent", key=f"key-{job}")
        row = {"state": "queued", "task": task, "attempt": 0, "max_attempts": 3, "fence": 0, "crashes": 0}
        row |= {"worker_id": None, "run_at": self.clock + OFFSET, "key": f"key-{job}", "unique_key": None}
        self.jobs[job] = row | columns
        self.change("jobs", job, None, self.jobs[job])
        self.say("ok", job, note=note)

    def update(self, job: int, **columns: Any) -> None:
        old = self.jobs[job]
        self.jobs[job] = old | columns
        self.change("jobs", job, old, self.jobs[job])

    def claim(self, job: int, worker: str, **columns: Any) -> None:
        row = self.jobs[job]
        self.step()
        counted = {"fence": row["fence"] + 1, "attempt": row["attempt"] + 1}
        columns = {"state": "running", "worker_id": worker, "started_at": self.clock + OFFSET, **counted, **columns}
        self.update(job, **columns)

    def start(self, job: int) -> None:
        self.step()
        self.say("run.start", job, run=True)

    def end(self, job: int, how: str = "returned") -> None:
        self.step()
        self.say("run.end", job, run=True, note=how)

    def move(self, job: int, table: str, state: str, **columns: Any) -> None:
        old = self.jobs[job]
        self.jobs[job] = old | {"state": state} | columns
        self.change("dead_jobs" if old["state"] == "dead" else "jobs", job, old, None)
        self.change(table, job, None, self.jobs[job])

    def complete(self, job: int) -> None:
        self.step()
        self.move(job, "finished_jobs", "completed")
        self.say("told.completed", job, run=True)

    def dead(self, job: int, reason: str, **columns: Any) -> None:
        self.step()
        self.move(job, "dead_jobs", "dead", reason=reason, **columns)

    def back(self, job: int, **columns: Any) -> None:
        row = self.jobs[job]
        self.update(job, **{"state": "queued", "worker_id": None, "attempt": row["attempt"] - 1, **columns})

    def finish(self) -> Evidence:
        self.e.rows = self.jobs
        self.e.lines.sort()
        return self.e

    def whole(self, job: int, worker: str = "w1", task: str = "test.quick", **columns: Any) -> None:
        """A job's life without adventures."""
        self.enqueue(job, task, **columns)
        self.claim(job, worker)
        self.start(job)
        self.end(job)
        self.complete(job)


def cluster(*names: str) -> Story:
    story = Story()
    for number, name in enumerate(names):
        story.worker(name, 11 + number)
    return story


def lapse(story: Story, job: int, worker: str) -> None:
    """The worker's lease ends, and somebody's sweep takes the job back."""
    story.beating.discard(worker)
    story.step(2 * RULES.lease)
    story.leave(worker)
    story.back(job)


def good() -> Story:
    """Everything that may happen, as it may."""
    story = cluster("g1", "g2")
    story.whole(1, "g1")
    story.whole(2, "g1", task="test.transact")
    story.e.effects.append((2, 1))
    # Fails, waits, succeeds.
    story.enqueue(3, "test.retried")
    story.claim(3, "g1")
    story.start(3)
    story.end(3, "raised")
    story.step()
    story.say("told.retried", 3, run=True)
    story.update(3, state="queued", worker_id=None, run_at=story.clock + OFFSET + 2.0)
    story.step(2.0)
    story.claim(3, "g2")
    story.start(3)
    story.end(3)
    story.complete(3)
    # Frozen past its lease; run elsewhere; its end is refused and told.
    story.enqueue(4)
    story.claim(4, "g1")
    story.start(4)
    story.say("freeze", note="11")
    old = story.jobs[4]
    lapse(story, 4, "g1")
    story.claim(4, "g2")
    story.start(4)
    story.step()
    story.say("thaw", note="11")
    for event, note in (("run.end", "returned"), ("told.claim_lost", "")):
        story.say(event, 4, fence=1, worker="g1", pid=11, key=old["key"], note=note)
    story.end(4)
    story.complete(4)
    # Kills its process, three times.
    story.enqueue(5, "test.poison")
    for crash in (1, 2, 3):
        story.worker("g3", 13)
        story.claim(5, "g3")
        story.start(5)
        story.step()
        story.leave("g3")
        if crash < 3:
            story.back(5, crashes=crash)
    story.move(5, "dead_jobs", "dead", reason="crashed", crashes=3)
    # Dead, and sent back.
    story.enqueue(6)
    story.claim(6, "g2")
    story.start(6)
    story.end(6, "raised")
    story.dead(6, "attempts")
    story.say("told.dead_lettered", 6, run=True)
    story.step()
    story.move(6, "jobs", "queued", attempt=0, worker_id=None)
    story.say("redriven", 6)
    story.claim(6, "g2")
    story.start(6)
    story.end(6)
    story.complete(6)
    # Bad, unknown, cancelled while it waited, rolled back, repeated.
    story.enqueue(7, "test.bad")
    story.claim(7, "g2")
    story.dead(7, "bad_row")
    story.enqueue(8, "test.unknown")
    story.enqueue(9)
    story.step()
    story.move(9, "finished_jobs", "cancelled")
    story.say("intent", key="key-never")
    story.say("fail", key="key-never")
    story.enqueue(10, note="keyed", unique_key="key-10")
    story.say("unknown", key="key-10")
    story.claim(10, "g2")
    story.start(10)
    story.step()
    story.say("run.interrupted", 10, run=True)
    story.back(10)
    story.claim(10, "g2")
    story.start(10)
    story.end(10)
    story.complete(10)
    # Unique: the second call is told of the first one's job, and when that has ended the key is free.
    story.enqueue(21, unique_key="alike-1")
    story.say("intent", key="key-21-again")
    story.say("held", 21, key="key-21-again", note="alike-1")
    story.claim(21, "g2")
    story.start(21)
    story.end(21)
    story.complete(21)
    story.say("held", 21, key="key-21-again", note="alike-1")  # the answer was a moment late
    story.whole(22, "g2", unique_key="alike-1")
    # Killed from outside, and its job run elsewhere.
    story.worker("g4", 14)
    story.enqueue(11)
    story.claim(11, "g4")
    story.start(11)
    story.say("kill", note="14")
    story.step()
    story.leave("g4")
    story.back(11, crashes=1)
    story.claim(11, "g2")
    story.start(11)
    story.end(11)
    story.complete(11)
    # Asked to end under a frozen worker: the sweep that buries the worker cancels it, and who thaws has lost it.
    story.worker("g5", 15)
    story.enqueue(13)
    story.claim(13, "g5")
    story.start(13)
    story.step()
    story.say("freeze", note="15")
    story.beating.discard("g5")
    story.step(2 * RULES.lease)
    story.leave("g5")
    story.move(13, "finished_jobs", "cancelled")
    story.say("told.cancelled", 13, fence=1)
    story.step()
    story.say("thaw", note="15")
    story.say("run.end", 13, run=True, note="returned")
    story.say("told.claim_lost", 13, run=True)
    story.say("fault", note="1 cut")
    story.say("healed", note="1 cut")
    story.step()
    story.say("drained")
    story.say("calm")
    story.step()
    story.whole(12, "g2", note="calm", run_at=story.clock + OFFSET)
    story.say("term", note="20 12")
    story.step()
    story.say("exit", note="20 0")
    places = {job: ["jobs"] for job in story.jobs}
    story.e.snapshots.append(
        Snapshot(story.clock, story.clock + OFFSET, places, {}, {}, {"pgqueue claim": 0.1}, {"pgqueue claim": 1})
    )
    return story


def numbers(story: Story) -> set[str]:
    return {violation.number for violation in check(story.finish())}


def test_a_story_in_which_all_went_well_has_no_violation() -> None:
    story = good()
    evidence = story.finish()
    found = check(evidence)
    assert not found, report(found, evidence)
    assert len(INVARIANTS) == 22


# -- one story for each way to break it -------------------------------------------------------------------------------


def acknowledged_and_nowhere(story: Story) -> None:
    story.enqueue(50)
    del story.jobs[50]


def acknowledged_and_left(story: Story) -> None:
    story.enqueue(50)


def in_two_places(story: Story) -> None:
    story.whole(50)
    story.step()
    story.change("jobs", 50, None, story.jobs[50])


def gone_without_a_trace(story: Story) -> None:
    story.enqueue(50)
    story.step()
    story.change("jobs", 50, story.jobs[50], None)


def seen_twice_in_a_snapshot(story: Story) -> None:
    where = {1: ["jobs", "dead_jobs"]}
    story.e.snapshots.append(Snapshot(0.0, 0.0, where, {}, {}, {}))


def missing_from_a_snapshot(story: Story) -> None:
    story.whole(50)
    story.e.snapshots.append(Snapshot(story.clock + 1, story.clock + OFFSET, {}, {}, {}, {}))


def rolled_back_and_started(story: Story) -> None:
    story.enqueue(50)
    story.e.lines = [line for line in story.e.lines if (line.key, line.event) != ("key-50", "ok")]
    story.say("fail", key="key-50")
    story.claim(50, "w1")
    story.start(50)
    story.end(50)
    story.complete(50)


def two_jobs_of_one_key(story: Story) -> None:
    for job in (50, 51):
        story.whole(job, note="keyed", unique_key="key-50")


def blind_to_what_was_written_beside_it(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.say("run.unseen", 50, run=True)
    story.end(50)
    story.complete(50)


def rescued_by_age(story: Story) -> None:
    """Its worker is alive and well, and its row stands."""
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.step()
    old = story.jobs[50]
    story.back(50)
    story.claim(50, "w2")
    story.start(50)
    story.step()
    story.say("run.beat", 50, fence=old["fence"], worker="w1")
    story.end(50)
    story.complete(50)


def buried_alive(story: Story) -> None:
    """Its row was removed before its lease had ended, and it goes on."""
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.step()
    story.leave("w1")
    story.back(50)
    story.claim(50, "w2")
    story.start(50)
    story.step()
    story.say("run.beat", 50, fence=1, worker="w1")
    story.end(50)
    story.complete(50)


def finished_by_a_zombie(story: Story) -> None:
    """Without a fence: the run of the first claim ends the job of the second, whose own end is then refused."""
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    lapse(story, 50, "w1")
    story.claim(50, "w2")
    story.start(50)
    story.step()
    story.move(50, "finished_jobs", "completed")
    story.say("told.completed", 50, fence=1, worker="w1")
    story.end(50)
    story.say("told.claim_lost", 50, run=True)


def ended_twice(story: Story) -> None:
    story.whole(50)
    story.step()
    story.change("finished_jobs", 50, story.jobs[50], None)
    story.change("jobs", 50, None, story.jobs[50] | {"state": "queued"})


def a_transition_that_is_none(story: Story) -> None:
    story.enqueue(50)
    story.step()
    story.move(50, "finished_jobs", "completed")


def two_effects(story: Story) -> None:
    story.e.effects.append((2, 1))


def an_effect_of_a_job_that_did_not_complete(story: Story) -> None:
    story.enqueue(50, "test.transact")
    story.step()
    story.move(50, "finished_jobs", "cancelled")
    story.e.effects.append((50, 1))


def a_loss_that_nobody_was_told_of(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.end(50)
    story.step()
    story.back(50)  # by whom? w1 lives on
    story.claim(50, "w2")
    story.start(50)
    story.end(50)
    story.complete(50)


def two_live_jobs_with_one_key(story: Story) -> None:
    story.enqueue(50, unique_key="alike-1")
    story.whole(51, unique_key="alike-1")
    for event in (story.claim, lambda job, worker: story.start(job)):
        event(50, "w1")
    story.end(50)
    story.complete(50)


def told_of_a_holder_that_had_ended(story: Story) -> None:
    story.whole(50, unique_key="alike-1")
    story.step(10.0)
    story.say("intent", key="another")
    story.step()
    story.say("held", 50, key="another", note="alike-1")


def revived_by_a_late_failure(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.step()
    story.update(50, cancelling="an operator")
    story.end(50, "raised")
    story.back(50)
    story.claim(50, "w2")
    story.start(50)
    story.end(50)
    story.complete(50)


def a_claim_without_a_new_fence(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1", fence=0)


def one_attempt_too_many(story: Story) -> None:
    story.enqueue(50, max_attempts=1, attempt=1)
    story.claim(50, "w1")
    story.start(50)
    story.end(50)
    story.complete(50)


def one_start_too_many(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.start(50)
    story.end(50)
    story.complete(50)


def started_without_a_claim(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.say("run.start", 50, fence=7, worker="w2")
    story.end(50)
    story.complete(50)


def an_innocent_that_dies(story: Story) -> None:
    story.enqueue(50, crashes=2)
    story.claim(50, "w1")
    story.start(50)
    story.dead(50, "crashed", crashes=3)


def charged_for_a_neighbours_crash(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.step()
    story.leave("w1")
    story.update(50, state="queued", worker_id=None, crashes=1)
    story.claim(50, "w2")
    story.start(50)
    story.end(50)
    story.complete(50)


def poison_that_goes_on(story: Story) -> None:
    story.whole(50, task="test.poison")


def a_redrive_that_was_none(story: Story) -> None:
    story.say("redriven", 6)


def claimed_early(story: Story) -> None:
    story.enqueue(50, run_at=story.clock + OFFSET + 60.0)
    story.claim(50, "w1")
    story.start(50)
    story.end(50)
    story.complete(50)


def retried_early(story: Story) -> None:
    story.enqueue(50, "test.retried")
    story.claim(50, "w1")
    story.start(50)
    story.step()
    story.update(50, state="queued", worker_id=None, run_at=story.clock + OFFSET + 1.9)
    story.step(5.0)
    story.claim(50, "w1")
    story.start(50)
    story.end(50)
    story.complete(50)


def late_on_idle_workers(story: Story) -> None:
    for job in (50, 51):
        story.enqueue(job, note="calm")
        story.step(3.0)
        story.claim(job, "w1")
        story.start(job)
        story.end(job)
        story.complete(job)


def claimed_after_sigterm(story: Story) -> None:
    story.enqueue(50)
    story.say("term", note="40 31")
    story.step(3.0)
    story.claim(50, "w1")
    story.start(50)
    story.end(50)
    story.complete(50)
    story.say("exit", note="40 0")


def claimed_a_moment_after_sigterm(story: Story) -> None:
    """Which a job that blocks the loop would explain, and there is none."""
    story.enqueue(50)
    story.say("fault", note="2 stop_supervisor")
    story.say("term", note="40 31")
    story.step(0.5)
    story.claim(50, "w1")
    story.start(50)
    story.end(50)
    story.complete(50)
    story.say("exit", note="40 0")
    story.say("healed", note="2 stop_supervisor")
    story.say("drained")


def kept_by_who_has_stopped(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.say("term", note="40 31")
    story.step()
    story.say("exit", note="40 0")
    story.beating.discard("w1")
    story.step(2.5)
    story.leave("w1")
    story.back(50)
    story.claim(50, "w2")
    story.start(50)
    story.end(50)
    story.complete(50)


def too_slow_to_stop(story: Story) -> None:
    story.say("term", note="40 31")
    story.step(RULES.grace + 10.0 + 2.0)
    story.say("exit", note="40 0")


def charged_for_a_stop(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.say("run.interrupted", 50, run=True)
    story.step()
    story.update(50, state="queued", worker_id=None)
    story.claim(50, "w1")
    story.start(50)
    story.end(50)
    story.complete(50)


def left_with_the_dead(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.say("kill", note="31")
    story.beating.discard("w1")
    story.step(60.0)
    story.leave("w1")
    story.back(50)
    story.claim(50, "w2")
    story.start(50)
    story.end(50)
    story.complete(50)


def seen_to_die_and_left(story: Story) -> None:
    """Its supervisor lives, and nothing is held up: long before a lease would end."""
    story.enqueue(50)
    story.claim(50, "w1")
    story.start(50)
    story.say("kill", note="31 supervised")
    story.beating.discard("w1")
    story.step(3.5)
    story.leave("w1")
    story.back(50, crashes=1)
    story.claim(50, "w2")
    story.start(50)
    story.end(50)
    story.complete(50)


def running_without_a_lease(story: Story) -> None:
    places = {job: ["jobs"] for job in story.jobs}
    for _ in range(6):
        at = story.step()
        story.e.snapshots.append(Snapshot(at, at + OFFSET, places, {1: ("w9", 1)}, {"w9": OFFSET}, {}))


def a_ghost_claim(story: Story) -> None:
    story.enqueue(50)
    story.claim(50, "w1")
    story.step(60.0)
    story.back(50)
    story.claim(50, "w2")
    story.start(50)
    story.end(50)
    story.complete(50)


def effects_after_the_lease(story: Story) -> None:
    story.worker("w5", 35)
    story.enqueue(50)
    story.claim(50, "w5")
    story.start(50)
    story.beating.discard("w5")
    story.step(RULES.lease + 5.0)
    story.say("run.effect", 50, run=True)
    story.end(50)
    story.complete(50)


def a_bad_row_that_is_tried_again(story: Story) -> None:
    story.enqueue(50, "test.bad")
    story.claim(50, "w1")
    story.dead(50, "attempts")


def an_unknown_task_that_is_touched(story: Story) -> None:
    story.enqueue(50, "test.unknown")
    story.claim(50, "w1")
    story.back(50)


def a_transaction_left_open(story: Story) -> None:
    places = {job: ["jobs"] for job in story.jobs}
    story.e.snapshots.append(Snapshot(story.clock + 9, story.clock + OFFSET, places, {}, {}, {"pgqueue x": 9.0}))


def a_jobs_transaction_left_open(story: Story) -> None:
    """Opened when nothing was done to anybody."""
    story.step(10.0)
    places = {job: ["jobs"] for job in story.jobs}
    story.e.snapshots.append(Snapshot(story.clock, story.clock + OFFSET, places, {}, {}, {"pgqueue job": 2.5}))


def a_transaction_that_outlives_its_fault(story: Story) -> None:
    """The server should have ended it long ago."""
    story.say("fault", note="3 half_open")
    story.step()
    story.say("healed", note="3 half_open")
    story.say("drained")
    story.step(7.0)
    places = {job: ["jobs"] for job in story.jobs}
    story.e.snapshots.append(Snapshot(story.clock, story.clock + OFFSET, places, {}, {}, {"pgqueue job": 7.5}))


def one_connection_too_many(story: Story) -> None:
    last = story.e.snapshots[-1]
    for later in (0.0, RULES.stall):
        story.e.snapshots.append(last._replace(at=last.at + later, connections={"pgqueue claim": 2}))


def a_fault_from_which_it_does_not_recover(story: Story) -> None:
    story.e.lines = [line for line in story.e.lines if line.event != "drained"]


BREAKS: list[tuple[Callable[[Story], None], set[str]]] = [
    (acknowledged_and_nowhere, {"I1"}),
    (acknowledged_and_left, {"I1"}),
    (in_two_places, {"I1", "I6"}),
    (gone_without_a_trace, {"I1"}),
    (seen_twice_in_a_snapshot, {"I1"}),
    (missing_from_a_snapshot, {"I1"}),
    (rolled_back_and_started, {"I2"}),
    (two_jobs_of_one_key, {"I3"}),
    (blind_to_what_was_written_beside_it, {"I4"}),
    (rescued_by_age, {"I5"}),
    (buried_alive, {"I5"}),
    (finished_by_a_zombie, {"I6", "I7"}),
    (ended_twice, {"I6"}),
    (a_transition_that_is_none, {"I6"}),
    (two_effects, {"I7"}),
    (an_effect_of_a_job_that_did_not_complete, {"I7"}),
    (a_loss_that_nobody_was_told_of, {"I7"}),
    (a_claim_without_a_new_fence, {"I1", "I8", "I23"}),
    (one_attempt_too_many, {"I8"}),
    (one_start_too_many, {"I8"}),
    (started_without_a_claim, {"I5", "I8"}),
    (an_innocent_that_dies, {"I9"}),
    (charged_for_a_neighbours_crash, {"I9"}),
    (poison_that_goes_on, {"I9"}),
    (a_redrive_that_was_none, {"I10"}),
    (claimed_early, {"I11"}),
    (revived_by_a_late_failure, {"I20"}),
    (retried_early, {"I12"}),
    (late_on_idle_workers, {"I13"}),
    (two_live_jobs_with_one_key, {"I15"}),
    (told_of_a_holder_that_had_ended, {"I15"}),
    (claimed_after_sigterm, {"I21"}),
    (claimed_a_moment_after_sigterm, {"I21"}),
    (kept_by_who_has_stopped, {"I21"}),
    (too_slow_to_stop, {"I21"}),
    (charged_for_a_stop, {"I21"}),
    (left_with_the_dead, {"I22"}),
    (seen_to_die_and_left, {"I22"}),
    (running_without_a_lease, {"I23"}),
    (a_ghost_claim, {"I23"}),
    (effects_after_the_lease, {"I24"}),
    (a_bad_row_that_is_tried_again, {"I25"}),
    (an_unknown_task_that_is_touched, {"I25"}),
    (a_transaction_left_open, {"I31"}),
    (a_jobs_transaction_left_open, {"I31"}),
    (a_transaction_that_outlives_its_fault, {"I31"}),
    (one_connection_too_many, {"I31"}),
    (a_fault_from_which_it_does_not_recover, {"I32"}),
]


@pytest.mark.parametrize(("break_it", "expected"), BREAKS, ids=lambda one: getattr(one, "__name__", ""))
def test_each_way_to_break_it_is_seen_as_what_it_is(break_it: Callable[[Story], None], expected: set[str]) -> None:
    story = good()
    story.e.lines.sort()
    for worker, pid in (("w1", 31), ("w2", 32)):
        story.worker(worker, pid)
    break_it(story)
    assert numbers(story) == expected


def test_every_invariant_has_a_story_that_breaks_it() -> None:
    broken = set().union(*(expected for _, expected in BREAKS))
    assert broken == {invariant.__name__.upper() for invariant in INVARIANTS}


def test_what_has_a_time_bound_is_not_judged_while_the_tormentor_is_at_it() -> None:
    story = cluster("w1", "w2")
    story.enqueue(1)
    story.claim(1, "w1")
    story.start(1)
    story.say("fault", note="1 stop the server")
    story.say("kill", note="11")
    story.step(300.0)
    story.say("healed", note="1 stop the server")
    story.leave("w1")
    story.back(1)
    story.claim(1, "w2")
    story.start(1)
    story.end(1)
    story.complete(1)
    story.say("drained")
    assert numbers(story) == set()


def excused(by: str) -> Story:
    """Nothing that has to be done in a moment is done in it, while that is done to somebody."""
    story = cluster("w1", "w2")
    story.enqueue(1)
    story.claim(1, "w1")
    story.start(1)
    story.say("fault", note=f"1 {by}")
    story.say("kill", note="11 supervised")
    story.beating.discard("w1")
    story.step(3.5)
    story.say("healed", note=f"1 {by}")
    story.leave("w1")
    story.back(1, crashes=1)
    story.claim(1, "w2")
    story.start(1)
    story.end(1)
    story.complete(1)
    story.say("drained")
    return story


def test_only_what_holds_something_up_excuses_a_late_burial() -> None:
    names = {fault.__name__ for fault in FAULTS}
    assert names > HOLDING_UP | DEAF
    assert {name for name in names if numbers(excused(name))} == names - HOLDING_UP


def test_the_frozen_one_may_overlap_only_when_its_lease_was_over_before_the_second_claim() -> None:
    story = good()
    evidence = story.finish()
    early = [
        one._replace(old=dict(one.old or {}, expires_at=one.said + 1.0)) if one.id == "g1" and one.new is None else one
        for one in evidence.changes
    ]
    assert {violation.number for violation in check(replace(evidence, changes=early))} == {"I5"}


def test_a_report_shows_ledger_and_history_of_the_job() -> None:
    story = cluster("w1", "w2")
    story.whole(1)
    story.e.effects.append((1, 9))
    evidence = replace(story.finish(), rules=replace(RULES, transactional=frozenset({"test.quick"})))
    text = report(check(evidence), evidence)
    assert text.startswith("I7 job 1: completed by fence 1, effects by [9]")
    for part in ("run.start job 1 fence 1", "run.end", "history", "complete, fence 1", "key-1"):
        assert part in text


def test_the_documentation_names_every_invariant_and_every_fault() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    for invariant in INVARIANTS:
        assert f"| {invariant.__name__.upper()} |" in text
    for fault in FAULTS:
        assert f"`{fault.__name__}`" in text, fault
    assert f"{len(POINTS) + 1} named points" in text
