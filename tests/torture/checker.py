"""Whether what happened was allowed: the invariants, one function each, over what ledger and history say. Pure.

    lines      the ledger: what producers, jobs, event handlers and the tormentor wrote down themselves (ledger.py)
    changes    the history: every row that came, changed or went, noted by triggers in the same transaction (history.py)
    snapshots  REPEATABLE READ views of all tables, taken ten times a second beside it
    rows       where each job was found in the end

A run's last sign of life is the last line that it wrote, so a process that died unseen never overlaps with anybody.
What has a time bound is not judged while the tormentor is at it: `quiet` says from when on it is.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any, NamedTuple

from tests.torture.ledger import Line

ENDED = {"completed", "dead", "cancelled", "expired"}
TABLES = ("jobs", "finished_jobs", "dead_jobs")
ABANDONED = 5.0  # seconds after which the server ends the transaction of a session that leads nowhere: link.py
SEEN = 2.0  # seconds until the jobs of a process whose death its supervisor saw are given back

# Faults that hold up processes, network or server. Those that do not (kills, a deployment, what jobs do to their own
# process) are no excuse for what has to be done within a moment.
HOLDING_UP = frozenset(
    {
        *("lose_answers", "stop_at_points", "freeze_child", "freeze_worker", "freeze_inside"),
        *("terminate_backends", "stall", "cut", "half_open", "slow"),
        *("kill_backend", "crash_server", "hold_server", "lose_standby", "hostile_settings", "lock_rows", "lock_table"),
    }
)
DEAF = frozenset({"block_loop", "stubborn"})  # jobs that keep their own process from hearing anything


class Change(NamedTuple):
    """One row that came (old is None), changed or went (new is None). Times are the database's, as seconds."""

    seq: int
    tx: int
    at: float
    said: float  # when its statement began
    table: str
    id: str
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None


class Edge(NamedTuple):
    """One transition of a job, of one transaction. fence, worker: of the claim that it made or ended."""

    kind: str
    seq: int
    tx: int
    at: float
    said: float
    fence: int
    worker: str
    old: Mapping[str, Any]
    new: Mapping[str, Any]

    def __str__(self) -> str:
        return f"history {self.seq}, tx {self.tx}: {self.kind}, fence {self.fence}, worker {self.worker[:8]}"


class Snapshot(NamedTuple):
    """All tables at one moment. at: monotonic seconds, from before it was taken; now: the database's clock."""

    at: float
    now: float
    places: Mapping[int, Sequence[str]]  # job -> where it is
    running: Mapping[int, tuple[str, int]]  # job -> worker, fence
    leases: Mapping[str, float]  # worker -> until when
    open: Mapping[str, float]  # application_name -> seconds that a transaction of such a connection has been idle
    connections: Mapping[str, int] = {}
    horizon: float = -math.inf  # finished jobs are shown if they ended since, by the database's clock


@dataclass(frozen=True)
class Rules:
    """What was promised to this cluster."""

    lease: float = 15.0
    sweep: float = 5.0
    grace: float = 30.0
    poll: float = 1.0
    max_crashes: int = 3
    slack: float = 5.0  # seconds that a busy machine may add to anything
    stall: float = 1.0  # and to what nobody holds up
    delays: Mapping[str, Callable[[int], float]] = field(default_factory=dict)  # task -> attempt -> least backoff
    killers: frozenset[str] = frozenset()  # tasks that end their process
    risky: frozenset[str] = frozenset()  # tasks that may end theirs
    transactional: frozenset[str] = frozenset()  # tasks that have one effect, in the transaction that completes them
    stays: frozenset[str] = frozenset()  # tasks that nobody knows: their jobs are left alone
    bad: frozenset[str] = frozenset()  # tasks whose rows cannot be read
    uncooperative: frozenset[int] = frozenset()  # processes whose jobs may go on after their lease
    connections: Mapping[str, int] = field(default_factory=dict)  # application_name -> the most when calm
    drain: float = 60.0


class Violation(NamedTuple):
    number: str
    text: str
    job: int = 0


class Run(NamedTuple):
    """One start of a job, as its own process tells it."""

    job: int
    fence: int
    worker: str
    pid: int
    attempt: int
    key: str
    start: float
    last: float  # sign of life
    end: str  # "returned", "raised", "refused", …; empty: none was told
    events: frozenset[str]


