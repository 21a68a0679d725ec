"""pgqueue completion: what a shell is given, and what it then finds: commands, options, choices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run

BIN = Path(sys.executable).parent


def complete(*words: str) -> set[str]:
    """What `pgqueue WORDS<tab>` offers, asked of the installed script as the shells ask it."""
    variables = {"_PGQUEUE_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(("pgqueue", *words))}
    environment = {**os.environ, **variables, "COMP_CWORD": str(len(words))}
    done = subprocess.run([BIN / "pgqueue"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return {line.split(",", 1)[1] for line in done.stdout.splitlines()}


def test_it_completes_commands_options_and_choices() -> None:
    assert {"migrate", "worker", "enqueue", "jobs", "dead", "demo", "completion"} <= complete("")
    assert complete("jobs", "re") == {"retry"}
    assert {"--queues", "--concurrency", "--drain", "--database-url"} <= complete("worker", "--")
    assert complete("jobs", "list", "--state", "d") == {"dead"}
    assert complete("completion", "") == {"bash", "zsh", "fish"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_it_prints_calls_the_installed_command(run: Run, shell: str) -> None:
    text = run("completion", shell).stdout
    assert f"_PGQUEUE_COMPLETE={shell}_complete" in text
    assert "_pgqueue_completion" in text
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=text, text=True, check=True)  # reads it, runs nothing


def test_a_shell_that_is_not_known_is_a_usage_error(run: Run) -> None:
    assert "'tcsh' is not one of" in run("completion", "tcsh", code=2).stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_bash_that_has_read_it_completes() -> None:
    script = (
        'eval "$(pgqueue completion bash)"; complete -p pgqueue; '
        'COMP_WORDS=(pgqueue dead re); COMP_CWORD=2; _pgqueue_completion pgqueue; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=True)
    registered, offered = done.stdout.splitlines()
    assert registered.endswith("-F _pgqueue_completion pgqueue")
    assert offered == "redrive"
    assert done.stderr == ""


def in_shell(program: str, *arguments: str) -> list[str]:
    """The lines that a shell prints which finds the installed script; it reads nobody's own settings."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": "/nonexistent"}
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_a_fish_that_has_read_it_completes(tmp_path: Path) -> None:
    (tmp_path / "ours.fish").write_text("\n".join(in_shell(str(BIN / "pgqueue"), "completion", "fish")))
    script = f"source {tmp_path}/ours.fish; complete -C 'pgqueue dead re'; complete -C 'pgqueue jobs list --state c'"
    offered = in_shell("fish", "--no-config", "-c", script)
    assert {line.split("\t")[0] for line in offered} == {"redrive", "completed", "cancelled"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_a_zsh_that_has_read_it_completes() -> None:
    script = (
        'autoload -Uz compinit && compinit -D -u; eval "$(pgqueue completion zsh)"; print $_comps[pgqueue]; '
        "_describe() { print -rl -- ${(P)3} }; compadd() { print -rl -- ${(P)@[-1]} }; "  # in place of the line editor
        "words=(pgqueue dead re); CURRENT=3; _pgqueue_completion; "
        "words=(pgqueue jobs list --state c); CURRENT=5; _pgqueue_completion"
    )
    registered, *offered = in_shell("zsh", "-f", "-c", script)
    assert registered == "_pgqueue_completion"
    assert [line.split(":")[0] for line in offered if line] == ["redrive", "completed", "cancelled"]
