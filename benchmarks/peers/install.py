"""Gets a peer, the first time that it is asked for: a virtual environment or a node_modules of its own, in .bench/.

Through the ordinary clients, pip and npm, and from where they are configured to look. A peer that cannot be had is
left out, with a line that says why.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.contestants import ROOT, Program, last_words
from benchmarks.peers.registry import Peer
from tests.matrix import find_pythons

CACHE = ROOT / ".bench"
OLDEST_NODE = 18
PATIENCE = 600.0  # seconds for an installation


class Unavailable(Exception):
    """The peer cannot be had here."""


def available(peers: Iterable[Peer], say: Callable[[str], None] = print) -> list[tuple[Peer, Program, str]]:
    """Of these peers those that can be had, installed, each with its program and its version."""
    found = []
    for peer in peers:
        try:
            found.append((peer, *install(peer)))
        except Unavailable as error:
            say(f"skipped: {peer.name}: {error}")
    return found


def install(peer: Peer, cache: Path = CACHE) -> tuple[Program, str]:
    """Its program and its version. Raises Unavailable."""
    if peer.redis and not shutil.which("redis-server"):
        raise Unavailable("no redis-server on PATH")
    place = cache / peer.name
    command, version = (_node if peer.node else _python)(peer, place)
    env = {"NODE_PATH": str(place / "node_modules")} if peer.node else {}
    return Program(peer.name, command, peer.left, env, peer.analyze, prepares=peer.prepares), version


def _python(peer: Peer, place: Path) -> tuple[list[str], str]:
    pythons = [path for version, path in find_pythons().items() if _numbers(version) >= peer.python]
    if not pythons:
        raise Unavailable("no Python {}.{} or newer".format(*peer.python))
    interpreter = place / "bin" / "python"

    def make() -> None:
        _quietly([pythons[0], "-m", "venv", "--clear", str(place)])
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _quietly([*pip, *peer.packages])

    _once(place, [pythons[0], *peer.packages], make)
    name = re.split(r"[\[=]", peer.packages[0])[0]
    ask = f"import importlib.metadata, platform; print(importlib.metadata.version({name!r}), platform.python_version())"
    version, python = _quietly([str(interpreter), "-c", ask]).split()
    return [str(interpreter), "-m", f"benchmarks.peers.{peer.program}"], f"{version}, Python {python}"


def _node(peer: Peer, place: Path) -> tuple[list[str], str]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise Unavailable("no node and npm on PATH")
    runtime = _quietly([node, "--version"]).strip().lstrip("v")
    if _numbers(runtime)[0] < OLDEST_NODE:
        raise Unavailable(f"node is {runtime}; it takes {OLDEST_NODE} or newer")

    def make() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        flags = ["--prefix", str(place), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _quietly([npm, "install", *flags, *peer.packages])

    _once(place, list(peer.packages), make)
    name = peer.packages[0].rsplit("@", 1)[0]
    version = json.loads((place / "node_modules" / name / "package.json").read_text())["version"]
    return [node, str(Path(__file__).parent / peer.program)], f"{version}, Node {runtime}"


def _once(place: Path, wanted: list[str], make: Callable[[], None]) -> None:
    """Again only when something else is wanted than what is there; half an installation is none."""
    stamp = place / "installed"
    mark = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != mark:
        print(f"installing {place.name} …", flush=True)
        make()
        stamp.write_text(mark)


def _quietly(command: list[str]) -> str:
    """What it printed. Raises Unavailable with the last thing it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from None
    if done.returncode:
        raise Unavailable(last_words(done.stderr or done.stdout))
    return done.stdout


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
