"""The PGQUEUE_… variables: which there are, read strictly, and a name that nobody reads is spoken of once.

A variable comes from a unit file or a deployment's template, far from whoever wrote it. One that is empty, or nearly a
number, was meant to be something: to take it for the default would be to guess. One that is misspelled changes nothing,
which is worse, but may be another program's: it is named in a warning, with the setting that was probably meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches

from pgqueue.errors import ConfigurationError
from pgqueue.settings import WorkerSettings

PREFIX = "PGQUEUE_"
_OTHERS = ("DATABASE_URL", "SCHEMA", "LOG_LEVEL", "LOG_FORMAT")
_OF_TESTS = ("PG_BIN", "TEST_DATABASE_URL")  # embedded.py, testing.py
KNOWN = frozenset(PREFIX + name for name in (*(f.name.upper() for f in fields(WorkerSettings)), *_OTHERS, *_OF_TESTS))

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_told: set[str] = set()  # names that this process has warned of


def whole(name: str, text: str) -> int:
    """A whole number, in plain digits; ConfigurationError names the variable."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ConfigurationError(f"{name} must be a whole number such as 5, not {_shown(text)}")
    return int(text)


def number(name: str, text: str) -> float:
    """A number, for seconds: no unit, no infinity; ConfigurationError names the variable."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?", text):
        raise ConfigurationError(f"{name} must be a number of seconds such as 5 or 0.5, not {_shown(text)}")
    return float(text)


def switch(name: str, text: str) -> bool:
    """true, yes, on, 1 or their opposites; ConfigurationError names the variable."""
    if text.lower() not in _SWITCH:
        raise ConfigurationError(f"{name} must be true or false, not {_shown(text)}")
    return _SWITCH[text.lower()]


def one_of(name: str, text: str, choices: Collection[str]) -> str:
    """One of `choices`; ConfigurationError names the variable."""
    if text not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {_shown(text)}")
    return text


def present(name: str, text: str) -> str:
    """Any text but none; ConfigurationError names the variable."""
    if not text.strip():
        raise ConfigurationError(f"{name} is empty: give it a value, or unset it")
    return text


def unknown(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, what to say of it) of each PGQUEUE_ variable that is no setting; never its value."""
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in KNOWN:
            known = {one.removeprefix(PREFIX): one for one in sorted(KNOWN)}
            near = get_close_matches(name.removeprefix(PREFIX).upper(), known, n=1, cutoff=0.5)
            meant = f": did you mean {known[near[0]]}?" if near else ""
            shown = name if name.isprintable() else ascii(name)
            yield name, f"the environment variable {shown} is no setting of pgqueue and changes nothing{meant}"


def warn(tell: Callable[[str], object], environ: Mapping[str, str] = os.environ) -> None:
    """Tells of each unknown name, once in a process."""
    for name, line in unknown(environ):
        if name not in _told:
            _told.add(name)
            tell(line)


def _shown(text: str) -> str:
    return "an empty value" if not text else ascii(text[:40])
