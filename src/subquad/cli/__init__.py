"""The command line of subquad. It starts without torch."""

from subquad.cli.choose import app

__all__ = ["app"]
