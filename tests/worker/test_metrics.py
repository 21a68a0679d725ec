"""I28: what a worker serves at /metrics is what the tables hold, whatever becomes of its jobs, its processes and the
database."""

from __future__ import annotations

import urllib.request
from collections import Counter
from contextlib import suppress
from typing import Any

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from pgqueue import db
from tests.crash.processes import health
from tests.helpers import eventually, job_in, run, worker_row
from tests.worker import outcomes

Key = tuple[str, str]


def served(worker: Any) -> dict[str, dict[tuple[str, ...], float]]:
    """The samples of a scrape by name and labels, in the order of the labels' names."""
    (line,) = worker.log("probe")
    with urllib.request.urlopen(f"{line['message'].rpartition(' ')[2]}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def ended(connection: psycopg.Connection[Any], state: str) -> Counter[Key]:
    query = "select queue, task, count(*) from pgqueue.all_jobs where state = %s group by 1, 2"
    return Counter({(queue, task): count for queue, task, count in connection.execute(query, [state])})


def errors(connection: psycopg.Connection[Any]) -> Counter[Key]:
    """Failed attempts of the jobs that have ended; deaths of their processes are counted apart."""
    query = (
        "select queue, task, sum(jsonb_array_length(errors) - case when reason = 'crashed' then crashes else 0 end)"
        " from pgqueue.all_jobs where errors is not null group by 1, 2"
    )
    return Counter({(queue, task): int(count) for queue, task, count in connection.execute(query)})


def test_what_is_served_is_what_the_tables_hold_whatever_becomes_of_the_jobs(start, app, connection, ledger) -> None:
    sent = [job_in(app, connection, state, "tests.worker.outcomes.succeed") for state in ("running", "blocked")]
    connection.execute("update pgqueue.workers set expires_at = now() - interval '1 s'")  # who ran it is gone
    sent += list(outcomes.succeed.enqueue_many(connection, [(n,) for n in range(20)]))
    sent += outcomes.fail.enqueue_many(connection, [(0,), (1,), (2,), (3,)])
    sent += outcomes.steer.enqueue_many(connection, [("cancel",), ("dead",), ("snooze",)])
    sent.append(outcomes.die_apart.enqueue(connection).id)
    query = "select pgqueue.enqueue('tests.worker.outcomes.succeed', '{\"n\": \"seven\"}')"  # no such number
    sent.append(connection.execute(query).fetchone()[0])
    app.queues.pause("paused")
    sent.append(outcomes.late.options(expires_in=0.001).enqueue(connection).id)
    sent.append(outcomes.late.enqueue(connection).id)
    sent.append(outcomes.succeed.options(delay=3600).enqueue(connection).id)
    lost, asked = outcomes.wait.enqueue(connection, "lost").id, outcomes.wait.enqueue(connection, "asked").id
    sent += [lost, asked]
    worker = start("tests.worker.outcomes:app", metrics_port=0, concurrency=4)
    directory = ledger.path.parent
    eventually(lambda: (directory / "lost began").exists() and (directory / "asked began").exists(), timeout=30)
    app.jobs.cancel(asked)
    other = worker_row(app, connection, ["tests.worker.outcomes.wait"])
    take = "update pgqueue.jobs set worker_id = %s, fence = fence + 1 where id = %s returning fence"
    ((fence,),) = connection.execute(take, [other, lost]).fetchall()
    (directory / "lost").touch()
    left = "select count(*) from pgqueue.jobs where state in ('queued', 'running') and run_at <= now()"
    eventually(
        lambda: connection.execute(left).fetchone() == (2,), timeout=30
    )  # that of the paused queue, and the lost
    run(connection, db.complete(app.statements, other, [lost], [fence], ["null"]))
    sent.append(outcomes.die.enqueue(connection).id)  # now, so that it takes nobody along
    eventually(lambda: sum(ended(connection, "dead").values()) == 4, timeout=30)

    dead, died = ended(connection, "dead"), ("other", "tests.worker.outcomes.die")
    failed = errors(connection)
    tables = {
        "completed": ended(connection, "completed") - Counter({("default", "tests.worker.outcomes.wait"): 1}),
        "failed": +failed,
        "retried": failed - dead,  # every one but the last
        "dead_lettered": dead,
        "rescued": Counter({
            died: 2,
            ("other", "tests.worker.outcomes.die_apart"): 1,
            ("default", "tests.worker.outcomes.succeed"): 1,
        }),
        "cancelled": ended(connection, "cancelled"),
        "expired": ended(connection, "expired"),
    }  # fmt: skip
    # What a death of a process of its own left behind is an error of an attempt, and not a failure of the job's.
    tables["failed"] -= Counter({("other", "tests.worker.outcomes.die_apart"): 1})
    tables["retried"] -= Counter({("other", "tests.worker.outcomes.die_apart"): 1})
    assert (sum(tables["cancelled"].values()), sum(tables["expired"].values()), dead[died]) == (2, 1, 1)

    def counters() -> dict[str, Counter[Key]]:
        now = served(worker)
        return {name: Counter(now.get(f"pgqueue_jobs_{name}_total", {})) for name in tables}

    with suppress(AssertionError):  # what differs is told below
        eventually(lambda: counters() == tables, timeout=15)
    assert counters() == tables
    now = served(worker)
    assert now["pgqueue_claims_lost_total"] == {(): 1.0}
    # Each attempt that a process saw end is in both histograms once: a snooze too, a lost claim and a death not.
    attempts = tables["completed"] + tables["failed"] + tables["cancelled"] + Counter({
        ("default", "tests.worker.outcomes.steer"): 1, ("other", "tests.worker.outcomes.die_apart"): 1
    })  # fmt: skip
    for name in ("pgqueue_job_wait_seconds", "pgqueue_job_run_seconds"):
        assert Counter(now[f"{name}_count"]) == attempts
        assert {
            (queue, task): count for (le, queue, task), count in now[f"{name}_bucket"].items() if le == "+Inf"
        } == attempts
    stats = connection.execute(
        "select queue, queued, scheduled, running, blocked, dead from pgqueue.queue_stats"
    ).fetchall()
    states = ("queued", "scheduled", "running", "blocked", "dead")
    assert now["pgqueue_queue_depth"] == {
        (queue, state): count for queue, *counts in stats for state, count in zip(states, counts, strict=True)
    }
    live = sum(count for (_, state), count in now["pgqueue_queue_depth"].items() if state != "dead")
    over = 1 + sum(sum(tables[name].values()) for name in ("completed", "dead_lettered", "cancelled", "expired"))
    assert len(sent) == live + over  # none is lost
    assert now["pgqueue_oldest_job_age_seconds"].keys() == {("default",), ("other",), ("paused",)}
    assert now["pgqueue_oldest_job_age_seconds"]["paused",] > 0
    assert now["pgqueue_database_up"] == {(): 1}
    # The process that ran a suspect has gone, too, and took nothing along of what was counted.
    eventually(lambda: served(worker)["pgqueue_worker_slots"] == {("busy",): 0, ("free",): 4})
    assert counters() == tables


def test_slots_are_busy_while_jobs_run(start, connection, ledger) -> None:
    jobs = outcomes.wait.enqueue_many(connection, [("go",), ("go",), ("go",)])
    worker = start("tests.worker.outcomes:app", metrics_port=0, concurrency=2, processes=2)
    eventually(lambda: worker.log("probe"), timeout=30)
    eventually(lambda: served(worker)["pgqueue_worker_slots"] == {("busy",): 3, ("free",): 1}, timeout=30)
    (ledger.path.parent / "go").touch()
    eventually(lambda: served(worker)["pgqueue_worker_slots"] == {("busy",): 0, ("free",): 4})
    assert ended(connection, "completed") == {("default", "tests.worker.outcomes.wait"): len(jobs)}


def test_while_the_database_is_away_the_worker_says_so_and_goes_on_counting_from_where_it_was(
    start, proxy, connection
) -> None:
    worker = start("tests.worker.outcomes:app", url=proxy.url, metrics_port=0, lease=6)
    outcomes.succeed.enqueue_many(connection, [(1,)] * 5)
    done = {("default", "tests.worker.outcomes.succeed"): 5}
    eventually(lambda: worker.log("probe"), timeout=30)
    eventually(lambda: served(worker).get("pgqueue_jobs_completed_total") == done, timeout=30)
    assert health(worker) == (200, "ready\n")
    proxy.stall()
    away = eventually(lambda: (now := served(worker))["pgqueue_database_up"] == {(): 0} and now, timeout=30)
    assert "pgqueue_queue_depth" not in away  # of which nobody knows: no line in a graph is better than a wrong one
    assert away["pgqueue_jobs_completed_total"] == done
    eventually(lambda: health(worker)[0] == 503)
    proxy.go_on()
    eventually(lambda: served(worker)["pgqueue_database_up"] == {(): 1}, timeout=30)
    eventually(lambda: health(worker) == (200, "ready\n"), timeout=30)


def test_an_address_of_ones_own_choice_is_served(start) -> None:
    worker = start("tests.worker.outcomes:app", metrics_port=0, metrics_host="127.0.0.2")
    (line,) = eventually(lambda: worker.log("probe"), timeout=30)
    assert line["message"].startswith("metrics and health on http://127.0.0.2:")
    assert served(worker)["pgqueue_database_up"] == {(): 1}
