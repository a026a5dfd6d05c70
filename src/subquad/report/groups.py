"""Letters for the rows of a table: two that share one cannot be told apart."""

from collections.abc import Collection, Mapping, Sequence
from string import ascii_letters


def group_letters(rows: Sequence[str], apart: Collection[tuple[str, str]]) -> dict[str, str]:
    """The letters of each row, in the rows' order; `apart` holds the pairs that are told apart, once each.

    Each letter stands for a largest set of rows of which no two are told apart. A row alone has none.
    """
    letters = dict.fromkeys(rows, "")
    if len(rows) < 2:
        return letters
    different = {*apart, *((second, first) for first, second in apart)}
    alike = {
        name: {other for other in rows if other != name and (name, other) not in different} for name in rows
    }
    for index, clique in enumerate(sorted(_cliques(alike), key=lambda names: [*map(rows.index, names)])):
        for name in clique:
            letters[name] += _letter(index)
    return letters


def _cliques(alike: Mapping[str, set[str]]) -> list[list[str]]:
    """The largest sets of mutually alike names, each in the mapping's order (Bron and Kerbosch 1973)."""
    order = list(alike)
    cliques: list[list[str]] = []

    def grow(clique: list[str], possible: list[str], done: set[str]) -> None:
        if not possible and not done:
            cliques.append(sorted(clique, key=order.index))
        while possible:
            name = possible.pop(0)
            near = alike[name]
            grow([*clique, name], [other for other in possible if other in near], done & near)
            done = done | {name}

    grow([], order.copy(), set())
    return cliques


def _letter(index: int) -> str:
    """a, b, … z, A, … Z, and then letters of other alphabets: always a single one."""
    return ascii_letters[index] if index < len(ascii_letters) else chr(ord("Ā") + index - len(ascii_letters))
