"""`subquad`, and `python -m subquad`: the command line, with every error the user can mend in one line."""

import sys
import tempfile
import traceback

from subquad.extras import MissingExtra

MISSING = 'subquad: {error}; the command line needs more than the library: pip install "subquad[compare]"'
BAD_USAGE = 2


def main() -> int:
    """Run the command line and return the exit status: 0, 1 (a run failed) or 2 (bad usage)."""
    try:
        from subquad.cli import app

        app()
    except ModuleNotFoundError as error:
        return complain(MISSING.format(error=error))
    except (MissingExtra, ValueError, OSError) as error:
        return complain(f"subquad: {error}")
    except RecursionError:
        return complain("subquad: what was given has too many levels within one another")
    except Exception as error:
        from subquad.executors.outcome import failure

        if (ended := failure(error))["status"] == "out of memory":
            return complain(f"subquad: out of memory: {ended['reason']}; ask for less")
        with tempfile.NamedTemporaryFile("w", prefix="subquad-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        return complain(f"subquad: internal error: {type(error).__name__}: {error}; details in {file.name}")
    return 0


def complain(message: str) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return BAD_USAGE


if __name__ == "__main__":
    sys.exit(main())
