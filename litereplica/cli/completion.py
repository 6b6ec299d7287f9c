"""`litereplica completion`: the script that lets a shell complete commands, options and paths.

The script asks the program itself, with what was typed in the environment; `main.run` then calls `complete`.
"""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete commands, options and paths.

    \b
    Example:
      litereplica completion bash > /etc/bash_completion.d/litereplica
      litereplica completion zsh > /usr/local/share/zsh/site-functions/_litereplica
      litereplica completion fish > /etc/fish/completions/litereplica.fish
    """
    root = ctx.find_root()
    click.echo(_completer(root.command, str(root.info_name), shell).source(), nl=False)


def complete(cli: click.Command, program: str, instruction: str) -> None:
    """Print what a script asks for: the completions of the word that is being typed."""
    shell = instruction.partition("_")[0]
    if shell in SHELLS:
        click.echo(_completer(cli, program, shell).complete())


def _completer(cli: click.Command, program: str, shell: str) -> ShellComplete:
    variable = f"_{program.upper()}_COMPLETE"
    base = get_completion_class(shell)
    assert base is not None

    class Completer(base):  # type: ignore[valid-type,misc]  # one of click's three
        def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
            """Return click's completions; where it has none, those of a path."""
            try:
                found: list[CompletionItem[str]] = super().get_completions(args, incomplete)
            except click.ClickException:  # what stands before is wrong: the command itself will say so
                return []
            is_path = not found and not incomplete.startswith("-")
            return [CompletionItem(incomplete, type="file")] if is_path else found

    return Completer(cli, {}, program, variable)
