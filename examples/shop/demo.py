"""The whole shop in half a minute: `make demo`, or python -m examples.shop.demo.

Starts a PostgreSQL of its own, migrates it, starts a mail server, an HTTP API and a real `pgqueue worker`, and plays
scenes.py before them. Exit code 0 if every promise held, 1 if not. Writes below .demo/ only; leaves nothing running.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from examples.shop import questions
from examples.shop.questions import PromiseBroken
from examples.shop.services import inventory_api, smtp_server
from examples.shop.show import Show
from examples.shop.workplace import ROOT, WorkplaceTaken, workplace
from pgqueue import PgQueueError, migrate
from pgqueue.embedded import EmbeddedPostgres

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # each of them ends the demo in good order


def main() -> int:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ✓ is no reason to fail
    console = Console(highlight=False)
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as running:
            try:
                play(console, running, running.enter_context(workplace()))
            finally:
                for number in SIGNALS:  # from here on things are being stopped, which takes seconds and must be done
                    signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:
        console.print("\n[yellow]Interrupted. Everything is stopped.[/]")
        return 130
    except (PromiseBroken, PgQueueError, WorkplaceTaken) as error:
        console.print(f"\n[bold red]{type(error).__name__}:[/] {escape(str(error))}")
        return 1
    return 0


def play(console: Console, running: ExitStack, work: Path) -> None:
    """Everything, from an empty directory to the summary. What it starts is stopped by `running`."""
    console.print("[bold]The print shop: a small application on pgqueue[/]")
    for left in ("postgres", "files", "mail"):
        shutil.rmtree(work / left, ignore_errors=True)

    server = running.enter_context(EmbeddedPostgres(data_dir=work / "postgres", tcp=False))
    url = server.create_database("shop")
    migrate.upgrade(url)
    settings = {
        "PGQUEUE_DATABASE_URL": url,
        "SHOP_FILES": str(work / "files"),
        "SHOP_SMTP": running.enter_context(smtp_server(work / "mail")),
        "SHOP_API": running.enter_context(inventory_api(failures=3)),
    }
    for name in [name for name in os.environ if name.startswith("PGQUEUE_") and name != "PGQUEUE_PG_BIN"]:
        del os.environ[name]  # somebody's own settings must not change the story
    os.environ.update(settings)
    from examples.shop import scenes, seed  # only now: app.py reads the environment

    seed.prepare()
    log = work / "worker.log"
    process = running.enter_context(worker(log))
    db = running.enter_context(questions.connect(url))
    show = Show(console, db, process, work / "mail")
    try:
        schema = questions.schema(db)
        show.fact("PostgreSQL", f"{questions.server_version(db)}, started in {_short(work / 'postgres')}")
        show.fact("pgqueue", f"migrated: {schema.tables} tables, {schema.views} views", schema.tables > 0)
        show.fact("mail server and API", f"{settings['SHOP_SMTP']}, {settings['SHOP_API']}")
        workers = show.eventually("a worker in the table of workers", lambda: questions.workers(db))
        about = ", ".join(f"process {one.pid}: {one.tasks} tasks, {one.concurrency} jobs at once" for one in workers)
        show.fact("worker", about)
        for scene in scenes.SCENES:
            scene(show)
    except PromiseBroken:
        console.print(f"\nThe end of {_short(log)}:", *log.read_text().splitlines()[-15:], sep="\n", markup=False)
        raise
    made, environment = _short(work), _short(work / "env")
    console.print(
        f"\n[bold green]Every promise held.[/] What the jobs made is in {made}/files and {made}/mail/new.\n"
        "\n[bold]Try it yourself[/], with the same database (more in examples/shop/README.md):\n"
        "  python -m examples.shop.services          [dim]# database, mail server, API[/]\n"
        f"  {'. ' + environment:<40}  [dim]# in a second terminal[/]\n"
        "  pgqueue worker examples.shop.tasks:app\n"
        "  pgqueue jobs list                         [dim]# in a third one[/]"
    )


@contextmanager
def worker(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real `pgqueue worker`, in a process group of its own: Ctrl-C reaches the demo alone, which then stops it."""
    command = shutil.which("pgqueue", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if command is None:
        raise PromiseBroken("there is no command `pgqueue`: pip install -e '.[demo]'")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [command, "worker", "examples.shop.tasks:app", "--concurrency", "8", "--grace", "5"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,  # it inherits one thing, see workplace.py
        )
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # nobody is left of it, unless the polite way failed
            process.wait()


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    raise SystemExit(main())
