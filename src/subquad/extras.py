"""Packages that an extra of subquad brings: what needs one asks here, so that its absence is one line."""

from importlib.metadata import version
from importlib.util import find_spec


class MissingExtra(ImportError):
    """A package that an extra brings is not installed, or is too old; the message names the remedy."""


def require(package: str, *, extra: str, user: str, since: tuple[int, int] = (0, 0)) -> None:
    """Raise `MissingExtra` where the package is not installed, or is older than its version `since`.

    user: what needs it, in the plural: the message begins with that.
    """
    remedy = f'pip install "subquad[{extra}]"'
    if find_spec(package) is None:
        raise MissingExtra(f"{user} need {package}: {remedy}")
    if since > (0, 0) and tuple(map(int, version(package).split(".")[:2])) < since:
        wanted = ".".join(map(str, since))
        raise MissingExtra(f"{user} need {package} {wanted} or later, not {version(package)}: {remedy}")
