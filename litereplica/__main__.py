"""Runs the program: `python -m litereplica` is the console script `litereplica`."""

from litereplica.cli.main import main

if __name__ == "__main__":
    main()
