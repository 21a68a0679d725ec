"""A terminal with nobody before it: a command runs in it as in anybody's, keys are typed, and what it shows is read.

It understands what `pgqueue.cli.screen` and a bar of rich write, and nothing else: whatever it does not know stays in
the text, so that a test that reads the screen fails for it.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from typing import Any

_PIECE = re.compile(r"\x1b\[(\?)?([\d;]*)([A-Za-z])|(\r?\n)|([^\x1b\r\n]+)|(.)", re.DOTALL)


class Terminal:
    """`with Terminal(url, "stats", "--watch") as terminal: terminal.until(lambda screen: "email" in screen)`."""

    def __init__(self, url: str, *arguments: str, columns: int = 120, lines: int = 24, **more: str) -> None:
        self.outer, self.inner = pty.openpty()
        self.resize(columns, lines, tell=False)
        self.before = termios.tcgetattr(self.inner)
        self.said = ""  # all that was written, as it came
        environment = {name: text for name, text in os.environ.items() if not name.startswith("PGQUEUE_")}
        environment |= {"PGQUEUE_DATABASE_URL": url, "TERM": "xterm-256color", "PYTHONUTF8": "1", **more}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "pgqueue", *arguments],
            env=environment, stdin=self.inner, stdout=self.inner, stderr=self.inner, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )  # fmt: skip

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.outer)
        os.close(self.inner)

    def type(self, keys: str) -> None:
        os.write(self.outer, keys.encode())

    def resize(self, columns: int, lines: int, *, tell: bool = True) -> None:
        self.columns, self.lines = columns, lines
        fcntl.ioctl(self.outer, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if tell:
            os.kill(self.process.pid, signal.SIGWINCH)

    def read(self, seconds: float = 0.05) -> None:
        while select.select([self.outer], [], [], seconds)[0]:
            try:
                self.said += os.read(self.outer, 65_536).decode("utf-8", "replace")
            except OSError:
                return

    def until(self, check: Callable[[str], Any], timeout: float = 30.0) -> str:
        """The screen, once `check` says yes to it; AssertionError with what it shows when it never does."""
        deadline = time.monotonic() + timeout
        while not check(screen := self.screen()):
            assert time.monotonic() < deadline, f"the screen shows:\n{screen}"
            self.read()
        return screen

    def ended(self, timeout: float = 30.0) -> int:
        """The exit code; the terminal must be as it was before: its own page left, cursor shown, keys echoed."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:  # who does not read keeps it from writing
            assert time.monotonic() < deadline, f"it does not end:\n{self.screen()}"
            self.read()
        self.read()
        assert termios.tcgetattr(self.inner) == self.before
        assert self.said.count("\x1b[?1049h") == self.said.count("\x1b[?1049l")
        assert self.said.count("\x1b[?25l") == self.said.count("\x1b[?25h")
        return self.process.returncode

    def screen(self) -> str:
        """What is to be seen now, lines without trailing blanks."""
        pages: list[list[list[str]]] = [self._blank()]
        row = column = 0
        saved = (0, 0)
        for private, numbers, letter, newline, text, odd in _PIECE.findall(self.said):
            if letter:
                values = [int(one) for one in numbers.split(";") if one]
                if private and values == [1049]:
                    if letter == "h":
                        pages.append(self._blank())
                        saved, row, column = (row, column), 0, 0
                    elif len(pages) > 1:
                        pages.pop()
                        row, column = saved
                elif letter == "H":
                    row, column = ([one - 1 for one in values] + [0, 0])[:2]
                elif letter == "A":
                    row = max(0, row - (values or [1])[0])
                elif letter == "K" and values == [2]:
                    pages[-1][row] = [" "] * self.columns
                elif letter == "K":
                    if row < self.lines:  # else it was written before the window shrank
                        pages[-1][row][column:] = [" "] * (self.columns - column)
                elif letter == "J":
                    pages[-1] = self._blank()
                elif letter not in "mhl":
                    text = f"<{letter}>"
            elif newline:
                row, column = row + 1, 0
                if row >= self.lines:
                    pages[-1] = [*pages[-1][1:], [" "] * self.columns]
                    row = self.lines - 1
            elif odd == "\r":
                column = 0
            elif odd:
                text = f"<{ord(odd)}>"
            for char in text:
                if row < self.lines and column < self.columns:
                    pages[-1][row][column] = char
                column += 1
        return "\n".join("".join(line).rstrip() for line in pages[-1])

    def _blank(self) -> list[list[str]]:
        return [[" "] * self.columns for _ in range(self.lines)]


def shown(lines: Sequence[Any]) -> str:
    """The text of drawn lines."""
    return "\n".join(line.plain for line in lines)