@dataclass
class Evidence:
    """All that is known. offset: add it to monotonic seconds, and they are the database's."""

    lines: list[Line] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    rows: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    effects: list[tuple[int, int]] = field(default_factory=list)  # job, fence
    offset: float = 0.0
    rules: Rules = field(default_factory=Rules)

    def told(self, *events: str) -> list[Line]:
        return [line for line in self.lines if line.event in events]

    @cached_property
    def runs(self) -> list[Run]:
        found: dict[tuple[int, int, int], list[Line]] = defaultdict(list)
        starts: dict[tuple[int, int], list[int]] = defaultdict(list)
        for line in self.lines:
            if line.job and line.fence and line.event.startswith("run."):
                found[line.job, line.fence, line.pid].append(line)
                if line.event == "run.start":
                    starts[line.job, line.fence].append(line.pid)
        made = []
        for (job, fence), pids in starts.items():
            for pid in pids:  # lines of another process are of a fork of it
                lines = found[job, fence, pid]
                first = next(line for line in lines if line.event == "run.start")
                end = next((line.note for line in lines if line.event == "run.end"), "")
                events = frozenset(line.event for line in lines)
                who = first.worker, pid, first.attempt, first.key
                made.append(Run(job, fence, *who, first.at, lines[-1].at, end, events))
        return sorted(made, key=lambda run: run.start)

    @cached_property
    def runs_of(self) -> dict[int, list[Run]]:
        found = defaultdict(list)
        for run in self.runs:
            found[run.job].append(run)
        return found

    @cached_property
    def edges(self) -> dict[int, list[Edge]]:
        """Each job's transitions in their order."""
        by_job: dict[int, dict[int, list[Change]]] = defaultdict(lambda: defaultdict(list))
        gone = {change.tx: change.id for change in self.changes if change.table == "workers" and change.new is None}
        for change in self.changes:
            if change.table in TABLES:
                by_job[int(change.id)][change.tx].append(change)
        made: dict[int, list[Edge]] = {}
        for job, transactions in by_job.items():
            edges = [edge for changes in transactions.values() for edge in _edges(changes, gone)]
            made[job] = sorted(edges, key=lambda edge: edge.seq)
        return made

    @cached_property
    def ends(self) -> dict[tuple[int, int], Edge]:
        """The transition that ended each claim: (job, fence) -> edge."""
        return {
            (job, edge.fence): edge
            for job, edges in self.edges.items()
            for edge in edges
            if edge.old.get("state") == "running" and edge.kind != "asked"
        }

    @cached_property
    def claims(self) -> dict[tuple[int, int], Edge]:
        return {(job, edge.fence): edge for job, edges in self.edges.items() for edge in edges if edge.kind == "claim"}

    @cached_property
    def buried(self) -> dict[str, Change]:
        """How each worker's row went."""
        return {change.id: change for change in self.changes if change.table == "workers" and change.new is None}

    @cached_property
    def workers(self) -> dict[str, list[Change]]:
        found = defaultdict(list)
        for change in self.changes:
            if change.table == "workers":
                found[change.id].append(change)
        return found

    @cached_property
    def faults(self) -> list[tuple[float, float]]:
        """When the tormentor was at it."""
        return [(begin, end) for begin, end, _ in self.deeds]

    @cached_property
    def deeds(self) -> list[tuple[float, float, str]]:
        """And what it did."""
        begun: dict[str, float] = {}
        found = []
        for line in self.told("fault", "healed"):
            if line.event == "fault":
                begun[line.note] = line.at
            else:
                found.append((begun.pop(line.note, line.at), line.at, line.note.rpartition(" ")[2]))
        return found + [(begin, math.inf, note.rpartition(" ")[2]) for note, begin in begun.items()]

    def held_up(self, since: float, until: float, by: frozenset[str] = HOLDING_UP) -> bool:
        """Whether a fault of those was on in that time, or had been until a moment before."""
        return any(name in by and begin <= until and since <= end + self.rules.slack for begin, end, name in self.deeds)

    def quiet(self, since: float) -> float:
        """From when on, at `since` or after it, nothing was done to anybody. A moment between two faults is not it."""
        for begin, end in sorted(self.faults):
            if begin - self.rules.slack <= since < end:
                since = end
        return since

    def tended(self, since: float) -> float:
        """The first sign of life of any worker in the quiet: until then there is nobody who could help."""
        quiet = self.quiet(since)
        place = bisect_left(self._beats, quiet)
        return self._beats[place] if place < len(self._beats) else math.inf

    @cached_property
    def _beats(self) -> list[float]:
        return sorted(self.mono(change.at) for change in self.changes if change.table == "workers" and change.new)

    def mono(self, database: float) -> float:
        return database - self.offset


