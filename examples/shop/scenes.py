"""The scenes of the demo, in order. Each does what an application does, then shows what the database says of it.

No figure is kept in Python: each is asked of the database (questions.py) after the fact. `show.fact` also checks
what it prints: a promise that does not hold ends the demo.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.orm import Session

from examples.shop import questions
from examples.shop.app import PHOTOS, TEMPORARY, app, engine
from examples.shop.models import Order
from examples.shop.questions import PromiseBroken
from examples.shop.register import register
from examples.shop.seed import CATALOGUE, last_month
from examples.shop.show import Show
from examples.shop.tasks import (
    charge_order,
    import_catalogue,
    make_thumbnail,
    monthly_report,
    send_welcome_email,
    sync_inventory,
)

PEOPLE = ("Ada Lovelace", "Mary Somerville", "Emmy Noether", "Sofia Kovalevskaya", "Hedy Lamarr", "Radia Perlman")


def rolled_back(show: Show) -> None:
    show.scene(
        "A registration that is rolled back leaves no job",
        "Customer and jobs are written in one transaction; then her card is refused.",
    )
    with Session(engine) as session:
        before = questions.count_jobs(show.db)
        register(session, "Nobody", "nobody@example.org", "dunes.jpg")
        inside = session.scalars(text(questions.COUNT_JOBS)).one()
        show.fact("seen from inside", f"{inside - before} jobs", inside - before == 2)
        outside = questions.count_jobs(show.db) - before
        show.fact("seen by workers", f"{outside} jobs", outside == 0)
        session.rollback()
    jobs, customers = questions.count_jobs(show.db) - before, questions.count_customers(show.db, "nobody@example.org")
    show.fact("after the rollback", f"{jobs} jobs, {customers} customers", jobs == customers == 0)


def registered(show: Show) -> None:
    show.scene(
        "Six customers register: e-mails over SMTP, thumbnails of their photos",
        "The same code, and now each transaction commits. A worker runs the jobs.",
    )
    since = questions.now(show.db)
    for name, photo in zip(PEOPLE, sorted(PHOTOS.iterdir()), strict=True):
        with Session(engine) as session, session.begin():
            register(session, name, f"{name.split()[0].lower()}@example.org", photo.name)
    tasks = (send_welcome_email.name, make_thumbnail.name)
    show.eventually(
        "the end of all e-mails and thumbnails",
        lambda: [questions.outcome(show.db, task, since) for task in tasks],
        lambda found: all(row.jobs == row.ended for row in found),
    )
    mails, thumbnails = (questions.outcome(show.db, task, since) for task in tasks)
    welcomed, delivered = questions.welcomed(show.db, since), len(list((show.mail / "new").iterdir()))
    show.fact("welcome e-mails", f"{mails.completed} of {mails.jobs} sent", mails.completed == mails.jobs == welcomed)
    if delivered != mails.completed:
        raise PromiseBroken(f"the mail server has {delivered} e-mails, and the database says {mails.completed}")
    first = thumbnails.results[0]
    show.fact(
        "thumbnails",
        f"{thumbnails.completed} of {thumbnails.jobs} made, {first['size'][0]} x {first['size'][1]} pixels",
        thumbnails.completed == thumbnails.jobs == mails.jobs
        and all(Path(made["path"]).is_file() for made in thumbnails.results),
    )
    show.fact(
        "the middle thumbnail", f"waited {thumbnails.wait_ms:.0f} ms for the worker, ran {thumbnails.run_ms:.0f} ms"
    )


def report_and_clean_up(show: Show) -> None:
    show.scene(
        "A PDF report, and the nightly clean-up, run now",
        "Last month's sales from SQL to PDF; and five files that killed jobs left. A schedule would delete them at 2.",
    )
    TEMPORARY.mkdir(parents=True, exist_ok=True)
    for number in range(5):
        part = TEMPORARY / f"left-{number}.part"
        part.write_bytes(os.urandom(40_000))
        os.utime(part, (time.time() - 86_400,) * 2)
    (nightly,) = show.eventually("the schedule of the code", lambda: questions.schedule(show.db, "nightly"))
    report, cleaning = monthly_report.delay(last_month()), app.schedules.run_now("nightly")
    made, cleaned = show.done(report.id), show.done(cleaning.id)
    path = Path(made.result["path"])
    show.fact(
        "monthly report",
        f"{made.result['orders']} orders, EUR {float(made.result['revenue']):,.2f}; {made.result['bytes']:,} bytes",
        path.is_file(),
    )
    show.fact(
        "schedule",
        f"{nightly.task} at {nightly.cron}, next {nightly.next_tick:%Y-%m-%d %H:%M} UTC, in {nightly.hours:.1f} h",
        nightly.status == "active" and nightly.at_two and 0 < nightly.hours <= 24,
    )
    show.fact(
        "clean-up",
        f"{cleaned.result['files']} files deleted, {cleaned.result['bytes']:,} bytes",
        not list(TEMPORARY.glob("left-*")),
    )


def retried(show: Show) -> None:
    show.scene(
        "An HTTP API that fails at first: retried with growing delays",
        "It answers 503 to the first calls. Policy: delay 1 s, factor 2, 4 attempts.",
    )
    job = sync_inventory.delay("POSTER-A2")
    errors = show.failures(job.id)
    done = show.done(job.id)
    show.attempt(done.attempt, done.later, f"[green]{done.state}: {done.result['stock']} in stock[/]")
    waits = [error.later for error in errors[1:]] + [done.later]
    show.fact("waited", ", ".join(f"{wait:.2f} s" for wait in waits), _grow(waits))
    show.fact(
        "job and attempts", f"job {job.id} {done.state} in attempt {done.attempt}", done.attempt == len(errors) + 1
    )


def poison(show: Show) -> None:
    show.scene(
        "A poison order: dead-lettered after four attempts, corrected, sent on",
        'Its amount is "12,50 EUR", no number. It fails each time, and harms nobody.',
    )
    with Session(engine) as session, session.begin():
        order = Order(customer_id=1, sku="POSTER-A4", quantity=1, total="12.50")
        session.add(order)
        session.flush()
        order_id = order.id
        job = charge_order.enqueue(session, order_id, "12,50 EUR")
    errors = show.failures(job.id)
    dead = questions.dead(show.db, job.id)
    show.fact(
        "dead letter",
        f"job {job.id}, {dead.errors} attempts, reason {dead.reason}",
        dead.errors == dead.attempt == dead.max_attempts == len(errors) == 4 and dead.reason == "attempts",
    )
    corrected = f'{{"order_id": {order_id}, "amount": "12.50"}}'
    show.console.print(f"    [dim]$ pgqueue dead redrive {job.id} --args '{escape(corrected)}'[/]", soft_wrap=True)
    app.dead.redrive(job.id, args={"order_id": order_id, "amount": "12.50"})
    done, paid = show.done(job.id), questions.order(show.db, order_id)
    show.fact(
        "redriven",
        f"job {job.id} {done.state}: attempt {done.attempt} of its second life, fence {done.fence}",
        done.attempt == 1 and done.fence == 5,
    )
    show.fact("the order", f"{paid.total} EUR, {'paid' if paid.paid else 'not paid'}", paid.paid)


def killed(show: Show) -> None:
    show.scene(
        "A worker killed with SIGKILL in mid-job: another one finishes it",
        "It imports a catalogue, row by row. In the middle its process is killed.",
    )
    products = questions.count_products(show.db)
    job = import_catalogue.delay(str(CATALOGUE))
    show.eventually("a third of the import", lambda: questions.count_products(show.db) - products, lambda new: new >= 9)
    victim = questions.runner(show.db, job.id)
    if victim is None or victim.host != socket.gethostname():  # the database is the demo's own, and so its workers are
        raise PromiseBroken(f"job {job.id} is not run by a process of this machine: {victim}")
    os.kill(victim.pid, signal.SIGKILL)
    at, new = questions.now(show.db), questions.count_products(show.db) - products
    show.fact("killed", f"process {victim.pid}, worker {_short(victim.id)}, {new} products into the job", new > 0)
    done, errors = show.done(job.id), questions.failed_attempts(show.db, job.id)
    for error in errors:
        show.fact("noted", error.error.splitlines()[0])
    show.fact(
        "begun again", f"{questions.restarted(show.db, job.id, at):.2f} s later, by worker {_short(done.worker_id)}"
    )
    show.fact(
        "finished",
        f"job {job.id} {done.state}, fence {done.fence}, still attempt {done.attempt}",
        done.worker_id != victim.id and done.fence == 2 and done.attempt == 1,
    )
    total = questions.count_products(show.db)
    show.fact(
        "the catalogue",
        f"{total} products, each once: {done.result['new']} new and {done.result['there_already']} that were there",
        total == done.result["rows"] and done.result["new"] <= total - products - new,
    )


def summary(show: Show) -> None:
    show.console.print("\n[bold]All of it, as the database tells it[/] [dim](times are those of the middle job)[/]")
    table = Table(box=None, pad_edge=False, padding=(0, 0, 0, 3))
    table.add_column("task", style="cyan")
    for heading in ("jobs", "completed", "runs", "waited", "ran"):
        table.add_column(heading, justify="right")
    for row in questions.summary(show.db):
        waited = "" if row.wait_ms is None else f"{row.wait_ms:,.0f} ms"
        table.add_row(row.task, str(row.jobs), str(row.completed), str(row.runs), waited, f"{row.run_ms:,.0f} ms")
    show.console.print(Padding(table, (0, 0, 0, 1), expand=False))
    left = questions.left(show.db)
    show.fact(
        "left in the queues",
        f"{left.waiting} waiting, {left.running} running, {left.blocked} blocked, {left.dead} dead",
        left.waiting == left.running == left.blocked == left.dead == 0,
    )
    show.fact("from first to last", f"{questions.elapsed(show.db):.1f} s")


SCENES = (rolled_back, registered, report_and_clean_up, retried, poison, killed, summary)


def _grow(waits: list[float]) -> bool:
    """Never earlier than the policy says, 1, 2, 4 s; later only by what a busy machine takes."""
    return len(waits) == 3 and waits == sorted(waits) and all(2**n <= wait < 2**n + 5 for n, wait in enumerate(waits))


def _short(worker_id: object) -> str:
    return str(worker_id)[:8]
