"""Whether a job has forked and returned twice: its copy would be a second worker on our sockets, and has to end.

os.getpid() would tell, at the price of a system call a job (1.4 µs on a virtual machine, a tenth of a no-op job)."""

from __future__ import annotations

import os

_forks = 0  # of which this process is a copy


def copies() -> int:
    """Another number than before in a process that is a copy of the one that asked before."""
    return _forks


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
