"""A small data set of one's own: sixty accounts, whose owners are over 55 where they mostly withdraw."""

import random
from pathlib import Path

SCHEMA = """
[events]
path = "events.csv"
entity = "account"
time = "date"
categorical = ["type"]
numeric = ["amount"]

[target]
path = "owners.csv"
entity = "account"
column = "{column}"
kind = "{kind}"
"""


def write(folder: Path, *, column: str = "over_55", kind: str = "binary") -> Path:
    """The schema's path; its data lie beside it."""
    generator = random.Random(0)
    events, owners = ["account,date,type,amount"], ["account,over_55,region,age"]
    for account in range(60):
        old = account % 3 == 0
        owners.append(
            f"a{account},{str(old).lower()},{['north', 'east', 'west'][account % 3]},{30 + account}"
        )
        for _ in range(generator.randint(3, 20)):
            kind_of_event = "out" if generator.random() < (0.8 if old else 0.4) else "in"
            day = generator.randint(1, 28)
            events.append(f"a{account},2024-0{generator.randint(1, 9)}-{day:02d},{kind_of_event},{day * 1.5}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.csv").write_text("\n".join(events) + "\n")
    (folder / "owners.csv").write_text("\n".join(owners) + "\n")
    schema = folder / "schema.toml"
    schema.write_text(SCHEMA.format(column=column, kind=kind))
    return schema
