"""Every knob once: name, unit, default, reason. And the database URL: what people write becomes what psycopg takes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import psycopg
from psycopg import conninfo

from pgqueue.errors import ConfigurationError

VERSION = "0.1.0"

MIN_SERVER = 14  # the oldest major version of PostgreSQL

DEFAULT_SCHEMA = "pgqueue"
MAX_SCHEMA_BYTES = 40  # leaves room for the names derived from it within PostgreSQL's 63 bytes

# -- what one job may be ------------------------------------------------------------------------------------------
DEFAULT_QUEUE = "default"
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)  # of a queue and of a task
DEFAULT_MAX_ATTEMPTS = 4
MAX_ARGS_BYTES = 256 * 1024  # a queue is no object store: a larger payload slows every claim that passes by
MAX_RESULT_BYTES = 256 * 1024  # a larger result is dropped, and the job still completes
MAX_NOTE_CHARS = 1_000  # of ctx.progress(): a line for people
MAX_LOG_LINES = 1_000  # of one attempt, of a task that keeps its log: a job's log, and no archive
MAX_LOG_CHARS = 2_000  # of one of them
MAX_DEPTH = 100  # nesting of arguments; Python's own parser stops near 1,000
MAX_ERROR_CHARS = 10_000  # of an error's message
MAX_TRACEBACK_CHARS = 100_000  # the end of it is kept: that is where the cause stands
BULK_CHARS = (
    8_000_000  # of arguments in one statement of enqueue_many, or a chunk of large ones would not fit in memory
)
BULK_CHUNK = 5_000  # jobs in one statement of enqueue_many: past that the gain per job is lost in the noise

# -- crashes ------------------------------------------------------------------------------------------------------
MAX_CRASHES = 3  # deaths of a process, each seen by its supervisor, after which the job is dead-lettered as crashed

# -- runs that the database or the machine has ended, and not the job -------------------------------------------------
# So often a job is given back without an attempt used. No outage hits one job so often by chance, and a job whose own
# statement brings the server down does so ten times and once for each attempt, not for ever.
MAX_HINDERED = 10
HINDERED_DELAY = 1.0, 60.0  # seconds before it runs again, doubled each time up to the second

# -- a database that does not answer --------------------------------------------------------------------------------
# How long a worker waits for one answer before it drops the connection and opens another, as a part of its lease: two
# connections in a row may be dead, and the lease is still renewed in time.
HEART_PATIENCE = 1 / 6
LINK_PATIENCE = 1 / 3  # claim and settle
PATIENCE = 5.0  # seconds, where there is no lease to go by
CHORE_PATIENCE = 30.0  # seconds; many dead workers or a large table take long, and other workers do the same chores
MOST_PATIENCE = 60.0  # seconds; where a bound ends up that the server itself, being slow, calls too short

# -- finished jobs ------------------------------------------------------------------------------------------------
RETENTION = 86_400.0  # seconds a finished job stays at least; whole days (UTC) are emptied at once
PARTITIONS_AHEAD = 7  # days: so long may every worker be down before a settle finds no partition


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker works. Every field is a flag of `pgqueue worker` and a PGQUEUE_… variable. Seconds throughout."""

    queues: tuple[str, ...] | None = field(default=None, metadata={"help": "Queues to serve, by name; None is all."})
    concurrency: int = field(default=20, metadata={"help": "Jobs at once in each process."})
    processes: int = field(default=1, metadata={"help": "Child processes; each runs `concurrency` jobs."})
    grace: float = field(default=30.0, metadata={"help": "Time that running jobs get to finish after SIGTERM."})
    lease: float = field(
        default=15.0, metadata={"help": "A worker that has not renewed for so long is dead, and its jobs are rescued."}
    )
    poll_interval: float = field(
        default=1.0, metadata={"help": "Longest sleep of an idle worker; NOTIFY normally wakes it before that."}
    )
    sweep_interval: float = field(
        default=5.0, metadata={"help": "Time between looks for dead workers and expired jobs."}
    )
    listen_url: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "A direct URL for LISTEN, when the database URL goes through a pooler."},
    )
    metrics_port: int | None = field(
        default=None, metadata={"help": "Serve /metrics and /health on this port; 0 chooses one."}
    )
    metrics_host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to serve them on; there is no password, so think of who reaches it."},
    )
    max_jobs_per_process: int | None = field(
        default=None, metadata={"help": "Replace a process after so many jobs; it finishes what it runs."}
    )
    max_memory: int | None = field(
        default=None, metadata={"help": "Replace a process that holds more than so many MB of memory (RSS)."}
    )
    max_age: float | None = field(default=None, metadata={"help": "Replace a process after so many seconds."})
    drain: bool = field(default=False, metadata={"help": "Exit when nothing is left to run."})

    def __post_init__(self) -> None:
        for name, least, most in (("concurrency", 1, 10_000), ("processes", 1, 1_000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigurationError(f"{name} must be a whole number between {least} and {most}, not {value!r}")
        for name, least, most in (("max_jobs_per_process", 1, 1_000_000_000), ("max_memory", 1, 1_000_000_000)):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most
            ):
                raise ConfigurationError(
                    f"{name} must be a whole number between {least} and {most}, or left out, not {value!r}"
                )
        age = self.max_age
        if age is not None and (isinstance(age, bool) or not isinstance(age, int | float) or not 1 <= age <= 1e9):
            raise ConfigurationError(f"max_age must be at least 1 second, or left out, not {age!r}")
        for name, lower, upper in (
            ("grace", 0.0, 86_400.0),
            ("lease", 0.5, 3_600.0),
            ("poll_interval", 0.01, 3_600.0),
            ("sweep_interval", 0.01, 3_600.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not lower <= value <= upper:
                raise ConfigurationError(f"{name} must be between {lower:g} and {upper:g} seconds, not {value!r}")
        port = self.metrics_port
        if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65_536):
            raise ConfigurationError(f"metrics_port must be a port number below 65536, not {port!r}")
        if not isinstance(self.metrics_host, str) or not self.metrics_host.strip():
            raise ConfigurationError(f"metrics_host must be an address such as 127.0.0.1, not {self.metrics_host!r}")
        if self.listen_url is not None:
            if not isinstance(self.listen_url, str):
                raise ConfigurationError(f"listen_url must be a URL, not {type(self.listen_url).__qualname__}")
            conninfo_from_url(self.listen_url)
        if self.queues is not None and not self.queues:
            raise ConfigurationError("queues must name at least one queue; leave it out to serve all")
        if not all(isinstance(name, str) for name in self.queues or ()) or isinstance(self.queues, str):
            raise ConfigurationError(f"queues must be a list of names, not {self.queues!r}")
        for name in self.queues or ():
            if not NAME.fullmatch(name):  # no job could ever be in it
                raise ConfigurationError(f"queues: a name is 1 to 128 letters, digits and _ . : - , not {name[:40]!a}")

    @property
    def beat_interval(self) -> float:
        """Three beats a lease: two may be lost before anybody thinks the worker dead."""
        return self.lease / 3

    @property
    def recycles(self) -> tuple[str, ...]:
        """Those of the settings that replace processes which are set."""
        names = ("max_jobs_per_process", "max_memory", "max_age")
        return tuple(name for name in names if getattr(self, name) is not None)

    @property
    def patience(self) -> float:
        """Seconds that a claim or a settle waits for the database's answer."""
        return self.lease * LINK_PATIENCE

    def as_dict(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


# -- the database -------------------------------------------------------------------------------------------------

_LOOKS = "it must look like postgresql://user:password@host:5432/dbname, with % @ : / in a password percent-encoded"
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg")


def database_url(given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """`given`, else PGQUEUE_DATABASE_URL. Raises ConfigurationError when neither says where the database is."""
    url = given if given is not None else environ.get("PGQUEUE_DATABASE_URL")
    if not url or not url.strip():
        raise ConfigurationError(
            "no database: pass a URL such as postgresql://user@host/dbname, or set PGQUEUE_DATABASE_URL"
        )
    return url.strip()


def conninfo_from_url(url: str) -> str:
    """What psycopg connects with, from a URL as people write it (also SQLAlchemy's), or a libpq keyword string.

    psycopg's own complaint would print the string with its password (measured: for an unknown scheme, a missing colon,
    a bad percent escape), so a malformed one raises ConfigurationError that repeats none of it.
    """
    scheme, separator, rest = url.partition("://")
    if separator:
        if scheme not in _SCHEMES:
            raise ConfigurationError(f"the database URL starts with {_word(scheme)}://; it must be postgresql://")
        if _stray_at(rest):
            raise ConfigurationError(f"the database URL is malformed: {_LOOKS}")
        if [name for name, _ in parse_qsl(url.partition("?")[2])].count("host") > 1:  # libpq would take the last one
            raise ConfigurationError(
                "several hosts are written postgresql://h1:5432,h2:5433/dbname, not as ?host=…&host=…"
            )
        url = "postgresql://" + rest.rstrip().replace(" ", "%20")  # SQLAlchemy writes them bare, libpq 17 refuses them
    elif "=" not in url:
        raise ConfigurationError("the database URL is malformed: it must look like postgresql://user@host/dbname")
    try:
        known = conninfo.conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError) as error:
        raise ConfigurationError(f"the database URL is malformed: {_reason(str(error))}") from None
    if "\0" in url:  # where libpq stops reading
        raise ConfigurationError("the database URL is malformed: it contains a NUL character")
    port = known.get("port")
    for one in str(port).split(",") if port else ():
        if one and not (one.isdecimal() and 0 < int(one) < 65_536):
            raise ConfigurationError("the database URL is malformed: the port must be a number from 1 to 65535")
    return url


def describe(url: str) -> str:
    """Where a URL leads, without user and password: for logs and error messages. Never raises."""
    try:
        parts = conninfo.conninfo_to_dict(conninfo_from_url(url))
    except (ConfigurationError, psycopg.Error):
        return "the database"
    host, port = parts.get("host") or parts.get("hostaddr") or "the local socket", parts.get("port")
    where = f"{host}:{port}" if port else str(host)
    return f"{where}/{parts.get('dbname') or parts.get('user') or ''}"


def scrub(text: str, url: str) -> str:
    """`text` without any password that `url` holds, in whatever encoding it may appear there."""
    found: set[str] = set()
    try:
        known = conninfo.conninfo_to_dict(conninfo_from_url(url))
        found.update(str(value) for name, value in known.items() if "password" in name or "secret" in name)
    except ConfigurationError:
        pass
    try:
        split = urlsplit(url)
        query = [value for name, value in parse_qsl(split.query) if "password" in name]
        found.update(secret for secret in (split.password, *query) if secret)
    except ValueError:
        pass
    if "@" in url and "://" in url:  # also when urlsplit sees no password in a malformed one
        login = url.split("://", 1)[1].rsplit("@", 1)[0]
        found.update(part for part in login.split(":", 1)[1:] if part)
    found |= {unquote(one) for one in found} | {one.replace(" ", "%20") for one in found}
    for secret in sorted(found - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def schema_name(name: str) -> str:
    """`name` as given, if it can be a schema: 1 to 40 bytes, no NUL. It is always quoted, so any character will do."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ConfigurationError(f"schema must be a name of 1 to {MAX_SCHEMA_BYTES} bytes")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigurationError("schema contains a lone surrogate, which is not valid text") from None
    if length > MAX_SCHEMA_BYTES:
        raise ConfigurationError(f"schema must be at most {MAX_SCHEMA_BYTES} bytes long, not {length}")
    if name.startswith("pg_"):
        raise ConfigurationError("schema must not start with pg_: PostgreSQL keeps those names to itself")
    return name


def positive_seconds(name: str, value: object) -> float:
    """`value` as a positive, finite number of seconds; ConfigurationError names the setting otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{name} must be a positive number of seconds, not {value!r}")
    return float(value)


def _word(text: str) -> str:
    """A scheme is shown only if it is one: a URL without a colon could carry a password there."""
    return text if text.replace("+", "").isalnum() and len(text) < 30 else "something else"


def _reason(message: str) -> str:
    """psycopg's reason without the quoted text that holds the URL or a piece of it."""
    for known in ("invalid percent-encoded token", "invalid port number", "invalid connection option", "missing"):
        if known in message:
            return known
    return _LOOKS


def _stray_at(rest: str) -> bool:
    """Whether there is a bare @ beyond the one before the host: libpq would take half of a password for the name of the
    host or of the database, and those are shown."""
    user, _, tail = rest.partition("@")
    if "/" in user:
        return bool(tail) and "?" not in user
    return "@" in tail.partition("?")[0]
