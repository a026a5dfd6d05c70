"""The command line of subquad. It starts without torch."""

from subquad.cli.generate import app

__all__ = ["app"]
