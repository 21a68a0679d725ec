"""pgqueue worker: the supervisor's door."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pgqueue import environment, logs
from pgqueue.app import check
from pgqueue.cli.common import Variable, database_options
from pgqueue.settings import WorkerSettings, conninfo_from_url, schema_name
from pgqueue.worker.supervisor import Supervisor

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("pgqueue")

_DEFAULTS = WorkerSettings()


def _option(name: str, kind: Any, **more: Any) -> Callable[[F], F]:
    field = next(item for item in WorkerSettings.__dataclass_fields__.values() if item.name == name)
    flag = "--" + name.replace("_", "-")
    return click.option(
        flag,
        cls=Variable,
        type=kind,
        default=getattr(_DEFAULTS, name),
        show_default=getattr(_DEFAULTS, name) is not None,
        envvar=f"PGQUEUE_{name.upper()}",
        help=field.metadata["help"],
        **more,
    )


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--queues", cls=Variable, metavar="A,B", envvar="PGQUEUE_QUEUES", help="Queues to serve.  [default: all]")
@_option("concurrency", int)
@_option("processes", int)
@_option("grace", float)
@_option("lease", float)
@_option("poll_interval", float)
@_option("sweep_interval", float)
@_option("listen_url", str, metavar="URL")
@_option("metrics_port", int, metavar="PORT")
@_option("metrics_host", str, metavar="ADDRESS")
@_option("max_jobs_per_process", int, metavar="JOBS")
@_option("max_memory", int, metavar="MB")
@_option("max_age", float, metavar="SECONDS")
@click.option(
    "--drain", cls=Variable, is_flag=True, envvar="PGQUEUE_DRAIN", help="Exit when nothing is left to run; see below."
)
@click.option(
    "--log-level",
    cls=Variable,
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="PGQUEUE_LOG_LEVEL",
    help="Least severe lines to log; debug also shows each start.",
)
@click.option(
    "--log-format",
    cls=Variable,
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="PGQUEUE_LOG_FORMAT",
    help="One line of text or one JSON object an event.",
)
@database_options
@click.pass_context
def worker(
    ctx: click.Context, /, app: str, queues: str | None, log_level: str, log_format: str, **settings: Any
) -> None:
    """Run jobs: those of the tasks that APP in MODULE knows; others stay queued.

    \b
    Examples:
      pgqueue worker shop.tasks:app
      pgqueue worker shop.tasks:app --queues email,default --concurrency 50 --processes 2

    A small supervisor keeps the processes that work. SIGTERM or Ctrl-C: claim no more, let running jobs finish within
    --grace, give back the rest without using up an attempt; a second one: at once. Times are in seconds.

    --drain waits for what is due, running or to be retried, and leaves jobs that are scheduled for later.
    """
    module, _, attribute = app.partition(":")
    if not module or not attribute:
        raise click.UsageError(f"{app!r} must be MODULE:APP, e.g. shop.tasks:app")
    names = None if queues is None else tuple(name.strip() for name in queues.split(",") if name.strip())
    made = WorkerSettings(queues=names, **settings)
    url = ctx.obj.get("url")
    if url is not None:
        conninfo_from_url(url)
    schema = ctx.obj.get("schema")
    logs.configure(log_level, log_format)
    environment.warn(log.warning)
    supervisor = Supervisor(
        [sys.executable, "-m", "pgqueue.cli.child"],
        made,
        {
            "app": app,
            "settings": made.as_dict(),
            "url": url,
            "schema": None if schema is None else schema_name(schema),
            "log": [log_level, log_format],
        },
        check=check,
    )
    sys.exit(supervisor.run())
