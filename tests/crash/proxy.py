"""A TCP proxy between a worker and its database, for what a network does: stall, forget, cut, refuse, dribble, and lose
the answer to what was done.

Connections are told apart by their application_name, which stands in the first packet. Two threads a connection and one
that accepts; close() ends them all.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

READY = re.compile(rb"Z\0\0\0\x05[ITE]$")  # the server is done with what it was asked


class Pair:
    """One connection: the client's end and the server's."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = client, server
        self.name = ""  # its application_name
        self.forgotten = False
        self.over = False
        self.losing = False  # what the server says is swallowed, and at the end of it the connection goes

    def cut(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """`url` leads through it to the database of `target`. It passes everything on until told otherwise."""

    def __init__(self, target: str) -> None:
        known = conninfo_to_dict(target)
        host, port = str(known.get("host") or "127.0.0.1"), int(known.get("port") or 5432)
        self._upstream: Any = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        self._family = socket.AF_UNIX if host.startswith("/") else socket.AF_INET
        self._changed = threading.Condition()
        self._stalled = self._slow = self._closed = False
        self._lose: tuple[str, bytes, bytes] | None = None
        self.lost = 0  # answers
        self._pairs: list[Pair] = []
        self._threads: list[threading.Thread] = []
        self.port = 0
        self.accept()
        url = make_url(target).set(host="127.0.0.1", port=self.port)
        self.url = url.difference_update_query(["host", "port"]).render_as_string(hide_password=False)

    # -- what the network does ---------------------------------------------------------------------------------------

    def stall(self) -> None:
        """Nothing moves, in no connection, new ones included; nobody is told."""
        with self._changed:
            self._stalled = True

    def slow(self) -> None:
        """A byte at a time."""
        self._slow = True

    def go_on(self) -> None:
        with self._changed:
            self._stalled = self._slow = False
            self._changed.notify_all()

    def forget(self) -> int:
        """Half-open: the connections that exist now lead nowhere any more, and nobody is told. How many those are."""
        forgotten = [pair for pair in list(self._pairs) if not pair.forgotten and not pair.over]
        for pair in forgotten:
            pair.forgotten = True
        return len(forgotten)

    def reset(self) -> None:
        """The connections that were forgotten hear of it, at both ends."""
        for pair in list(self._pairs):
            if pair.forgotten:
                pair.cut()

    def cut(self) -> None:
        for pair in list(self._pairs):
            pair.cut()

    def refuse(self) -> None:
        """Cuts all connections and takes no new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut()

    def accept(self) -> None:
        """Takes connections, after refuse() on the same port again."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, args=[self._listener], name="proxy")
        self._accepting.start()

    def lose_answer(self, name: str, *, request: bytes = b"", answer: bytes = b"") -> None:
        """Once: what the connections called `name` asked with these bytes, or were to hear with those, is done by the
        server, and the connection is cut before a byte of the answer has arrived."""
        self._lose = (name, request, answer)

    # -- how it is done ----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.socket(self._family)
            try:
                server.connect(self._upstream)
            except OSError:
                client.close()
                server.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the bytes would travel together
            pair = Pair(client, server)
            self._pairs.append(pair)
            for source, sink, asks in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pump, args=[pair, source, sink, asks], name="proxy")
                self._threads.append(thread)
                thread.start()

    def _pump(self, pair: Pair, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                with self._changed:
                    self._changed.wait_for(lambda: not self._stalled or self._closed)
                if pair.forgotten:
                    continue
                if asks and (found := re.search(rb"application_name\0([^\0]+)\0", data)):
                    pair.name = found[1].decode()
                self._arm(pair, data, asks)
                if pair.losing and not asks:
                    if READY.search(data):
                        self.lost += 1
                        break
                    continue
                if self._slow:
                    for at in range(len(data)):
                        sink.sendall(data[at : at + 1])
                        time.sleep(0)  # lets the other threads of this process have a turn
                else:
                    sink.sendall(data)
        if not pair.forgotten:  # then each end may go, and the other does not hear of it
            pair.cut()
            pair.over = True

    def _arm(self, pair: Pair, data: bytes, asks: bool) -> None:
        with self._changed:
            if self._lose is None or self._lose[0] != pair.name:
                return
            _, request, answer = self._lose
            if (asks and request and request in data) or (not asks and answer and answer in data):
                self._lose, pair.losing = None, True

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self.refuse()
        for pair in self._pairs:
            pair.forgotten = False
            pair.cut()
        for thread in self._threads:
            thread.join()
        for pair in self._pairs:
            for end in pair.ends:
                end.close()


@pytest.fixture
def proxy(pgqueue_database: str) -> Iterator[Proxy]:
    """Between the test's workers and the test's database."""
    made = Proxy(pgqueue_database)
    yield made
    made.close()
