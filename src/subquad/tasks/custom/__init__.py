"""Anyone's tables as a task: what a schema file says of them, and a file for each kind of data."""

from dataclasses import replace
from pathlib import Path

import polars  # noqa: F401  # without it nothing here can be read, and the catalog says so

from subquad.task import Dataset, Task, TaskTraits
from subquad.tasks.custom.events import load_events
from subquad.tasks.custom.pairs import load_pairs
from subquad.tasks.custom.schema import Examples, PlainFiles, read_schema
from subquad.tasks.custom.text import load_text
from subquad.tasks.custom.tokens import TokenLists, load_tokens
from subquad.tasks.encoding import Encoding
from subquad.tasks.errors import DataError
from subquad.tasks.language import Language
from subquad.tasks.matching import PairedTexts
from subquad.tasks.text import TextEncoding


class Custom(Task):
    """The task that a schema file describes; see `subquad.tasks.custom.schema`.

    `schema`: its path.
    """

    traits = TaskTraits(
        name="custom",
        description="your own events, texts, pairs, tokens or files, as --data schema.toml describes them",
        targets=(),
        unit="event",
        length=512,
        source="the files that the schema names",
    )
    encoding = Encoding | TextEncoding | PairedTexts | TokenLists

    def __init__(self, *, schema: str = "") -> None:
        if not schema:
            raise DataError(
                "the task 'custom' needs to know your tables: give a schema file (--data schema.toml)"
            )
        self.schema = read_schema(Path(schema))
        table = self.schema.table
        targets, unit, length = tuple(self.schema.targets), self.traits.unit, self.traits.length
        if isinstance(table, PlainFiles):
            language = Language.traits
            targets, unit, length = language.targets, language.unit, language.length
        elif isinstance(table, Examples):
            unit = "byte" if getattr(table, "tokens", None) == "bytes" else "token"
            length = table.cut
        self.traits = replace(self.traits, targets=targets, unit=unit, length=length)

    def load(self, *, target: str | None = None, length: int | None = None) -> Dataset:
        name = target or self.traits.targets[0]
        match self.schema.kind:
            case "language":
                return Language(path=str(self.schema.table.path)).load(target=name, length=length)
            case "events":
                return load_events(self.schema, name, keep=length)
            case "text":
                return load_text(self.schema, name, length=length)
            case "pairs":
                return load_pairs(self.schema, name, length=length)
            case _:
                return load_tokens(self.schema, name, length=length)