def _edges(changes: list[Change], gone: Mapping[int, str]) -> Iterator[Edge]:
    """What the changes of one job in one transaction mean."""
    came = {change.table: change for change in changes if change.old is None}
    went = {change.table: change for change in changes if change.new is None}
    for change in changes:
        if change.old is not None and change.new is not None and change.table == "jobs":
            yield _edge(_updated(change, gone), change, change.old, change.new)
    if went and came:
        (source, left), (target, arrived) = next(iter(went.items())), next(iter(came.items()))
        assert left.old is not None and arrived.new is not None  # noqa: PT018
        yield _edge(_moved(source, left.old, target, arrived.new), arrived, left.old, arrived.new)
    elif came:
        change = next(iter(came.values()))
        assert change.new is not None
        yield _edge("enqueue" if change.table == "jobs" else "odd", change, {}, change.new)
    elif went:
        change = next(iter(went.values()))
        assert change.old is not None
        yield _edge("purge" if change.table == "dead_jobs" else "vanish", change, change.old, {})


def _edge(kind: str, change: Change, old: Mapping[str, Any], new: Mapping[str, Any]) -> Edge:
    of = new if kind == "claim" else old or new
    worker = of.get("worker_id") or ""
    return Edge(kind, change.seq, change.tx, change.at, change.said, of.get("fence", 0), worker, old, new)


def _updated(change: Change, gone: Mapping[int, str]) -> str:
    old, new = change.old or {}, change.new or {}
    match old["state"], new["state"]:
        case "queued", "running":
            return "claim"
        case "queued", "queued":
            return "retry_now"  # or another change of when it runs
        case "running", "running" if new.get("cancelling") and not old.get("cancelling"):
            return "asked"
        case "running", "queued" if new["attempt"] == old["attempt"]:
            return "retry"
        case "running", "queued" if new["attempt"] == old["attempt"] - 1:
            if new["crashes"] == old["crashes"] + 1:
                return "crash"
            return "rescue" if change.tx in gone else "give back"
    return "odd"


def _moved(source: str, old: Mapping[str, Any], target: str, new: Mapping[str, Any]) -> str:
    running = old.get("state") == "running"
    match source, target:
        case "jobs", "dead_jobs" if running:
            return "dead"
        case "jobs", "finished_jobs":
            state = new["state"]
            if state == "completed" and running:
                return "complete"
            if state == "cancelled":
                return "cancel running" if running else "cancel"
            if state == "expired" and not running:
                return "expire"
        case "dead_jobs", "jobs":
            return "redrive"
    return "odd"


Check = Callable[[Evidence], Iterator[Violation]]


# -- the invariants ---------------------------------------------------------------------------------------------------


def i1(e: Evidence) -> Iterator[Violation]:
    """Every acknowledged enqueue ends completed, dead, cancelled or expired; none disappears or is in two places."""
    acknowledged = {line.job: line for line in e.told("ok") if line.job}
    for job, line in acknowledged.items():
        row = e.rows.get(job)
        if row is None:
            yield Violation("I1", f"enqueue {line.key} was acknowledged and is nowhere", job)
        elif row["state"] not in ENDED and row["task"] not in e.rules.stays:
            yield Violation("I1", f"enqueue {line.key} was acknowledged and is still {row['state']}", job)
    for job, edges in e.edges.items():
        for edge in edges:
            if edge.kind == "vanish":
                yield Violation("I1", f"its row went and none came: {edge}", job)
    places: dict[int, set[str]] = defaultdict(set)
    for _, changes in _transactions(e.changes):
        for change in changes:
            if change.table in TABLES:
                (places[int(change.id)].discard if change.new is None else places[int(change.id)].add)(change.table)
        for job in {int(change.id) for change in changes if change.table in TABLES}:
            if len(places[job]) > 1:
                yield Violation("I1", f"after tx {changes[0].tx} it is in {sorted(places[job])}", job)
    for snapshot in e.snapshots:
        for job, where in snapshot.places.items():
            if len(where) != 1:
                yield Violation("I1", f"at {snapshot.at:.3f} it is in {sorted(where)}", job)
    for job, line in acknowledged.items():
        ended = e.rows.get(job, {}).get("ended_at") or math.inf
        for snapshot in e.snapshots:
            if snapshot.at > line.at and ended >= snapshot.horizon and job not in snapshot.places:
                yield Violation("I1", f"acknowledged, and not in the snapshot of {snapshot.at:.3f}", job)
                break


