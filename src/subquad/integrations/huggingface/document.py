"""What `conversion.json` holds: what was asked, what came of it, and what the model then takes."""

from typing import Any, NotRequired

from typing_extensions import TypedDict


class StageFields(TypedDict):
    name: str
    quality: dict[str, float]
    steps: int
    seconds: float
    loss: list[float]


class ReadingFields(TypedDict):
    ms: float
    mb: float


class DecodingFields(TypedDict):
    tokens_per_second: float
    cache_mb: float


class Readings(TypedDict):
    """At one length, by the model as it was and by the converted one."""

    tokens: int
    original: ReadingFields
    converted: ReadingFields


class Decodings(TypedDict):
    tokens: int
    original: DecodingFields
    converted: DecodingFields


class ConversionFields(TypedDict):
    """Fields come as they are known: what is asked first, what was measured last."""

    asked: dict[str, Any]
    architecture: NotRequired[str]
    layers: NotRequired[dict[str, str | None]]
    stages: NotRequired[list[StageFields]]
    versions: NotRequired[dict[str, str]]
    reading: NotRequired[list[Readings]]
    decoding: NotRequired[list[Decodings]]
    machine: NotRequired[dict[str, Any]]
