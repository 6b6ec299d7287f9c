"""Runs the program: the console script `litereplica`, and `python -m litereplica`."""

from __future__ import annotations

from typing import NoReturn

from litereplica.cli.fast_imports import fast_imports


def main() -> NoReturn:
    """Run the program on the command line of this process, and exit with its exit code."""
    with fast_imports():
        from litereplica.cli.main import main as run_and_exit
    run_and_exit()


if __name__ == "__main__":
    main()
