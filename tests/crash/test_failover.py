"""The primary dies and its synchronous standby takes over: with both hosts in the URL a worker carries on, and
whatever was acknowledged is there."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue.embedded import find_binaries
from pgqueue.migrate import upgrade
from pgqueue.testing import _temp_dir
from tests.crash import tasks
from tests.crash.processes import ended, health
from tests.helpers import eventually

USER = "nobody"  # PostgreSQL refuses root


def binaries() -> Path | None:
    """Where there is a server with what makes a standby, for whoever has to run it."""
    wanted = "postgres", "initdb", "pg_basebackup"
    for directory in (find_binaries(), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)):
        if all(runs(directory / name) for name in wanted):
            return directory
    return None


def become() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    found = pwd.getpwnam(USER)
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}


def runs(command: Path) -> bool:
    try:
        return subprocess.run([command, "--version"], capture_output=True, cwd="/", **become()).returncode == 0
    except OSError:
        return False


class Pair:
    """A primary `a` and a synchronous standby `b`."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self._directory = directory
        self._programs = programs
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {name: _free_port() for name in "ab"}

    def begin(self) -> None:
        self._run("initdb", "-D", "a", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start("a")
        with self.connect("a") as connection:
            connection.execute("select pg_create_physical_replication_slot('b')")
        primary = f"host=127.0.0.1 port={self.ports['a']} user=postgres"
        self._run("pg_basebackup", "-d", primary, "-D", "b", "-R", "-S", "b", "-c", "fast", "-X", "stream", "--no-sync")
        self.start("b")
        with self.connect("a") as connection:
            connection.execute("alter system set synchronous_standby_names = 'FIRST 1 (b)'")
            connection.execute("select pg_reload_conf()")
            eventually(lambda: connection.execute("select sync_state from pg_stat_replication").fetchone() == ("sync",))

    @property
    def url(self) -> str:
        a, b = self.ports["a"], self.ports["b"]
        return f"postgresql://postgres@127.0.0.1:{a},127.0.0.1:{b}/postgres"

    def connect(self, name: str) -> psycopg.Connection[Any]:
        return psycopg.connect(f"host=127.0.0.1 port={self.ports[name]} user=postgres dbname=postgres", autocommit=True)

    def start(self, name: str) -> None:
        data, port = self._directory / name, self.ports[name]
        primary = f"host=127.0.0.1 port={self.ports['a']} user=postgres application_name=b"
        settings = [
            f"primary_conninfo={primary}",
            "listen_addresses=127.0.0.1",
            f"port={port}",
            "unix_socket_directories=",
            "fsync=off",
        ]
        command = [self._programs / "postgres", "-D", data, *(word for one in settings for word in ("-c", one))]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", "env": {"LC_ALL": "C"}}
        self._servers[name] = subprocess.Popen(command, **quiet, **become())
        eventually(lambda: self._answers(name))

    def _answers(self, name: str) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self.connect(name):
            return True
        return False

    def kill(self, name: str) -> None:
        """The whole server at once, as a machine that loses its power."""
        server = self._servers.pop(name)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        server.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        server.wait()

    def stop(self) -> None:
        for server in self._servers.values():
            server.send_signal(signal.SIGQUIT)
            server.wait(10)

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._programs / program, *words],
            cwd=self._directory,
            capture_output=True,
            env={"LC_ALL": "C"},
            **become(),
        )
        assert done.returncode == 0, done.stderr.decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def pair() -> Iterator[Pair]:
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL with pg_basebackup that can be run here")
    with tempfile.TemporaryDirectory(dir=_temp_dir(), prefix="pgqueue-") as directory:
        if os.geteuid() == 0:
            os.chown(directory, pwd.getpwnam(USER).pw_uid, -1)
        made = Pair(Path(directory), programs)
        try:
            made.begin()
            yield made
        finally:
            made.stop()


class Shop(threading.Thread):
    """Enqueues one job after the other, whatever happens; remembers those whose commit it heard of."""

    def __init__(self, url: str) -> None:
        super().__init__(name="shop")
        self._url = url
        self.closing = threading.Event()
        self.acknowledged: list[int] = []
        self.failures = 0

    def run(self) -> None:
        while not self.closing.is_set():
            try:
                with psycopg.connect(self._url, target_session_attrs="read-write", connect_timeout=2) as connection:
                    while not self.closing.wait(0.005):
                        job = tasks.quick.enqueue(connection).id
                        connection.commit()
                        self.acknowledged.append(job)
            except psycopg.Error:
                self.failures += 1
                self.closing.wait(0.1)


def test_a_standby_takes_over_and_no_acknowledged_job_is_lost(start, ledger, pair):
    upgrade(f"{pair.url}?target_session_attrs=read-write", schema="pgqueue")
    worker = start(url=pair.url, concurrency=5, metrics_port=0)
    eventually(lambda: worker.log("probe") and health(worker) == (200, "ready\n"))
    shop = Shop(pair.url)
    shop.start()
    try:
        eventually(lambda: len(shop.acknowledged) > 50, timeout=30)
        ledger.wait_for("finished", shop.acknowledged[0])
        pair.kill("a")
        eventually(lambda: worker.log("database_away"))
        # The other server is there, and a standby: that is not enough.
        eventually(lambda: health(worker)[1].startswith("not ready: the database is away: "), timeout=30)
        assert health(worker)[0] == 503
        with pair.connect("b") as standby:
            standby.execute("select pg_promote()")
        before = len(shop.acknowledged)
        eventually(lambda: len(shop.acknowledged) > before + 50, timeout=30)
        eventually(lambda: health(worker) == (200, "ready\n"), timeout=30)
    finally:
        shop.closing.set()
        shop.join()
    assert shop.failures

    with pair.connect("b") as connection:
        for job in shop.acknowledged:
            assert ended(connection, job)[:2] == ("completed", 1)
        assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)
        eventually(lambda: connection.execute("select count(*) from pgqueue.jobs").fetchone() == (0,))
    assert worker.log("database_back")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.text()
