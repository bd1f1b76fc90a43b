"""The command line's fixture serves the scripts that run it."""

from tests.cli.conftest import cli

__all__ = ["cli"]
