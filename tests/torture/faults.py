"""What is done to workers, network and server, each by a function of promises.md's number, some seconds long.

Each heals what it has done before it returns. Two of them run at the same time; what both would do to the server itself
they do one after the other.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import psycopg

from tests.crash import harm
from tests.crash.processes import children_of
from tests.torture import failpoints, tasks

if TYPE_CHECKING:
    from tests.torture.run import Cluster

Fault = Callable[["Cluster", random.Random], None]

_server = threading.Lock()  # of faults that stop and start it

POINTS = (
    *(
        "claim.sent",
        "claim.done",
        "run.start",
        "run.body",
        "run.effect",
        "run.transaction",
        "commit.sent",
        "commit.done",
    ),
    *("complete.sent", "complete.done", "retry.sent", "retry.done", "give_back.sent", "give_back.done"),
    *("dead_letter.sent", "dead_letter.done", "heartbeat.sent", "heartbeat.done", "rescue.sent", "rescue.done"),
    *("register.sent", "register.done", "leave.sent", "leave.done", "ghosts.sent", "ghosts.done"),
    *("cancel_running.sent", "cancel_running.done", "cancel_asked.sent", "cancel_asked.done"),
    *("crash.sent", "crash.done", "standing.sent", "standing.done"),
)
ANSWERS = tuple(point for point in POINTS if point.endswith(".done"))


def pause(seconds: float) -> None:
    time.sleep(seconds)


# -- processes ---------------------------------------------------------------------------------------------------------


def kill_children(c: Cluster, chance: random.Random) -> None:
    """F1: at any point."""
    for _ in range(2):
        victims = c.children()
        if victims:
            c.kill(chance.choice(victims))
        pause(1.0)


def kill_supervisor(c: Cluster, chance: random.Random) -> None:
    """F1: a machine that vanishes; its children end with it."""
    victim = chance.choice(c.supervisors)
    for pid in (*children_of(victim.pid), victim.pid):
        c.say("kill", f"{pid} with its supervisor")
    victim.kill()
    pause(1.0)


def kill_at_points(c: Cluster, chance: random.Random) -> None:
    """F1: at named points."""
    _at_points(c, chance.sample(POINTS, 4), "kill")


def kill_at_stop(c: Cluster, chance: random.Random) -> None:
    """F1: at shutdown."""
    failpoints.arm(c.ledger, "stop", "kill")
    stop_supervisor(c, chance)
    failpoints.disarm(c.ledger, "stop")


def lose_answers(c: Cluster, chance: random.Random) -> None:
    """F5: what was asked is committed, and the answer lost: a worker's statements, a job's COMMIT, a producer's."""
    c.proxies[1].lose_answer("producer", request=b"COMMIT")
    _at_points(c, chance.sample(ANSWERS, 4), "cut")


def stop_at_points(c: Cluster, chance: random.Random) -> None:
    """F2, F3: frozen in the midst of it, with a lock or an open transaction, until its lease is over."""
    points = "run.transaction", "commit.sent", "commit.done", "complete.sent", "claim.done", "run.effect"
    _at_points(c, chance.sample(points, 2), "stop", 1.5 * c.lease)
    c.thaw()


def freeze_child(c: Cluster, chance: random.Random) -> None:
    """F2: its supervisor does not beat for it."""
    victims = c.children()
    if victims:
        c.freeze(chance.choice(victims))
    pause(1.5 * c.lease)
    c.thaw()


def freeze_worker(c: Cluster, chance: random.Random) -> None:
    """F2, F35: supervisor and children at once."""
    victim = chance.choice(c.supervisors)
    for pid in (victim.pid, *children_of(victim.pid)):
        c.freeze(pid)
    pause(1.6 * c.lease)
    c.thaw()


def freeze_inside(c: Cluster, chance: random.Random) -> None:
    """F2: a worker inside an application, which nobody ends when it comes back: all that it ran goes on."""
    for _ in range(2):
        c.freeze(c.inside.pid)
        pause(1.4 * c.lease)
        c.thaw()
        pause(0.5)


def stop_supervisor(c: Cluster, chance: random.Random) -> None:
    """A deployment: SIGTERM, and another in its place."""
    victim = chance.choice(c.supervisors)
    c.term(victim)
    deadline = time.monotonic() + 4.0
    while victim.poll() is None and time.monotonic() < deadline:
        pause(0.05)


def _at_points(c: Cluster, names: list[str], action: str, seconds: float = 2.5) -> None:
    for name in names:
        failpoints.arm(c.ledger, name, action)
    pause(seconds)
    for name in names:
        failpoints.disarm(c.ledger, name)


# -- connections -------------------------------------------------------------------------------------------------------


def terminate_backends(c: Cluster, chance: random.Random) -> None:
    """F4: of any role, ten times a second."""
    names = "pgqueue claim", "pgqueue settle", "pgqueue heartbeat", "pgqueue listener", "pgqueue chores", "pgqueue job"
    for _ in range(15):
        c.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s",
            [chance.choice((*names, "producer"))],
        )
        pause(0.1)


def stall(c: Cluster, chance: random.Random) -> None:
    """F11: nothing moves, nobody is told."""
    for proxy in c.proxies:
        proxy.stall()
    pause(chance.choice([0.3, 0.8, 1.2 * c.lease]))
    for proxy in c.proxies:
        proxy.go_on()


def cut(c: Cluster, chance: random.Random) -> None:
    """F11"""
    for _ in range(4):
        for proxy in c.proxies:
            proxy.cut()
        pause(chance.uniform(0.1, 0.6))


def half_open(c: Cluster, chance: random.Random) -> None:
    """F11: all that is open leads nowhere. A worker finds out by itself; an application may wait until it is told."""
    for proxy in c.proxies:
        proxy.forget()
    pause(1.5)
    c.proxies[1].reset()