def i2(e: Evidence) -> Iterator[Violation]:
    """No enqueue that was rolled back, whole or by savepoint, is ever there, let alone started."""
    failed = {line.key for line in e.told("fail")} - {line.key for line in e.told("ok", "unknown")}
    for run in e.runs:
        if run.key in failed:
            yield Violation("I2", f"{run.key} was rolled back and started", run.job)
    for job, edges in e.edges.items():
        if edges[0].new.get("key") in failed:
            yield Violation("I2", f"{edges[0].new['key']} was rolled back and is there", job)


def i3(e: Evidence) -> Iterator[Violation]:
    """An enqueue of unknown outcome, repeated with the same idempotency key, makes exactly one job."""
    made: dict[str, list[int]] = defaultdict(list)
    for job, edges in e.edges.items():
        if edges[0].kind == "enqueue" and edges[0].new.get("unique_key"):
            made[edges[0].new["unique_key"]].append(job)
    for key in {line.key for line in e.told("ok") if line.note == "keyed"}:
        if len(made[key]) != 1:
            yield Violation("I3", f"{key} has {len(made[key])} jobs: {made[key]}", next(iter(made[key]), 0))


def i4(e: Evidence) -> Iterator[Violation]:
    """A job never starts before its enqueue, and always sees what was written beside it."""
    for line in e.told("run.unseen"):
        yield Violation("I4", f"{line.key} does not see the row that was written beside it", line.job)
    meant = {line.key: line.at for line in reversed(e.told("intent"))}
    for run in e.runs:
        if run.start < meant.get(run.key, -math.inf):
            yield Violation("I4", f"{run.key} started before its enqueue was thought of", run.job)


def i5(e: Evidence) -> Iterator[Violation]:
    """Two runs of one job overlap only if the first lease had expired before the second claim."""
    for job, runs in e.runs_of.items():
        ordered = sorted(runs, key=lambda run: run.fence)
        for place, first in enumerate(ordered):
            for second in ordered[place + 1 :]:
                if second.start >= first.last or second.fence == first.fence:
                    continue
                claim, burial = e.claims.get((job, second.fence)), e.buried.get(first.worker)
                expired = (
                    burial is not None
                    and claim is not None
                    and burial.seq < claim.seq
                    and burial.old is not None
                    and burial.old["expires_at"] <= burial.said
                )
                if not expired:
                    seconds = first.last - second.start
                    yield Violation(
                        "I5", f"fences {first.fence} and {second.fence} overlap by {seconds:.3f} s under a lease", job
                    )


_TELL = {
    "told.completed": {"complete"},
    "told.retried": {"retry"},
    "told.dead_lettered": {"dead"},
    "told.cancelled": {"cancel running"},
}


def i6(e: Evidence) -> Iterator[Violation]:
    """Exactly one accepted terminal transition a generation, by the current lease; all are of the state table."""
    for job, edges in e.edges.items():
        fence, over = 0, False
        for edge in edges:
            if edge.kind == "odd":
                yield Violation("I6", f"no transition of the table: {edge}, {dict(edge.old)} to {dict(edge.new)}", job)
                continue
            if edge.kind in ("complete", "dead", "cancel", "cancel running", "expire"):
                if over:
                    yield Violation("I6", f"it had ended already: {edge}", job)
                if edge.new["fence"] != fence:
                    yield Violation("I6", f"ended by another than the last claim, {fence}: {edge}", job)
                over = True
            elif over and edge.kind == "redrive":
                over = False
            elif over and edge.kind != "purge":
                yield Violation("I6", f"it had ended: {edge}", job)
            if edge.kind == "claim":
                fence = edge.fence
    for line in e.told(*_TELL):
        edge = e.ends.get((line.job, line.fence))
        # Of a crash the supervisor tells, who has no worker id for it.
        if edge is None or edge.kind not in _TELL[line.event] or line.worker not in ("", edge.worker):
            yield Violation("I6", f"{line.event} by fence {line.fence}; the history has {edge}", line.job)


_OWN = {"complete", "retry", "dead", "cancel running"}


