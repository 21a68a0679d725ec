"""Query plans: every statement of a worker finds its jobs by the index its header names, whatever the planner believes.

The hardest case is the plan that is kept: made while the table was empty, and used when it is full, until somebody
analyses it. So each statement is prepared and planned on empty tables first, in a session as a worker's are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from pgqueue.link import session as settings_of
from pgqueue.sql import Statements, statements

WORKER = uuid4()
IDS = list(range(1, 21))
EACH: dict[str, Any] = {"worker_id": WORKER, "ids": IDS, "fences": [1] * 20, "now": None}
TEXTS = ["x"] * 20
JOB: dict[str, Any] = {
    "queue": "q1", "task": "t", "priority": 0, "run_at": None, "delay": 0.0, "max_attempts": 4, "expires_in": None,
    "timeout": None, "args": "{}", "retry": None, "unique_key": None, "tags": None, "meta": None, "wake": True,
}  # fmt: skip

# verb: (its parameters, the indexes of `jobs` it may use)
WORKERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "claim": (
        {"worker_id": WORKER, "tasks": ["t"], "queues": None, "after": "", "limit": 20, "bare": False, "now": None},
        {"jobs_due", "jobs_pkey"},
    ),
    "claim_above": (
        {
            "worker_id": WORKER,
            "tasks": ["t"],
            "queues": None,
            "after": "",
            "limit": 20,
            "bare": False,
            "now": None,
            "lanes": ["q1", "q2"],
            "priorities": [0, 1],
            "run_ats": [1e9, -math.inf],
            "floor_ids": [7, 0],
        },
        {"jobs_due", "jobs_pkey"},
    ),
    "claim_suspect": (
        {"worker_id": WORKER, "tasks": ["t"], "queues": None, "bare": False, "now": None},
        {"jobs_suspects", "jobs_pkey"},
    ),
    "suspects": ({"tasks": ["t"], "queues": None, "most": 100, "now": None}, {"jobs_suspects"}),
    "next_due": ({"tasks": ["t"], "queues": None, "now": None}, {"jobs_due"}),
    "stored": ({"worker_id": WORKER, "id": 1, "fence": 1}, {"jobs_pkey"}),
    "ghosts": ({"worker_id": WORKER, "held": IDS}, {"jobs_running", "jobs_pkey"}),
    "complete": ({**EACH, "results": TEXTS, "kept": [True] * 20}, {"jobs_pkey"}),
    "retry": ({**EACH, "delays": [1.0] * 20, "errors": TEXTS, "tracebacks": TEXTS}, {"jobs_pkey"}),
    "dead_letter": ({**EACH, "reasons": ["attempts"] * 20, "errors": TEXTS, "tracebacks": TEXTS}, {"jobs_pkey"}),
    "give_back": ({**EACH, "delays": [1.0] * 20}, {"jobs_pkey"}),
    "hinder": (
        {**EACH, "delays": [1.0] * 20, "errors": TEXTS, "tracebacks": TEXTS, "most": 10, "longest": 60.0},
        {"jobs_pkey"},
    ),
    "crash": ({**EACH, "errors": TEXTS}, {"jobs_pkey"}),
    "cancel_running": ({**EACH, "errors": TEXTS}, {"jobs_pkey"}),
    "progress": ({**EACH, "fractions": [0.5] * 20, "notes": TEXTS, "said": [1] * 20}, {"jobs_pkey"}),
    "log_lines": (
        {**EACH, "numbers": [1] * 20, "ages": [0.5] * 20, "levels": TEXTS, "messages": TEXTS},
        {"jobs_pkey"},
    ),
    "cancel_asked": (
        {"worker_id": WORKER, "ids": IDS, "fences": [1] * 20, "again": True, "now": None},
        {"jobs_cancelling", "jobs_pkey"},
    ),
    "cancel_lost": ({"workers": [WORKER], "now": None}, {"jobs_cancelling", "jobs_pkey"}),
    "orders": ({"worker_id": WORKER}, {"jobs_cancelling"}),
    "settled": ({"worker_id": WORKER, "ids": IDS, "fences": [1] * 20}, {"jobs_pkey"}),
    "standing": ({"worker_id": WORKER, "id": 1, "fence": 1}, {"jobs_pkey"}),
    "rescue": (
        {"workers": [WORKER], "crashed": True, "why": "x", "max_crashes": 3, "now": None},
        {"jobs_running", "jobs_pkey"},
    ),
    "lapsed": ({"now": None}, {"jobs_running"}),
    "expire": ({"limit": 1_000, "now": None}, {"jobs_expiring", "jobs_pkey"}),
    "prune_finished": ({"ids": IDS, "finished_at": [datetime.now(UTC)] * 20}, set()),
    "prune_dead": ({"tasks": ["t"], "limit": 20, "now": None}, set()),
    "prune_logs": ({"after": 0, "limit": 20}, {"jobs_pkey"}),
    "prune_progress": ({"limit": 20, "now": None}, {"jobs_pkey"}),
}
# What applications and operators run, in sessions of their own, planned when the tables are full.
OTHERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "enqueue": (JOB, set()),
    "wake": ({"queues": ["q1", "q2"], "but": None}, set()),
    "holder": ({"unique_key": "k7"}, {"jobs_unique"}),
    "hold": ({"ids": IDS}, {"jobs_pkey"}),
    "cancel": ({"ids": IDS, "error": "x", "now": None}, {"jobs_pkey"}),
    "retry_now": ({"ids": IDS, "now": None}, {"jobs_pkey"}),
    "change": ({"ids": IDS, "priority": 5, "run_at": None, "delay": 1.0, "now": None}, {"jobs_pkey"}),
    "redrive": ({"ids": IDS, "args": None, "now": None}, set()),
    "purge": ({"ids": IDS}, set()),
}

MODES = ("force_generic_plan", "force_custom_plan")
STAGES = ("planned when empty", "filled and not analysed", "analysed", "claimed since")


class Prepared:
    """One statement, prepared in a session: EXPLAIN shows the plan that an execution would use, also a kept one."""

    def __init__(self, connection: psycopg.Connection[Any], text: str, params: dict[str, Any], name: str) -> None:
        self._connection = connection
        self._name = sql.Identifier(name)
        order = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", text)))
        numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${order.index(found[1]) + 1}", text).replace("%%", "%")
        self._values = [sql.Literal(params[one]) for one in order]
        connection.execute(sql.SQL("prepare {} as ").format(self._name) + sql.SQL(numbered))

    def plan(self) -> list[dict[str, Any]]:
        """Every node of its plan."""
        explain = sql.SQL("explain (format json) execute {} ({})").format(self._name, sql.SQL(", ").join(self._values))
        row = self._connection.execute(explain).fetchone()
        assert row is not None
        plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
        return list(_nodes(plan[0]["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        for below in _nodes(child):
            yield {"Above": node["Node Type"], **below} if below is child else below


Plans = dict[tuple[str, str, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def plans(pgqueue_server: str, pgqueue_template: str) -> Iterator[Plans]:
    """(verb, mode, stage) -> the nodes of the plan."""
    from pgqueue.testing import _new_database, _url

    with _new_database(pgqueue_server, pgqueue_template) as name:
        url = _url(pgqueue_server, name)
        with psycopg.connect(url, autocommit=True) as filler:
            # No autovacuum: it would analyse when it pleases.
            for table in ("jobs", "job_errors", "dead_jobs", "workers", "sleepers"):
                filler.execute(f"alter table pgqueue.{table} set (autovacuum_enabled = off)")
            filler.execute("analyze")
            yield _plans(url, filler, statements("pgqueue"))


def _plans(url: str, filler: psycopg.Connection[Any], texts: Statements) -> Plans:
    found: Plans = {}
    sessions = [psycopg.connect(url, autocommit=True) for _ in MODES]
    try:
        prepared: dict[tuple[str, str], Prepared] = {}
        for mode, session in zip(MODES, sessions, strict=True):
            session.execute(settings_of(0))
            session.execute(f"set plan_cache_mode = {mode}")
            for verb, (params, _) in WORKERS.items():
                prepared[verb, mode] = Prepared(session, texts[verb], params, verb)

        def look(stage: str, verbs: dict[str, Any]) -> None:
            for verb in verbs:
                for mode in MODES:
                    found[verb, mode, stage] = prepared[verb, mode].plan()

        look("planned when empty", WORKERS)
        _fill(filler)
        look("filled and not analysed", WORKERS)
        for session in sessions:
            session.execute("reset enable_seqscan")
        for mode, session in zip(MODES, sessions, strict=True):
            for verb, (params, _) in OTHERS.items():
                prepared[verb, mode] = Prepared(session, texts[verb], params, verb)
        look("filled and not analysed", OTHERS)
        for session in sessions:
            session.execute(settings_of(0))
        filler.execute("analyze")
        look("analysed", WORKERS)
        filler.execute("update pgqueue.jobs set state = 'running', worker_id = %s, fence = 1 where id <= 500", [WORKER])
        for session in sessions:
            session.execute("reset enable_seqscan")
        look("analysed", OTHERS)
        for session in sessions:
            session.execute(settings_of(0))
            session.execute("discard plans")  # planned anew, by statistics that know of no running job
        look("claimed since", WORKERS)
    finally:
        for session in sessions:
            session.close()
    return found


def _fill(connection: psycopg.Connection[Any]) -> None:
    """20,000 jobs in 3 queues of 2 priorities, a quarter of them for tomorrow; some of everything else."""
    connection.execute(
        "insert into pgqueue.jobs (task, queue, priority, run_at, unique_key, expires_at) "
        "select 't', 'q' || i % 3, i % 2, now() + (i % 4 = 0)::int * interval '1 day', 'k' || i, "
        "now() + interval '1 hour' from generate_series(1, 20000) as i"
    )
    connection.execute(
        "insert into pgqueue.job_errors (job_id, fence, attempt, at, error) "
        "select i, 1, 1, now(), 'x' from generate_series(1, 5000) as i"
    )
    connection.execute(
        "insert into pgqueue.finished_jobs (id, state, task, finished_at) "
        "select i, 'completed', 't', now() from generate_series(30000, 35000) as i"
    )
    connection.execute(
        "insert into pgqueue.dead_jobs (id, task, died_at, reason) "
        "select i, 't', now(), 'attempts' from generate_series(40000, 45000) as i"
    )
    # Sleepers that woke up long ago: what a fleet leaves behind while somebody's snapshot keeps vacuum from working.
    connection.execute(
        "insert into pgqueue.sleepers (worker_id, queue, until) "
        "select gen_random_uuid(), 'q' || i % 3, now() - interval '1 hour' from generate_series(1, 5000) as i"
    )


def on_jobs(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [node for node in nodes if node.get("Relation Name") == "jobs" and "Scan" in node["Node Type"]]


def indexes_of_jobs(nodes: list[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for node in nodes if node.get("Index Name", "").startswith("jobs_")}


WORKER_CASES = [(verb, mode, stage) for verb in WORKERS for mode in MODES for stage in STAGES]
OTHER_CASES = [(verb, mode, stage) for verb in OTHERS for mode in MODES for stage in STAGES[1:3]]


@pytest.mark.parametrize(("verb", "mode", "stage"), WORKER_CASES)
def test_a_workers_statement_finds_its_jobs_by_the_right_index(plans: Plans, verb: str, mode: str, stage: str) -> None:
    nodes = plans[verb, mode, stage]
    used, allowed = indexes_of_jobs(nodes), WORKERS[verb][1]
    assert used <= allowed, used
    assert bool(used) is bool(allowed)
    assert not [node for node in on_jobs(nodes) if node["Node Type"] == "Seq Scan"]
    for node in nodes:  # a walk along a whole index is no better
        if node.get("Index Name") in allowed:
            assert (
                node.get("Index Cond")
                or node["Above"] in ("Limit", "LockRows", "Result")
                or (
                    node["Index Name"] == "jobs_running"  # small: what runs
                )
            ), node


@pytest.mark.parametrize(("verb", "mode", "stage"), OTHER_CASES)
def test_what_applications_and_operators_run_uses_an_index_too(plans: Plans, verb: str, mode: str, stage: str) -> None:
    nodes = plans[verb, mode, stage]
    used, allowed = indexes_of_jobs(nodes), OTHERS[verb][1]
    assert used == allowed
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", ["enqueue", "wake"])
def test_looking_for_a_sleeper_passes_by_those_that_are_awake(plans: Plans, verb: str, mode: str) -> None:
    """However many rows they left behind: the index is bounded by `until`."""
    for stage in STAGES[1:3]:
        probes = [node for node in plans[verb, mode, stage] if node.get("Relation Name") == "sleepers"]
        assert len(probes) == {"enqueue": 2, "wake": 1}[verb]  # sleepers, and a lookout
        for probe in probes:
            (scan,) = [node for node in _nodes(probe) if node.get("Index Name") == "sleepers_asleep"]
            assert "until" in scan["Index Cond"], probe


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_pruned_by_the_row_is_found_by_its_key(plans: Plans, mode: str, stage: str) -> None:
    for verb, table, keys in (
        ("prune_finished", re.compile(r"finished_jobs_"), re.compile(r"id = ")),
        ("prune_dead", re.compile("dead_jobs"), re.compile(r"id = |task = ")),
    ):
        scans = [
            node
            for node in plans[verb, mode, stage]
            if "Scan" in node["Node Type"] and table.match(node.get("Relation Name", node.get("Index Name", "")))
        ]
        assert scans
        for node in scans:
            assert node["Node Type"] == "Bitmap Heap Scan" or keys.search(node.get("Index Cond", "")), node


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("verb", ["claim", "claim_above"])
def test_a_claim_stops_at_what_is_due(plans: Plans, verb: str, mode: str, stage: str) -> None:
    """run_at bounds the index: a million jobs scheduled for tomorrow cost nothing."""
    bounds = [node.get("Index Cond", "") for node in on_jobs(plans[verb, mode, stage])]
    assert any("run_at <=" in bound and "queue =" in bound and "priority =" in bound for bound in bounds), bounds


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_claim_from_a_floor_begins_there(plans: Plans, mode: str, stage: str) -> None:
    bounds = [node.get("Index Cond", "") for node in on_jobs(plans["claim_above", mode, stage])]
    assert any("ROW(run_at, id) >=" in bound and "run_at <=" in bound for bound in bounds), bounds


GONE = 30_000
PAGES = re.compile(r"Buffers: shared hit=(\d+)(?: read=(\d+))?")


def test_under_a_held_snapshot_a_claim_from_the_floor_reads_no_more_however_many_jobs_have_gone(
    pgqueue_database: str,
) -> None:
    """What they left in the index cannot be removed as long as somebody might still see them."""
    texts = statements("pgqueue")
    with (
        psycopg.connect(pgqueue_database, autocommit=True) as worker,
        psycopg.connect(pgqueue_database) as held,
    ):
        worker.execute(settings_of(0))
        worker.execute("insert into pgqueue.workers (id, host, pid, expires_at, tasks, concurrency, version) values "
                       "(%s, 'h', 1, now() + interval '1 hour', '{t}', 1, 'test')", [WORKER])  # fmt: skip
        held.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        held.execute("select count(*) from pgqueue.jobs")

        def pages(verb: str) -> int:
            """Pages that one claim of 20 jobs reads."""
            with worker.transaction(force_rollback=True):
                at, low = worker.execute(
                    "select extract(epoch from run_at)::float8, id from pgqueue.jobs order by run_at, id limit 1"
                ).fetchone()
                params = WORKERS[verb][0] | {
                    "limit": 20, "lanes": ["default"], "priorities": [0], "run_ats": [at], "floor_ids": [low],
                }  # fmt: skip
                rows = worker.execute("explain (analyze, buffers, timing off) " + texts[verb], params).fetchall()
            hit, read = next(found for (line,) in rows if (found := PAGES.search(line))).groups(default="0")
            return int(hit) + int(read)

        fill = "insert into pgqueue.jobs (task, run_at) select 't', now() from generate_series(1, %s)"
        worker.execute(fill, [100])
        few = {verb: pages(verb) for verb in ("claim", "claim_above")}
        worker.execute(fill, [GONE])
        worker.execute("update pgqueue.jobs set state = 'running', worker_id = %s where id <= %s", [WORKER, GONE])
        worker.execute("delete from pgqueue.jobs where worker_id = %s", [WORKER])
        many = {verb: pages(verb) for verb in ("claim", "claim_above")}
    assert many["claim_above"] < 2 * few["claim_above"]
    assert many["claim"] > 5 * few["claim"]  # or this test would prove nothing


def test_the_indexes_above_are_those_that_the_headers_name() -> None:
    from pgqueue.sql import source

    for verb, text in source("job", "worker"):
        header = " ".join(line.removeprefix("--").strip() for line in text.splitlines() if line.startswith("--"))
        named = re.search(r"Index(?:es)?: ([^.]*)", header)
        if verb in WORKERS and named:
            words = named[1].replace("the primary key", "jobs_pkey").replace("primary key", "jobs_pkey")
            said = set(re.findall(r"jobs_\w+", words))
            assert said <= WORKERS[verb][1], verb
            assert WORKERS[verb][1] - said <= {"jobs_pkey"}, verb  # by which a row that was found is written


def test_the_figures_of_queues_walk_jobs_once_and_find_the_last_minute_by_an_index(
    pgqueue_database: str,
) -> None:
    """Exact counts take one look at each live and each dead job. What failed or was completed within the last minute is
    found among all that has ended without walking it, and so are the jobs of it."""
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        connection.execute(
            "insert into pgqueue.jobs (task, queue, run_at) select 't', 'q' || i % 3, now() + (i % 4) * interval '1 h'"
            " from generate_series(1, 20000) as i"
        )
        connection.execute(
            "insert into pgqueue.job_errors (job_id, fence, attempt, at, error)"
            " select i, 1, 1, now() - i * interval '10 s', 'x' from generate_series(1, 5000) as i"
        )
        connection.execute(
            "insert into pgqueue.dead_jobs (id, task, died_at, reason, errors)"
            " select 50000 + i, 't', now() - i * interval '10 s', 'attempts', '[]' from generate_series(1, 5000) as i"
        )
        # In the order in which jobs end, since the day began.
        day = "date_trunc('day', now() at time zone 'utc') at time zone 'utc'"
        connection.execute(
            "insert into pgqueue.finished_jobs (id, state, task, finished_at)"
            f" select 100000 + i, 'completed', 't', {day} + i * (now() - {day}) / 100000"
            " from generate_series(0, 99999) as i".encode()
        )
        ((today, old),) = connection.execute(
            f"select to_char({day} at time zone 'utc', 'YYYYMMDD'), now() - {day} > interval '10 min'".encode()
        ).fetchall()
        connection.execute("analyze")
        (row,) = connection.execute("explain (format json) select * from pgqueue.queue_stats").fetchall()
    scans = [node for node in _nodes(row[0][0]["Plan"]) if "Relation Name" in node or "Index Name" in node]

    def walked(table: str) -> list[str]:
        return [one["Alias"] for one in scans if one.get("Relation Name") == table and one["Node Type"] == "Seq Scan"]

    assert len(walked("jobs")) == 1
    assert len(walked("dead_jobs")) == 1
    indexes = {one["Index Name"] for one in scans if "Index Name" in one}
    assert {"jobs_pkey", "dead_jobs_died_at"} <= indexes
    if old:  # else all of the day is of the last minutes
        assert not walked(f"finished_jobs_{today}")
