"""Block sizes, warps and stages, by architecture, dtype and width: tables that the gate writes and guards.

A line of the JSON file is named "sm_90 bfloat16 64 out": architecture, dtype, the width of values, kernel. It
says what the kernel is launched with, and what it then takes: bytes of shared memory, and registers of a
thread as each version of Triton has compiled it.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subquad.ops.triton.launch import Kernel, architecture_of

WIDTHS = (64, 128)  # that have lines; others take the next, with blocks cut to what they need


class Config(NamedTuple):
    """What a kernel is launched with: its block sizes by name, warps, and stages of its pipelines."""

    blocks: dict[str, int]
    warps: int
    stages: int

    def within(self, **most: int) -> "Config":
        """The same with blocks that are no longer than these."""
        blocks = {name: min(size, most.get(name, size)) for name, size in self.blocks.items()}
        return self._replace(blocks=blocks)


Candidates = Callable[[str, torch.dtype, int, int], Iterable[Config]]


class Configs:
    """The table of a family of kernels, and candidates of which the gate takes the first that passes.

    `candidates` takes a kernel's name, dtype, width and architecture, and begins with what should be fastest.
    """

    def __init__(self, path: Path, candidates: Candidates) -> None:
        self.path, self.candidates = path, candidates
        self.lines: dict[str, dict[str, int]] = {}
        self.read()
        self.known: dict[tuple[str, torch.dtype, int, int], Config] = {}

    def find(self, kernel: Kernel, like: Tensor) -> Config:
        """For the dtype, width and device of `like`; where there is no line, the first candidate."""
        key = kernel.__name__, like.dtype, like.shape[-1], architecture_of(like.device)
        if key not in self.known:
            line = self.lines.get(name_of(*key))
            self.known[key] = next(iter(self.candidates(*key))) if line is None else config_of(line)
        return self.known[key]

    @contextmanager
    def trying(self, kernel: str, dtype: torch.dtype, width: int, architecture: int, config: Config):
        """Within, that kernel has this config."""
        key = kernel, dtype, width, architecture
        before, self.known[key] = self.known.get(key), config
        try:
            yield
        finally:
            del self.known[key]
            if before is not None:
                self.known[key] = before

    def read(self) -> None:
        if self.path.exists():
            self.lines = json.loads(self.path.read_text())

    def add(self, name: str, line: dict[str, int]) -> None:
        """Write a line, beside those of others, and beside what other versions found of its config."""
        self.read()
        before = self.lines.get(name)
        if before is not None and config_of(before) == config_of(line):
            line = {**before, **line, "shared": max(before["shared"], line["shared"])}
        self.lines[name] = line
        lines = (f"{json.dumps(name)}: {json.dumps(self.lines[name])}" for name in sorted(self.lines))
        body = ",\n".join(lines)
        self.path.write_text(f"{{\n{body}\n}}\n")


class Family(NamedTuple):
    """Kernels that share a table; `calls` are functions that launch them, for a dtype and a width."""

    configs: Configs
    calls: Callable[[torch.dtype, int], Iterable[Callable[[], Any]]]


def name_of(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> str:
    least = next(w for w in WIDTHS if w >= width)
    return f"sm_{architecture} {str(dtype).removeprefix('torch.')} {least} {kernel}"


def config_of(line: dict[str, int]) -> Config:
    blocks = {name: size for name, size in line.items() if name.isupper()}
    return Config(blocks, line["warps"], line["stages"])