def i7(e: Evidence) -> Iterator[Violation]:
    """Every refused late finish is told, and has no effect in the database; a transactional job has exactly one."""
    effects: dict[int, list[int]] = defaultdict(list)
    for job, fence in e.effects:
        effects[job].append(fence)
    for job, row in e.rows.items():
        if row["task"] in e.rules.transactional:
            expected = [row["fence"]] if row["state"] == "completed" else []
            if effects[job] != expected:
                yield Violation("I7", f"{row['state']} by fence {row['fence']}, effects by {effects[job]}", job)
    lost = {(line.job, line.fence) for line in e.told("told.claim_lost")}
    for job, fence in lost:
        edge = e.ends.get((job, fence))
        # Of a worker that is buried the rescue itself ends what was asked to end: whoever comes back has lost it.
        burial = None if edge is None else e.buried.get(edge.worker)
        if edge is None or (edge.kind in _OWN and (burial is None or burial.tx != edge.tx)):
            yield Violation("I7", f"claim_lost was told of fence {fence}; the history has {edge}", job)
    for run in e.runs:
        edge = e.ends.get((run.job, run.fence))
        burial = e.buried.get(run.worker)
        died = burial is not None and edge is not None and (burial.tx == edge.tx or burial.seq < edge.seq)
        own = _OWN if run.end == "returned" else {*_OWN, "give back"}
        told = (run.job, run.fence) in lost
        if run.end and edge is not None and edge.kind not in own and not died and not told:
            yield Violation("I7", f"fence {run.fence} {run.end}, was refused, and nobody was told: {edge}", run.job)


def i8(e: Evidence) -> Iterator[Violation]:
    """Starts <= max_attempts + refunds; the fence strictly rises; nothing starts that was not claimed, or twice."""
    for job, edges in e.edges.items():
        fence, attempt = 0, 0
        for edge in edges:
            old, new = edge.old, edge.new
            if edge.kind == "claim":
                if (new["fence"], new["attempt"]) != (old["fence"] + 1, old["attempt"] + 1) or new["fence"] <= fence:
                    yield Violation("I8", f"a claim that counts wrong: {edge} {dict(old)} to {dict(new)}", job)
                if new["attempt"] > new["max_attempts"]:
                    yield Violation("I8", f"attempt {new['attempt']} of {new['max_attempts']}: {edge}", job)
            elif new and old and new["fence"] != old["fence"]:
                yield Violation("I8", f"the fence changes without a claim: {edge}", job)
            fence, attempt = new.get("fence", fence), new.get("attempt", attempt)
            if attempt < 0:
                yield Violation("I8", f"attempt {attempt}: {edge}", job)
    seen: set[tuple[int, int]] = set()
    for run in e.runs:
        claim = e.claims.get((run.job, run.fence))
        if claim is None or (claim.worker, claim.new["attempt"]) != (run.worker, run.attempt):
            yield Violation("I8", f"fence {run.fence} started by {run.worker[:8]}; the history has {claim}", run.job)
        if (run.job, run.fence) in seen:
            yield Violation("I8", f"fence {run.fence} started twice", run.job)
        seen.add((run.job, run.fence))


_NO_MORE = {reason: {("dead", reason), ("cancelled", None)} for reason in ("crashed", "bad_row")}


def i9(e: Evidence) -> Iterator[Violation]:
    """A job that ends its process three times is dead as `crashed`; no other ever is, and a crash costs no attempt."""
    killed = {int(line.note.split()[0]) for line in e.told("kill")}
    for job, edges in e.edges.items():
        crashes = 0
        for edge in edges:
            if edge.kind == "redrive":
                crashes = 0
            elif edge.kind == "crash":
                crashes += 1
            elif edge.kind == "dead" and edge.new.get("reason") == "crashed":
                crashes += 1
                ours = sum(run.pid in killed for run in e.runs_of.get(job, []))
                if edge.new["crashes"] != e.rules.max_crashes:
                    yield Violation("I9", f"dead after {edge.new['crashes']} crashes: {edge}", job)
                # The first may have been a neighbour's; then it ran alone.
                if edge.old["task"] not in e.rules.killers | e.rules.risky and ours < e.rules.max_crashes - 1:
                    yield Violation("I9", f"innocent, {ours} of its processes were killed, and dead: {edge}", job)
            if edge.new.get("crashes", 0) > e.rules.max_crashes:
                yield Violation("I9", f"{edge.new['crashes']} crashes: {edge}", job)
            # Whoever ran beside it, too: what a burial gives back has its attempt again.
            burial = e.buried.get(edge.worker)
            charged = edge.kind == "retry" or (edge.kind == "dead" and edge.new.get("reason") != "crashed")
            if charged and burial is not None and burial.tx == edge.tx:
                yield Violation("I9", f"charged an attempt for the end of its process: {edge}", job)
    for job, row in e.rows.items():
        # An operator may have cancelled it before it could.
        if row["task"] in e.rules.killers and (row["state"], row.get("reason")) not in _NO_MORE["crashed"]:
            yield Violation("I9", f"it kills its process and ended as {row['state']}, {row.get('reason')}", job)


