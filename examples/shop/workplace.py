"""Where the demo writes: .demo/ in the checkout, and nowhere else; where that cannot be, a directory below /tmp.

One program at a time works there: `make demo` begins by emptying it, and must not do so under a running server.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout: where `examples` can be imported from


class WorkplaceTaken(Exception):
    """Another demo, or services.py, is working there, or it cannot be written to."""


@contextmanager
def workplace() -> Iterator[Path]:
    """The directory, locked. Raises WorkplaceTaken."""
    work = ROOT / ".demo"
    if not _usable(work):
        work = Path(f"/tmp/pgqueue-demo-{os.geteuid()}")  # not tempfile.gettempdir(): root's may be closed to `nobody`
        work.mkdir(mode=0o755, exist_ok=True)
        if work.is_symlink() or work.stat().st_uid != os.geteuid() or not _usable(work):
            raise WorkplaceTaken(f"neither {ROOT / '.demo'} nor {work} can be written to")
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it, however this process ends
        except BlockingIOError:
            raise WorkplaceTaken(
                f"a demo, or examples.shop.services, or the worker of a demo that was killed, is at work in {work}:"
                " stop it first; `pgrep -fl examples.shop` finds it"
            ) from None
        os.set_inheritable(lock.fileno(), True)  # a worker that outlives a killed demo keeps the next one out
        yield work


def _usable(work: Path) -> bool:
    """Writable, short enough for PostgreSQL's socket, and for root open to `nobody`, who runs PostgreSQL then."""
    if len(os.fsencode(work / "postgres" / ".s.PGSQL.5432")) > 103:
        return False
    try:
        work.mkdir(exist_ok=True)
        (work / "lock").touch()
        if os.geteuid() == 0:
            work.chmod(0o755)
            return all(place.stat().st_mode & 0o001 for place in work.parents)
    except OSError:
        return False
    return True
