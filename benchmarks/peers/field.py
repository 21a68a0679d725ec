"""The peers of a run, as BENCH_PEERS names them: installed, with a Redis where one needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from benchmarks.contestants import Program, redis_server
from benchmarks.peers.install import available
from benchmarks.peers.registry import Peer, wanted


@dataclass(frozen=True)
class Entry:
    """A peer that can be measured."""

    peer: Peer
    program: Program
    version: str

    @property
    def note(self) -> str:
        """What its figures were measured with."""
        return f"{self.peer.name} {self.version}: {self.peer.configuration}"

    def jobs(self, jobs: int) -> int:
        """So many of the jobs that the others get."""
        return max(1, jobs // self.peer.slow)

    def name(self, jobs: int, suffix: str = "") -> str:
        fewer = f", {self.jobs(jobs):,} jobs" if self.jobs(jobs) != jobs else ""
        return f"{self.peer.name}{suffix}{fewer}"


@contextmanager
def field() -> Iterator[list[Entry]]:
    """Ends the program when BENCH_PEERS names one that there is not."""
    try:
        asked = wanted(os.environ.get("BENCH_PEERS", ""))
    except ValueError as error:
        sys.exit(str(error))
    with ExitStack() as stack:
        entries = [Entry(*found) for found in available(asked)]
        if any(entry.peer.redis for entry in entries):
            redis = stack.enter_context(redis_server())
            entries = [
                replace(entry, program=replace(entry.program, redis=redis)) if entry.peer.redis else entry
                for entry in entries
            ]
        yield entries