def i10(e: Evidence) -> Iterator[Violation]:
    """A redrive is atomic and idempotent: of two operators who click at once, one redrives the job."""
    told: dict[int, int] = defaultdict(int)
    unsure = {line.job for line in e.told("redrive unknown")}
    for line in e.told("redriven"):
        told[line.job] += 1
    for job, edges in e.edges.items():
        times = sum(edge.kind == "redrive" for edge in edges)
        if told[job] > times or (told[job] < times and job not in unsure):
            yield Violation("I10", f"{told[job]} redrives were told, {times} were made", job)


def i11(e: Evidence) -> Iterator[Violation]:
    """No claim before run_at, by the database's clock."""
    for (job, _), edge in e.claims.items():
        if edge.new["started_at"] < edge.old["run_at"]:
            yield Violation("I11", f"claimed {edge.old['run_at'] - edge.new['started_at']:.6f} s early: {edge}", job)


def i12(e: Evidence) -> Iterator[Violation]:
    """A retry is never earlier than its backoff."""
    for job, edges in e.edges.items():
        for edge in edges:
            least = e.rules.delays.get(edge.old.get("task", ""))
            if edge.kind == "retry" and least is not None:
                delay, due = edge.new["run_at"] - edge.said, least(edge.old["attempt"])
                if not due - 1e-4 <= delay < math.inf:
                    yield Violation("I12", f"again after {delay:.4f} s, not before {due:.4f} s: {edge}", job)


def i13(e: Evidence) -> Iterator[Violation]:
    """With a free worker and nothing done to it, a job starts within a second. The median: the machine may be busy."""
    sent = {line.key: line.at for line in e.told("ok") if line.note == "calm"}
    started = {run.key: run.start for run in reversed(e.runs)}
    late = [started.get(key, math.inf) - at for key, at in sent.items()]
    if late and median(late) > e.rules.poll + 1.0:
        yield Violation("I13", f"median {median(late):.3f} s until a job starts, of {len(late)} on idle workers")


def i15(e: Evidence) -> Iterator[Violation]:
    """Never two live jobs with one unique key; and who is told that a job holds it is told of one that was live."""
    holders: dict[str, str] = {}
    for change in e.changes:
        if change.table != "jobs":
            continue
        was, now = ((row or {}).get("unique_key") for row in (change.old, change.new))
        if was and was != now and holders.get(was) == change.id:
            del holders[was]
        if now and holders.setdefault(now, change.id) != change.id:
            text = f"{now} is held by job {holders[now]}, and by this one since history {change.seq}"
            yield Violation("I15", text, int(change.id))
    asked = {line.key: line.at for line in reversed(e.told("intent"))}
    for line in e.told("held"):
        live = False
        begin = math.inf
        for edge in e.edges.get(line.job, []):
            ends = bool(edge.old) and edge.new.get("state") not in _LIVE
            if edge.old.get("unique_key") == line.note and edge.old.get("state") in _LIVE:
                live = live or e.mono(edge.at) + e.rules.slack >= asked.get(line.key, line.at)
            begin = math.inf if ends else min(begin, e.mono(edge.at))
        if not live and not begin <= line.at + e.rules.slack:
            yield Violation("I15", f"{line.key} was told that it holds {line.note}, and it had ended", line.job)


_LIVE = {"queued", "running", "blocked"}


def i20(e: Evidence) -> Iterator[Violation]:
    """A cancelled job never starts; a running one that was asked to end does, and no late failure revives it."""
    for job, edges in e.edges.items():
        asked = cancelled = False
        for edge in edges:
            if asked and edge.kind not in ("complete", "cancel running"):
                yield Violation("I20", f"it was asked to end: {edge}", job)
            if cancelled and edge.kind == "claim":
                yield Violation("I20", f"it was cancelled: {edge}", job)
            asked = edge.kind == "asked"
            cancelled = edge.kind in ("cancel", "cancel running")


