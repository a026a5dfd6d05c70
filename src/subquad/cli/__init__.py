"""The command line of subquad. It starts without torch."""

from subquad.cli.commands import app

__all__ = ["app"]
