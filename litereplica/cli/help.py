"""`litereplica help`: show the help of the program or of a command."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", metavar="[COMMAND]", required=False)
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
    inner = click.Context(found, info_name=name, parent=root, **found.context_settings)
    click.echo(found.get_help(inner))
