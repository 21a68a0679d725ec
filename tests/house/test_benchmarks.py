"""The benchmarks can be trusted as far as that shows without measuring: programs whole, reports read right, and who
cannot take part left out with a reason."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import psycopg
import pytest

from benchmarks import harness, raw
from benchmarks.contestants import OURS, RAW, Failed, Program, last_words, percentile, starts, totals
from benchmarks.peers import install
from benchmarks.peers.registry import PEERS, Peer, wanted

PROGRAMS = Path(install.__file__).parent
EACH = pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)


@pytest.fixture
def database(pgqueue_database: str) -> str:
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        connection.execute(raw.TABLE)
    return pgqueue_database


@EACH
def test_a_peers_program_parses_and_has_every_verb(peer: Peer) -> None:
    path = PROGRAMS / (peer.program if peer.node else f"{peer.program}.py")
    text = path.read_text(encoding="utf-8")
    if peer.node:
        found = set(re.findall(r"^  (\w+): (?:async )?(?:\w+|\(\)) =>", text, re.MULTILINE))
        if node := shutil.which("node"):
            subprocess.run([node, "--check", str(path)], check=True, capture_output=True)
    else:
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        (entry,) = [call for call in calls if ast.unparse(call.func) == "verbs"]
        found = {str(keyword.arg) for keyword in entry.keywords}
    assert found == {"one", "bulk", "work", "offer"} | ({"schema"} if peer.prepares else set())


@EACH
def test_a_peers_packages_are_pinned(peer: Peer) -> None:
    pin = r"[\w-]+@\d+\.\d+\.\d+" if peer.node else r"[\w-]+(\[[\w,]+\])?==\d+\.\d+\.\d+"
    assert [package for package in peer.packages if not re.fullmatch(pin, package)] == []


def test_peers_are_asked_for_by_name_or_all_together() -> None:
    assert wanted("") == []
    assert wanted("all") == wanted("1") == list(PEERS.values())
    assert wanted("oban, pg-boss") == [PEERS["oban"], PEERS["pg-boss"]]
    with pytest.raises(ValueError, match=r"no peer 'river'; there are procrastinate, .*bullmq, and all"):
        wanted("oban river")


def test_a_peer_that_cannot_be_had_is_skipped_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # neither node nor redis-server
    monkeypatch.setattr(install, "find_pythons", lambda: {"3.11": sys.executable})
    said: list[str] = []
    assert install.available([PEERS["graphile-worker"], PEERS["bullmq"], PEERS["oban"]], said.append) == []
    assert said == [
        "skipped: graphile-worker: no node and npm on PATH",
        "skipped: bullmq: no redis-server on PATH",
        "skipped: oban: no Python 3.12 or newer",
    ]


def test_half_an_installation_is_made_again_and_a_whole_one_is_not(tmp_path: Path) -> None:
    made: list[str] = []

    def fail() -> None:
        made.append("half")
        raise install.Unavailable("no route to host")

    def make() -> None:
        made.append("whole")

    with pytest.raises(install.Unavailable):
        install._once(tmp_path, ["peer==1"], fail)
    install._once(tmp_path, ["peer==1"], make)
    install._once(tmp_path, ["peer==1"], make)
    assert made == ["half", "whole"]
    install._once(tmp_path, ["peer==2"], make)
    assert made == ["half", "whole", "whole"]


def test_reports_of_several_processes_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "count-1").write_text(f"{500:020} {20:020}\n")
    (tmp_path / "count-2").write_text(f"{400:020} {30:020}\n")
    (tmp_path / "count-3").write_text("")
    assert (totals(tmp_path).first, totals(tmp_path).jobs) == (400, 50)
    (tmp_path / "jobs-1").write_text(
        "7 100\n0 200\n7 300\n8 4"
    )  # 7 at 100 was the warm-up; the last line is unfinished
    assert starts(tmp_path) == {0: 200, 7: 300}


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 201)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (100, 198, 200)
    assert percentile([3.0], 99) == 3.0


def test_the_last_words_of_a_program_are_its_error() -> None:
    assert last_words("at x\nError: no such queue\n    at y\n\nNode.js v20.1.0\n") == "Error: no such queue"
    assert last_words("Traceback:\n  x\npsycopg.errors.UndefinedTable: jobs") == "psycopg.errors.UndefinedTable: jobs"
    assert last_words("") == "it ended without a word"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("program", [RAW, OURS], ids=["raw", "pgqueue"])
def test_a_drain_runs_every_job_once_and_leaves_none(database: str, program: Program, processes: int) -> None:
    rate = program.drain(200, processes)(database)
    assert rate > 0
    with psycopg.connect(database) as connection:
        (left,) = connection.execute(program.left)  # type: ignore[call-overload]
        (done,) = connection.execute("select count(*) from pgqueue.finished_jobs where state = 'completed'")
    assert left == (False,)
    assert done == ((200,) if program is OURS else (0,))


@pytest.mark.parametrize("program", [RAW, OURS], ids=["raw", "pgqueue"])
def test_a_pickup_gives_both_percentiles(database: str, program: Program) -> None:
    found = program.pickup(5)(database)
    assert 0 < found["p50"] <= found["p99"]


def test_a_program_that_dies_is_told_with_its_last_words(database: str) -> None:
    dead = Program("dead", [sys.executable, "-c", "raise ValueError('no such verb')"], "select false", prepares=False)
    with pytest.raises(Failed, match="one: ValueError: no such verb"):
        dead.one(1)(database)


def test_a_worker_that_dies_does_not_hang_the_measure(database: str) -> None:
    script = "import sys; sys.exit('out of luck' if sys.argv[1] == 'work' else 0)"
    dead = Program("dead", [sys.executable, "-c", script], "select false", prepares=False)
    with pytest.raises(Failed, match="work: out of luck"):
        dead.drain(1)(database)


def test_a_peer_that_fails_is_left_out_and_ours_is_not_forgiven(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pgqueue_database: str
) -> None:
    monkeypatch.setattr(harness, "server", lambda: nullcontext(pgqueue_database))
    monkeypatch.setattr(harness, "fresh_database", nullcontext)
    monkeypatch.setattr(harness, "ROUNDS", 3)
    tries: list[str] = []

    def fails(_: str) -> float:
        tries.append("")
        raise Failed("work: no such queue")

    steady, several = iter([10.0, 30.0, 20.0]), iter([1.0, 2.0, 3.0])
    contestants = {
        "floor": lambda _: {"p50": next(steady), "p99": 40.0},
        "mine": lambda _: {"p50": next(several), "p99": 80.0},
        "peer": fails,
    }
    medians = harness.compare(
        "T", "ms", contestants, "floor", more_is_better=False, notes=["peer 1.0"], may_fail=["peer"]
    )
    assert medians == {"floor p50": 20.0, "floor p99": 40.0, "mine p50": 2.0, "mine p99": 80.0}
    said = capsys.readouterr().out
    assert "peer 1.0\np50\n" in said
    assert "synchronous_commit off" in said  # the tests' server: what is printed was asked, not assumed
    assert re.search(r"mine +2\.00 ms  \(1\.00 to 3\.00\)  10\.00 of floor", said)
    assert said.endswith("failed: peer: work: no such queue\n")
    assert len(tries) == 1
    with pytest.raises(Failed):
        harness.compare("T", "ms", {"floor": fails}, "floor", more_is_better=True)
