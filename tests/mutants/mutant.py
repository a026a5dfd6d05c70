"""What a planted bug is, and planting it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """One text replaced in one definition, wherever in the package that stands."""

    mechanism: str  # or whole layer
    check: str  # the check that must catch it
    bug: str
    where: str  # "function", "Class.method", "CONSTANT", or "file.CONSTANT" where several files hold it
    old: str
    new: str


class KernelMutant(NamedTuple):
    """The same in a kernel, which a test must catch."""

    test: str  # in `tests/interpreted`
    bug: str
    where: str
    old: str
    new: str


def plant(mutant: Mutant | KernelMutant, package: Path) -> None:
    """Change the package that lies in `package`; `ValueError` where there is not exactly one such place."""
    texts = read(package)
    path, start, end = place(mutant, texts)
    text = texts[path]
    path.write_text(text[:start] + text[start:end].replace(mutant.old, mutant.new) + text[end:])


def read(package: Path) -> dict[Path, str]:
    """The files of a package."""
    return {path: path.read_text() for path in sorted(package.rglob("*.py"))}


def place(mutant: Mutant | KernelMutant, texts: dict[Path, str]) -> tuple[Path, int, int]:
    """In which file the definition to be changed stands, and from where to where; `ValueError` as `plant`."""
    places = [
        (path, start, end)
        for path, text in texts.items()
        if mutant.old in text
        for start, end in definitions(text, mutant.where.removeprefix(f"{path.stem}."))
        if mutant.old in text[start:end]
    ]
    if len(places) != 1:
        files = [str(path) for path, *_ in places]
        raise ValueError(f"{mutant.where} with {mutant.old!r} stands in {files or 'no file'}: plant it anew")
    return places[0]


def definitions(text: str, where: str) -> Iterator[tuple[int, int]]:
    """Where each definition of that name begins and ends."""
    lines = text.splitlines(keepends=True)
    for name, first, last in named(ast.parse(text).body):
        if name == where:
            yield sum(map(len, lines[: first - 1])), sum(map(len, lines[:last]))


def named(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """The name of each function, class, method and constant, with its first and last line."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                first = min([node.lineno, *(x.lineno for x in node.decorator_list)])
                yield prefix + node.name, first, node.end_lineno or first
                if isinstance(node, ast.ClassDef):
                    yield from named(node.body, f"{node.name}.")
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield prefix + name, node.lineno, node.end_lineno or node.lineno
