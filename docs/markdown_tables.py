"""Tables in Markdown, and where they stand in a page."""

from collections.abc import Iterable, Sequence


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    escaped = ((cell.replace("|", "\\|") for cell in cells) for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def between_marks(text: str, name: str, maker: str, made: str) -> str:
    """`text` with `made` between the two marks of that name."""
    begin, end = f"<!-- {name}: made by {maker} -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{made}\n{end}{after}"
