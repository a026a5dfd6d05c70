"""The command line of subquad. It starts without torch."""

from subquad.cli.fidelity import app

__all__ = ["app"]