def i21(e: Evidence) -> Iterator[Violation]:
    """Told to stop, a worker claims nothing more and ends within grace + 10 s; what it interrupts costs no attempt, and
    can start elsewhere a second after its end."""
    ends = {line.note.split()[0]: line.at for line in e.told("exit")}
    killed = {line.note.split()[0] for line in e.told("exit") if line.note.split()[-1].startswith("-")}
    frozen = [(line.note.split()[0], line.at) for line in e.told("freeze")]
    for line in e.told("term"):
        who, *children = line.note.split()
        if any(pid in (who, *children) and at < ends.get(who, math.inf) for pid, at in frozen if at > line.at - 30):
            continue  # whoever does not run can do nothing
        took = ends.get(who, math.inf) - line.at
        if took > e.rules.grace + 10.0 + e.rules.slack:
            yield Violation("I21", f"supervisor {who} ended {took:.1f} s after it was told to")
        ours = {change.id for change in e.changes if change.new and str(change.new.get("pid")) in children}
        deaf = e.held_up(line.at, line.at + e.rules.slack, HOLDING_UP | DEAF)
        ended = ends.get(who, math.inf)
        left_alone = who not in killed and ended < math.inf and not e.held_up(line.at, ended + 1.0)
        for (job, fence), claim in e.claims.items():
            if claim.worker not in ours:
                continue
            if e.mono(claim.said) > line.at + (e.rules.slack if deaf else e.rules.stall):
                yield Violation("I21", f"claimed {e.mono(claim.said) - line.at:.3f} s after SIGTERM: {claim}", job)
            end = e.ends.get((job, fence))
            if left_alone and (math.inf if end is None else e.mono(end.at)) > ended + 1.0 + e.rules.stall:
                yield Violation("I21", f"not to be had a second after supervisor {who} ended: {claim}; {end}", job)
    for run in e.runs:
        edge = e.ends.get((run.job, run.fence))
        charged = edge is not None and edge.kind in ("retry", "dead") and edge.new.get("reason") != "crashed"
        if "run.interrupted" in run.events and charged:
            yield Violation("I21", f"fence {run.fence} was interrupted, and charged: {edge}", run.job)


def i22(e: Evidence) -> Iterator[Violation]:
    """What a killed process ran is taken from it: within 2 s when its supervisor sees it die and nothing is held up,
    else within a lease and a sweep, from when the faults have ended."""
    pids = {change.id: change.new["pid"] for change in e.changes if change.table == "workers" and change.new}
    claims = defaultdict(list)
    for (job, fence), claim in e.claims.items():
        claims[pids.get(claim.worker, 0)].append((job, fence, claim))
    for line in e.told("kill"):
        bound = e.tended(line.at) + e.rules.lease + 2 * e.rules.sweep + e.rules.slack
        if line.note.endswith(" supervised") and not _unseen(e, line.at):
            bound = line.at + SEEN + e.rules.stall
        for job, fence, claim in claims[int(line.note.split()[0])]:
            end = e.ends.get((job, fence))
            if e.mono(claim.at) < line.at and (math.inf if end is None else e.mono(end.at)) > bound:
                yield Violation("I22", f"still of the process that was killed at {line.at:.3f}: {claim}; {end}", job)


def _unseen(e: Evidence, at: float) -> bool:
    """Whether something kept a supervisor from seeing a death, or from saying so: something held up, or its own end."""
    if e.held_up(at, at + SEEN):
        return True
    own = (line for line in e.told("kill", "term", "exit") if abs(line.at - at) <= SEEN + e.rules.stall)
    return any(not line.note.endswith(" supervised") for line in own)


def i23(e: Evidence) -> Iterator[Violation]:
    """No running job outlives its lease by two sweeps, and none belongs to a worker that does not know it."""
    since: dict[tuple[int, str, int], float] = {}
    told: set[tuple[int, str, int]] = set()
    for snapshot in e.snapshots:
        left = {
            (job, *held)
            for job, held in snapshot.running.items()
            if snapshot.leases.get(held[0], -math.inf) <= snapshot.now
        }
        since = {one: since.get(one, snapshot.at) for one in left}
        for (job, worker, fence), begin in since.items():
            late = (job, worker, fence)
            if late not in told and snapshot.at > e.tended(begin) + 2 * e.rules.sweep + e.rules.slack:
                told.add(late)
                yield Violation("I23", f"fence {fence} of {worker[:8]} has run without a lease since {begin:.3f}", job)
    started = {(run.job, run.fence) for run in e.runs}
    for (job, fence), claim in e.claims.items():
        end = e.ends.get((job, fence))
        if (job, fence) not in started and claim.new["task"] not in e.rules.bad:
            bound = e.tended(e.mono(claim.at)) + e.rules.lease + 5.0 + e.rules.slack
            if (math.inf if end is None else e.mono(end.at)) > bound:
                yield Violation("I23", f"claimed, never started, and held: {claim}; {end}", job)


