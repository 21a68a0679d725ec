"""The command line: parses, calls, prints. One line for an error, and an exit code that means something.

0 done · 1 the operation failed · 2 usage · 3 database unreachable or schema not usable

migrate.py   makes the tables
worker.py    runs jobs: the supervisor's door; child.py is the process it starts
jobs.py      enqueue, and looking at jobs
why.py       why a job is not running
stats.py     queues, tasks and workers in numbers
top.py       all of it, live; topview.py: what that draws, and what its keys do
watch.py     any of that again and again; screen.py: the terminal under it
doctor.py    is the database under the queue well?
dead.py      the dead-letter table: look, redrive, purge
queues.py    queues and tasks: look, pause, resume
schedules.py what is enqueued at its time
demo.py      all of it on a server of its own; demo_tasks.py is the application it plays with
bench.py     measures the database at hand, in a schema of its own
progress.py  bars, for what takes long
completion.py  what a shell needs to complete our commands
common.py    database options, error lines, tables, JSON
"""

from __future__ import annotations

import io
import os
import sys

import click

from pgqueue import __version__
from pgqueue.cli.bench import bench
from pgqueue.cli.common import Group, database_options
from pgqueue.cli.completion import completion
from pgqueue.cli.dead import dead
from pgqueue.cli.demo import demo
from pgqueue.cli.doctor import doctor
from pgqueue.cli.jobs import enqueue, jobs
from pgqueue.cli.migrate import migrate
from pgqueue.cli.queues import queues, tasks
from pgqueue.cli.schedules import schedules
from pgqueue.cli.stats import stats, workers
from pgqueue.cli.top import top
from pgqueue.cli.why import why
from pgqueue.cli.worker import worker


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pgqueue")
@database_options
def cli() -> None:
    """Background jobs for Python on PostgreSQL.

    \b
    Examples:
      pgqueue migrate                          make the tables
      pgqueue worker shop.tasks:app            run jobs
      pgqueue enqueue shop.tasks.send '{"user_id": 7}'
      pgqueue why 42                           why does job 42 not run?
      pgqueue stats --watch                    how are queues, tasks and workers?
      pgqueue dead list                        see what failed for good
      pgqueue schedules list                   see what is enqueued by itself, and when
      pgqueue demo                             see all of it, on a PostgreSQL of its own

    The database is --database-url or PGQUEUE_DATABASE_URL, e.g. postgresql://user@host/dbname. Every option of
    `worker` can also be given as an environment variable, PGQUEUE_ and its name: PGQUEUE_CONCURRENCY=50.

    Exit codes: 0 done, 1 the operation failed, 2 usage, 3 database unreachable or schema not usable.
    """


for _command in (
    *(migrate, worker, enqueue, jobs, why, dead, queues, tasks, schedules),
    *(stats, workers, top, doctor, demo, bench, completion),
):
    cli.add_command(_command)


def main() -> None:
    """The console script."""
    _open_what_is_closed()
    # In the C locale Python reads the line as ASCII; what people type is UTF-8 there too.
    line = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in sys.argv[1:]]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a job may hold what this terminal's encoding does not
    try:
        cli(line, prog_name="pgqueue")
    except OSError as error:
        # A pipe whose reader has seen enough, or a full disk; the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            click.echo(f"pgqueue: the output cannot be written: {error.strerror}", err=True)
        sys.exit(1)


def _open_what_is_closed() -> None:
    """`pgqueue jobs list >&-`: a connection must not get the number of a standard stream, and be written to."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