def slow(c: Cluster, chance: random.Random) -> None:
    """F11: a byte at a time."""
    for proxy in c.proxies:
        proxy.slow()
    pause(1.5)
    for proxy in c.proxies:
        proxy.go_on()


# -- the server --------------------------------------------------------------------------------------------------------


def kill_backend(c: Cluster, chance: random.Random) -> None:
    """F6: one of them is killed, and all sessions end."""
    with _server:
        found = c.sql("select pid from pg_stat_activity where application_name like 'pgqueue %%' limit 5")
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(found)[0], signal.SIGKILL)
        pause(1.0)
        c.wait_for_server()


def crash_server(c: Cluster, chance: random.Random) -> None:
    """F7: an immediate stop, and recovery."""
    with _server:
        c.restart_server(signal.SIGQUIT, 0.0)
        pause(0.5)


def hold_server(c: Cluster, chance: random.Random) -> None:
    """F8: it does not come back for longer than a lease."""
    with _server:
        c.restart_server(signal.SIGQUIT, 1.2 * c.lease)


def lose_standby(c: Cluster, chance: random.Random) -> None:
    """F10: COMMITs hang, since nobody acknowledges them; some of those who wait are cancelled, some cut off."""
    with _server:
        c.sql("alter system set synchronous_standby_names = 'nobody'")
        c.sql("select pg_reload_conf()")
        for end in ("pg_cancel_backend", "pg_terminate_backend"):
            pause(0.7)
            c.sql(f"select {end}(pid) from pg_stat_activity where wait_event = 'SyncRep' and random() < 0.5")
        c.sql("alter system reset synchronous_standby_names")
        c.sql("select pg_reload_conf()")


def hostile_settings(c: Cluster, chance: random.Random) -> None:
    """F15, F17: what is set on the database, for sessions that are opened from now on."""
    wanted = {
        "statement_timeout": "5ms",
        "lock_timeout": "5ms",
        "idle_session_timeout": "200ms",
        "idle_in_transaction_session_timeout": "200ms",
        "default_transaction_isolation": chance.choice(["serializable", "repeatable read"]),
    }
    for name, value in wanted.items():
        c.sql(f"alter database postgres set {name} = '{value}'")
    c.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgqueue %%'")
    pause(2.0)
    for name in wanted:
        c.sql(f"alter database postgres reset {name}")
    c.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name like 'pgqueue %%' or application_name = 'producer'"
    )


def lock_rows(c: Cluster, chance: random.Random) -> None:
    """F16: an application locks jobs from behind, and a little later the next."""
    for _ in range(3):
        with contextlib.suppress(psycopg.Error), c.connect() as raw:
            raw.execute("set statement_timeout = 2000")
            found = raw.execute("select id from pgqueue.jobs order by id desc limit 20").fetchall()
            for (job,) in found:
                raw.execute("select from pgqueue.jobs where id = %s for update", [job])
                pause(0.02)
        pause(0.1)


def lock_table(c: Cluster, chance: random.Random) -> None:
    """F16: LOCK TABLE; and an ALTER TABLE that waits behind a long transaction, and everybody behind it."""
    with contextlib.suppress(psycopg.Error), c.connect() as raw:
        raw.execute("lock table pgqueue.jobs in access exclusive mode")
        pause(0.7)
    with contextlib.suppress(psycopg.Error), c.connect() as reader:
        reader.execute("select count(*) from pgqueue.jobs")
        waiting = threading.Thread(
            target=c.sql, args=["set statement_timeout = 1500; alter table pgqueue.jobs alter column task set not null"]
        )
        waiting.start()
        pause(0.7)
        reader.rollback()
        waiting.join()


# -- jobs that harm their process --------------------------------------------------------------------------------------


def poison(c: Cluster, chance: random.Random) -> None:
    """F26: in a worker's process, and in one of the job's own."""
    c.enqueue(tasks.poison, chance.choice(harm.WAYS))
    c.enqueue(tasks.poison_alone)
    pause(2.0)


def stubborn(c: Cluster, chance: random.Random) -> None:
    """F27: swallows its cancellation, holds the GIL; and its worker is to stop meanwhile."""
    c.enqueue(tasks.swallow, 1.5)
    c.enqueue(tasks.hold_gil, 1.0)
    pause(0.5)
    stop_supervisor(c, chance)


def block_loop(c: Cluster, chance: random.Random) -> None:
    """F28: for longer than a lease."""
    c.enqueue(tasks.block_loop, 1.3 * c.lease)
    pause(1.5)


def damage(c: Cluster, chance: random.Random) -> None:
    """F29"""
    for what in chance.sample(harm.DAMAGE, 3):
        c.enqueue(tasks.damage, what)
    c.enqueue(tasks.fork)
    pause(1.5)


FAULTS: tuple[Fault, ...] = (
    *(kill_children, kill_supervisor, kill_at_points, kill_at_stop, lose_answers, stop_at_points),
    *(freeze_child, freeze_worker, freeze_inside, stop_supervisor),
    *(terminate_backends, stall, cut, half_open, slow),
    *(kill_backend, crash_server, hold_server, lose_standby, hostile_settings, lock_rows, lock_table),
    *(poison, stubborn, block_loop, damage),
)


def pairs(chance: random.Random, faults: tuple[Fault, ...] = FAULTS) -> Iterator[tuple[Fault, Fault]]:
    """For ever, two at random; none comes again before each other one has."""
    left: list[Fault] = []
    while True:
        if len(left) < 2:
            more = list(faults)
            chance.shuffle(more)
            left += more
        yield left.pop(0), left.pop(0)
