"""The dashboard in contrib/grafana asks for nothing that is not there: each metric and label is one that a worker
serves, each statement runs, as the role that the page tells to use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from pgqueue import PgQueue, migrate
from pgqueue.counts import NAMES, Counts
from pgqueue.worker.probe import Collector
from tests.docs.test_readme import ROOT
from tests.helpers import job_in, worker_row
from tests.monitor.test_views import SECRETS, busy, granted_to_watch
from tests.roles import new_role

__all__ = ["busy"]  # a fixture

FILE = ROOT / "contrib" / "grafana" / "pgqueue.json"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="not run from a checkout")
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"panels": []}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PROMETHEUS = [(p["title"], t) for p in PANELS for t in p["targets"] if "expr" in t]
STATEMENTS = [(p["title"], t["rawSql"]) for p in PANELS for t in p["targets"] if "rawSql" in t]


def served() -> dict[str, set[str]]:
    """The labels of each series, by name, of a worker that has counted something of everything."""
    counts = Counts()
    for name in NAMES:
        getattr(counts, name)["q", "t"] += 1
    counts.ended(("q", "t"), wait=0.1, run=0.1)
    found: dict[str, set[str]] = {}
    for family in Collector(counts, lambda: (1, 2), lambda: [("q", 1, 2, 3, 4, 5, 0.5)]).collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def series(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The series that a PromQL expression names, each with its matchers."""
    for name, matchers in re.findall(r"\b(pgqueue_\w+)(?:\{([^}]*)\})?", expression):
        yield name, dict(re.findall(r'(\w+)=?[=~!]+"([^"]*)"', matchers))


@pytest.mark.parametrize(("title", "target"), PROMETHEUS, ids=lambda one: one if isinstance(one, str) else "")
def test_each_series_and_label_of_a_panel_is_one_that_workers_serve(title: str, target: dict[str, Any]) -> None:
    known, expression = served(), target["expr"]
    named = list(series(expression))
    assert named, title
    shared = set.intersection(*(known[name] for name, _ in named))
    for name, matchers in named:
        assert matchers.keys() <= known[name], (title, name)
        assert all(value.startswith("$") or value in STATES[name] for value in matchers.values()), (title, matchers)
    kept = {label for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(", ")}
    assert kept <= shared, title
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, title
    assert expression.count("(") == expression.count(")")


STATES = {
    "pgqueue_queue_depth": {"queued", "scheduled", "running", "blocked", "dead"},
    "pgqueue_worker_slots": {"busy", "free"},
}


def test_what_a_gauge_says_of_the_database_is_never_added_up_over_workers() -> None:
    """Every worker tells the same."""
    for title, target in PROMETHEUS:
        for name in ("pgqueue_queue_depth", "pgqueue_oldest_job_age_seconds"):
            for before in re.findall(rf"(\w[\w ,()]*)\({name}", target["expr"]):
                assert re.search(r"\bmax( by \([\w, ]+\) ?)?$", before.strip()), (title, target["expr"])


def test_the_dashboard_shows_all_that_workers_serve() -> None:
    shown = {name for _, target in PROMETHEUS for name, _ in series(target["expr"])}
    assert shown == {name for name in served() if not name.endswith(("_sum", "_count", "_created"))}


def test_the_variables_choose_from_labels_that_there_are() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    for name in ("queue", "task"):
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables[name]["definition"]).groups()  # type: ignore[union-attr]
        assert label in served()[metric]
        assert variables[name]["query"]["query"] == variables[name]["definition"]
    used = set(re.findall(r"\$\{?(\w+)", FILE.read_text(encoding="utf-8")))
    assert used - {"__rate_interval", "__range", "__all"} == variables.keys()


def test_the_panels_have_places_and_data_sources_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        place = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not place & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= place
    for panel in PANELS:
        assert panel["datasource"]["uid"] in ("${prometheus}", "${postgresql}")
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


@pytest.mark.parametrize(("title", "statement"), STATEMENTS, ids=[title for title, _ in STATEMENTS])
def test_each_statement_runs_as_the_role_that_watches_and_shows_something(
    app: PgQueue, connection: psycopg.Connection[Any], pgqueue_database: str, busy: Any, title: str, statement: str
) -> None:
    connection.execute("select pgqueue.add_schedule('nightly', 'shop.send', '0 2 * * *')")
    with (
        new_role(pgqueue_database) as role,
        psycopg.connect(pgqueue_database, user=role, autocommit=True, row_factory=dict_row) as theirs,
    ):
        granted_to_watch(connection, role)
        rows = theirs.execute(statement.replace("${schema}", "pgqueue").encode()).fetchall()
    assert rows, title
    assert not [word for word in SECRETS if word in repr(rows)]
    numbers = [name for row in rows for name in row if name.endswith(("_seconds", "_percent"))]
    assert all(row[name] is None or isinstance(row[name], float) for row in rows for name in numbers if name in row)


def test_the_statements_run_in_a_schema_of_any_name(app: PgQueue, pgqueue_database: str) -> None:
    odd = "it's odd 100%"
    migrate.upgrade(pgqueue_database, odd)
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        other = PgQueue(pgqueue_database, schema=odd)
        worker_row(other, connection, ["t"])
        job_in(other, connection, "queued", "t")
        other.close()
        for _, statement in STATEMENTS:
            connection.execute(statement.replace("${schema}", odd).encode())