def i24(e: Evidence) -> Iterator[Violation]:
    """A worker that cannot renew ends its own jobs before the lease does: nothing is done after that."""
    until = {
        worker: e.mono(max(change.new["expires_at"] for change in changes if change.new))
        for worker, changes in e.workers.items()
    }
    thawed = [(int(line.note.split()[0]), line.at) for line in e.told("thaw")]
    for line in e.told("run.start", "run.beat", "run.effect"):
        end = until.get(line.worker, math.inf)
        if line.at <= end or line.pid in e.rules.uncooperative:
            continue
        # Frozen whole past its lease and back, a process needs a moment to see it.
        if any(pid == line.pid and end < at <= line.at <= at + e.rules.slack for pid, at in thawed):
            continue
        yield Violation("I24", f"{line.event} {line.at - end:.3f} s after the lease of {line.worker[:8]}", line.job)


def i25(e: Evidence) -> Iterator[Violation]:
    """A row that cannot be read is that row's problem: dead as `bad_row`, or left where nobody knows its task."""
    for job, row in e.rows.items():
        if row["task"] in e.rules.bad and (row["state"], row.get("reason")) not in _NO_MORE["bad_row"]:
            yield Violation("I25", f"a bad row ended as {row['state']}, {row.get('reason')}", job)
        if row["task"] in e.rules.stays and (row["state"], row["fence"]) != ("queued", 0):
            yield Violation("I25", f"a task nobody knows: {row['state']}, fence {row['fence']}", job)
    for run in e.runs:
        if e.rows.get(run.job, {"task": ""})["task"] in e.rules.bad | e.rules.stays:
            yield Violation("I25", "it was started", run.job)


def i31(e: Evidence) -> Iterator[Violation]:
    """No worker keeps a transaction open for more than a second, nor more connections than it needs."""
    for snapshot in e.snapshots:
        for name, seconds in snapshot.open.items():
            begun = snapshot.at - seconds
            # What was opened while something was held up may be of a connection that leads nowhere, or of a process
            # that a job keeps from going on.
            held_up = e.held_up(begun, snapshot.at, HOLDING_UP | DEAF)
            if snapshot.at > e.quiet(begun) + (ABANDONED + e.rules.slack if held_up else 1.0 + e.rules.stall):
                yield Violation("I31", f"at {snapshot.at:.3f} {name!r} is idle in its transaction for {seconds:.1f} s")
    calm = next((line.at for line in e.told("calm")), math.inf)
    since: dict[str, float] = {}
    for snapshot in e.snapshots:
        many = {
            name: number
            for name, number in snapshot.connections.items()
            if snapshot.at > calm and number > e.rules.connections.get(name, number)
        }
        since = {name: since.get(name, snapshot.at) for name in many}
        for name, number in many.items():
            if snapshot.at >= since[name] + e.rules.stall:  # a backend may take a moment to see that nobody is there
                yield Violation("I31", f"at {snapshot.at:.3f} there are {number} connections of {name!r}")


def i32(e: Evidence) -> Iterator[Violation]:
    """Once the faults have ended the queue drains, and nobody has to help."""
    end = max((end for _, end in e.faults), default=0.0)
    drained = next((line.at for line in e.told("drained")), math.inf)
    if e.faults and drained > end + e.rules.drain:
        yield Violation("I32", f"the queue was empty {drained - end:.1f} s after the last fault")


INVARIANTS: tuple[Check, ...] = (
    *(i1, i2, i3, i4, i5, i6, i7, i8, i9, i10, i11, i12, i13, i15),
    *(i20, i21, i22, i23, i24, i25, i31, i32),
)


def check(evidence: Evidence, invariants: Sequence[Check] = INVARIANTS) -> list[Violation]:
    """All violations, at most 20 of each invariant."""
    found = []
    for invariant in invariants:
        for number, violation in enumerate(invariant(evidence)):
            if number == 20:
                break
            found.append(violation)
    return found


def report(violations: list[Violation], evidence: Evidence) -> str:
    """The violations; the first of each invariant with what ledger and history say of its job."""
    parts, shown = [], set()
    for violation in violations:
        parts.append(f"{violation.number} job {violation.job}: {violation.text}")
        if violation.job and violation.number not in shown:
            shown.add(violation.number)
            lines = [(line.at, str(line)) for line in evidence.lines if line.job == violation.job]
            edges = [
                (at := evidence.mono(edge.at), f"{at:.3f} {edge}") for edge in evidence.edges.get(violation.job, [])
            ]
            parts += [f"    {text}" for _, text in sorted(lines + edges)[:60]]
    return "\n".join(parts)


def _transactions(changes: list[Change]) -> Iterator[tuple[int, list[Change]]]:
    """Each transaction's changes, in the order in which they ended: that of their last one."""
    by_tx: dict[int, list[Change]] = defaultdict(list)
    for change in changes:
        by_tx[change.tx].append(change)
    yield from sorted(by_tx.items(), key=lambda item: item[1][-1].seq)
