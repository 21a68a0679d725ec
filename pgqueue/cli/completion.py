"""pgqueue completion: the lines that make a shell complete commands and options; the completing itself is click's."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print what makes bash, zsh or fish complete commands and options.

    \b
    Examples:
      pgqueue completion bash >> ~/.bashrc
      pgqueue completion zsh >> ~/.zshrc
      pgqueue completion fish > ~/.config/fish/completions/pgqueue.fish

    It takes effect in shells started from then on, and needs bash 4.4 or newer. In ~/.zshrc it must stand below
    `autoload -Uz compinit && compinit`.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # one of click's own three
    # Without the look at the shell's version that bash's own source() takes: it may be printed on another machine.
    made = kind(ctx.find_root().command, {}, "pgqueue", "_PGQUEUE_COMPLETE")
    click.echo(made.source_template % made.source_vars())
