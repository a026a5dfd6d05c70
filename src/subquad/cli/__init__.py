"""The command line of subquad. It starts without torch."""

from subquad.cli.convert import app

__all__ = ["app"]
