"""What a run tells while it is under way: JSON objects, each with its name in "event"."""

from collections.abc import Callable
from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad.recorded import Count, Machine, Number, Status


class Progress(TypedDict):
    event: Literal["progress"]
    phase: str
    step: Count
    steps: Count
    loss: Number | None
    node: NotRequired[str]  # where it runs, of several machines


class Note(TypedDict):
    """Something happened that people should know, such as a damaged file."""

    event: Literal["note"]
    text: str


class Start(TypedDict):
    """The first event: where the run takes place."""

    event: Literal["start"]
    machine: Machine
    versions: dict[str, str]


class Outcome(TypedDict):
    """The last event. Whether its result is one is for the spec to check."""

    event: Literal["outcome"]
    status: Status
    reason: str


Event = Progress | Note
Tell = Callable[[Event], None]
