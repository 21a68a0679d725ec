"""Which peers there are: packages, configuration, and how to see that a job of theirs is unfinished.

The configuration is the fastest that each one's documentation leads to; what was tried beside it stands in
docs/performance.md. Packages are pinned, so that a figure means something next year.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """packages: of the registry of its language, the first is the peer itself. left: see contestants.Program. slow: it
    gets so many times fewer jobs in bulk and to drain, or a run would take minutes. python: the least that it needs."""

    name: str
    program: str
    packages: Sequence[str]
    configuration: str
    left: str | Sequence[str]
    analyze: bool = True
    prepares: bool = True
    slow: int = 1
    two_processes: bool = False
    redis: bool = False
    python: tuple[int, int] = (3, 11)

    @property
    def node(self) -> bool:
        return self.program.endswith(".js")


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "procrastinate",
            "procrastinate",
            ["procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9", "uvloop==0.23.0"],
            "worker: concurrency 5, delete_jobs always, LISTEN, uvloop; one: synchronous; bulk: batch_defer, 1,000 a "
            "call",
            "select exists (select from procrastinate_jobs)",
            slow=5,
        ),
        Peer(
            "pgqueuer",
            "pgqueuer",
            ["pgqueuer[asyncpg]==1.6.0", "uvloop==0.23.0"],
            "asyncpg, uvloop; worker: batch_size 200; bulk: enqueue of lists, 5,000 a call",
            "select exists (select from pgqueuer)",
        ),
        Peer(
            "oban",
            "oban",
            ["oban==0.7.0", "uvloop==0.23.0"],
            "pool of 10, uvloop; worker: queue limit 1,000; bulk: enqueue_many, 1,000 a call; tables not analysed, or "
            "its acknowledgements are planned badly",
            "select exists (select from oban_jobs where state in ('available', 'executing'))",
            analyze=False,
            python=(3, 12),
        ),
        Peer(
            "graphile-worker",
            "graphile_worker.js",
            ["graphile-worker@0.17.3"],
            "worker: concurrentJobs 100, localQueue 5,000, completeJobBatchDelay 0, no log; bulk: addJobs, 5,000 a "
            "call",
            "select exists (select from graphile_worker._private_jobs)",
            two_processes=True,
        ),
        Peer(
            "pg-boss",
            "pg_boss.js",
            ["pg-boss@10.4.2"],
            "worker: two work() of batchSize 1,000, polling every 0.5 s (its least) and notifyWorker after a full "
            "batch; bulk: insert, 5,000 a call",
            "select exists (select from pgboss.job where name = 'bench' and state in ('created', 'retry', 'active'))",
            two_processes=True,
        ),
        Peer(
            "celery",
            "celery",
            ["celery[redis]==5.7.0", "hiredis==3.5.0"],
            "Redis without persistence; worker: pool solo, results ignored, early acknowledgement, no gossip, mingle, "
            "heartbeat or events; bulk: apply_async one by one, for want of another way",
            ["celery"],
            prepares=False,
            slow=5,
            redis=True,
        ),
        Peer(
            "bullmq",
            "bullmq.js",
            ["bullmq@6.7.0", "ioredis@5.11.1"],
            "Redis without persistence; worker: concurrency 200, removeOnComplete; bulk: addBulk, 1,000 a call",
            ["bull:bench:wait", "bull:bench:active"],
            prepares=False,
            redis=True,
        ),
    )
}


def wanted(text: str) -> list[Peer]:
    """The peers that BENCH_PEERS names: none when it is empty, every one for `all` or `1`, else a list of names.
    Raises ValueError for an unknown one."""
    if text.strip() in ("all", "1"):
        return list(PEERS.values())
    names = text.replace(",", " ").split()
    for name in names:
        if name not in PEERS:
            raise ValueError(f"BENCH_PEERS: no peer {name!r}; there are {', '.join(PEERS)}, and all")
    return [PEERS[name] for name in names]
