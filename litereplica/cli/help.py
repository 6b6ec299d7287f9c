"""`litereplica help`: show the help of the program or of a command."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def _commands(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    root = ctx.find_root()
    return root.command.shell_complete(root, incomplete) if isinstance(root.command, click.Group) else []


@click.command()
@click.argument("name", metavar="[COMMAND]", required=False, shell_complete=_commands)
@click.pass_context
def command(ctx: click.Context, name: str | None) -> None:
    """Show the help of the program or of COMMAND, as --help does.

    \b
    Example:
      litereplica help
      litereplica help restore
    """
    root = ctx.find_root()
    group = root.command
    assert isinstance(group, click.Group)
    if name is None:
        click.echo(group.get_help(root))
        return
    found = group.get_command(root, name)
    assert found is not None  # an unknown name raises
    inner = found.context_class(found, info_name=name, parent=root, **found.context_settings)
    click.echo(found.get_help(inner))
