"""The terminal as a screen that is drawn over and over, and its keys: for `--watch` and `pgqueue top`.

Written with what every terminal of the last decades does (its own page, moves, clearing to the end of a line); a line
is sent only when it has changed, and all of a picture in one write, so that nothing flickers, over a slow line either.
Whatever ends the block gives the terminal back as it was: the end, an exception, Ctrl-C, SIGTERM, a hang-up, Ctrl-Z.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.text import Text

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"  # a page of its own, no cursor
_LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"  # a terminal that knows them shows what is between them at once
_ENDING = (signal.SIGTERM, signal.SIGHUP)

_KEY = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;]*|O)?$")
_NAMES = {
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end", "Z": "back tab",
    "1~": "home", "4~": "end", "7~": "home", "8~": "end", "5~": "page up", "6~": "page down", "3~": "delete",
    "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace", "\x1b": "escape",
    "\x0c": "redraw",
}  # fmt: skip


def possible() -> bool:
    """Whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def keys_of(typed: str) -> list[str]:
    """The keys behind what a terminal sent: a name such as "page up", or the character itself."""
    found = []
    for sequence in _KEY.findall(typed):
        code = re.sub(r"^\x1b[\[O](?:1;\d+(?=[A-Z]))?", "", sequence)  # with Shift or Control as without
        if len(sequence) > 1 and code not in _NAMES:
            continue  # F5, Insert, …: nobody's
        found.append(_NAMES.get(code, code))
    return [key for key in found if len(key) > 1 or key.isprintable()]


class Screen:
    """`with Screen() as screen:` and then `paint` and `wait` in turn. In the main thread, since it handles signals."""

    def __init__(self) -> None:
        self._out = sys.stdout.fileno()
        self._in: int | None = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._encoding = sys.stdout.encoding or "ascii"
        self._pen = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._shown: list[str] = []
        self._size = (0, 0)
        self._typed = ""
        self._before: dict[int, Any] = {}
        self._attributes: list[Any] | None = None
        self._wakes, self._woken_by = os.pipe()
        for end in (self._wakes, self._woken_by):
            os.set_blocking(end, False)

    @property
    def draws_blocks(self) -> bool:
        """Whether the terminal's encoding has more than letters."""
        return "utf" in self._encoding.lower()

    def __enter__(self) -> Screen:
        self._wakeup_before = signal.set_wakeup_fd(self._woken_by, warn_on_full_buffer=False)
        for number in map(int, _ENDING):
            self._before[number] = signal.signal(number, _end)
        self._before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, _nothing)  # `wait` returns
        self._before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._rest)
        try:
            self._take()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in map(int, _ENDING):  # what comes from here on must not keep us from giving it back
            signal.signal(number, signal.SIG_IGN)
        try:
            self._give_back()
        except OSError:
            pass  # it is gone
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._wakes)
            os.close(self._woken_by)

    def _take(self) -> None:
        if self._in is not None:
            self._attributes = termios.tcgetattr(self._in)
            tty.setcbreak(self._in)  # keys come at once and unseen; Ctrl-C and Ctrl-Z are signals as ever
        self._size, self._shown = (0, 0), []
        self._write(_ENTER)

    def _give_back(self) -> None:
        try:
            self._write(_LEAVE)
        finally:
            if self._in is not None and self._attributes is not None:
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._attributes)

    def _rest(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its terminal, and we get it back with `fg`."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # here it stops, and goes on
        signal.signal(signal.SIGTSTP, self._rest)
        self._take()

    def size(self) -> tuple[int, int]:
        """Columns and lines, now."""
        try:
            columns, lines = os.get_terminal_size(self._out)
        except OSError:
            columns, lines = 80, 24
        return columns or 80, lines or 24  # a pty that nobody has told says 0

    def paint(self, lines: Sequence[Text]) -> None:
        """Shows these lines from the top; what does not fit is cut, what is left of the picture before is cleared."""
        columns, height = size = self.size()
        parts = []
        if size != self._size:
            self._size, self._shown = size, []
            parts.append("\x1b[0m\x1b[2J")
        drawn = [self._ink(line, columns) for line in lines[:height]]
        drawn += [""] * (height - len(drawn))
        for place, text in enumerate(drawn):
            if place >= len(self._shown) or self._shown[place] != text:
                parts.append(f"\x1b[{place + 1};1H\x1b[0m\x1b[K{text}")
        self._shown = drawn
        if parts:
            self._write(_BEGIN + "".join(parts) + "\x1b[0m" + _END)

    def repaint(self) -> None:
        """The next picture is sent whole: something else has written on the screen."""
        self._size = (0, 0)

    def _ink(self, line: Text, columns: int) -> str:
        cut = line.copy()
        cut.truncate(columns, overflow="crop")
        with self._pen.capture() as caught:
            self._pen.print(cut, end="")
        return caught.get()

    def wait(self, seconds: float) -> list[str]:
        """The keys that were pressed; returns with none after so many seconds, when the window has another size, and
        when another thread calls `wake`."""
        until = time.monotonic() + max(0.0, seconds)
        while True:
            left = max(0.0, until - time.monotonic())
            partly = self._typed != ""
            fds = [self._wakes] if self._in is None else [self._wakes, self._in]
            ready, _, _ = select.select(fds, [], [], min(left, 0.05) if partly else left)
            if self._wakes in ready:
                try:
                    os.read(self._wakes, 4096)
                except BlockingIOError:
                    pass
            if self._in in ready and self._in is not None:
                try:
                    typed = os.read(self._in, 4096)
                except OSError:
                    typed = b""
                if not typed:  # the terminal is gone, though no signal said so
                    raise SystemExit(128 + signal.SIGHUP)
                self._typed += typed.decode("utf-8", "ignore")
                if _UNFINISHED.search(self._typed) and not partly:
                    continue  # the rest of an arrow key may be on its way
            if self._typed:
                typed_by_now, self._typed = self._typed, ""
                return keys_of(typed_by_now)
            if ready or left == 0.0:
                return []

    def wake(self) -> None:
        """Makes `wait` return; from any thread."""
        try:
            os.write(self._woken_by, b"\0")
        except OSError:
            pass  # full: it is awake; closed: it is over

    def _write(self, text: str) -> None:
        data = memoryview(text.encode(self._encoding, "replace"))
        while data:
            data = data[os.write(self._out, data) :]


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
