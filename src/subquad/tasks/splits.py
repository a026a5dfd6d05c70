"""Who is trained on, who is chosen by and who is judged on: decided by the entity's name alone, or, where
there are no entities, by an example's content.

A hash of the name falls evenly on [0, 1): an entity stays in its split whatever other entities, rows
or orders stand in the file, on every machine.
"""

from collections.abc import Iterable
from hashlib import blake2b

from subquad.fields import SPLITS, Split

BOUNDS = (0.6, 0.8)  # train below the first, test from the second on


def split_of(entity: str | bytes) -> Split:
    """The split an entity belongs to: 60 % train, 20 % validation, 20 % test."""
    name = entity.encode() if isinstance(entity, str) else entity
    digest = blake2b(name, digest_size=8, person=b"subquad split").digest()
    place = int.from_bytes(digest, "big") / 2**64
    return SPLITS[sum(place >= bound for bound in BOUNDS)]


def members(entities: Iterable[str]) -> dict[str, list[str]]:
    """The entities of each split, in the order given."""
    groups: dict[str, list[str]] = {split: [] for split in SPLITS}
    for entity in entities:
        groups[split_of(entity)].append(entity)
    return groups
