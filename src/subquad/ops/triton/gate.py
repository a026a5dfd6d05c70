"""What kernels take on cards that are not there: compiled for them, and read.

    python -m subquad.ops.triton            every kernel as the tables have it; exit status 1 where one fails
    python -m subquad.ops.triton --write    what the tables lack of this version of Triton

Where a table has no line, or one that fails, `--write` takes the next candidate that passes: run in turns
with several versions, until nothing changes, it finds the first that passes with all of them. Lines of
kernels that were changed are deleted first.

A kernel fails that spills registers, does not fit a card's shared memory, has more registers than its line
says, or a product that Triton compiles wrongly. What is compiled is what backends launch: their functions are
called with inputs without memory, and the launches recorded. Neither card nor driver is needed; `cuobjdump`
comes with Triton.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from subquad.ops.triton import availability
from subquad.ops.triton.availability import PRECISIONS
from subquad.ops.triton.configs import WIDTHS, Config, Family, config_of, name_of
from subquad.ops.triton.launch import OPTIONS, Launch, recorded
from subquad.ops.triton.miscompiled import chained_products, transposed_products

REGISTERS = f"registers {triton.__version__}"  # in a line
SHARED = {80: 101376, 90: 232448, 100: 232448, 120: 101376}  # bytes of a block; 80 stands for 86 and 89, too
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
ARCHITECTURES = tuple(set(availability.ARCHITECTURES.values()))
FAMILIES = (  # modules of operators
    "linear_attention.triton_features",
    "linear_attention.triton_exponentials",
    "linear_attention.triton_causal",
    "linear_attention.triton_steps",
    "bucket_attention.triton_buckets",
    *(f"recurrence.triton_{name}" for name in ("heads", "channels", "delta", "rows", "steps")),
)


def families() -> Iterator[tuple[str, Family]]:
    for module in FAMILIES:
        yield module, import_module(f"subquad.ops.{module}").FAMILY


@dataclass(frozen=True)
class Need:
    """What a compiled kernel takes, and its products that Triton may have compiled wrongly."""

    registers: int  # a thread
    spills: int  # instructions
    shared: int  # bytes
    wrong: tuple[str, ...]

    def faults(self, architecture: int, registers: int | None = None) -> list[str]:
        """Why it must not ship, beside a line with that many registers."""
        limit = SHARED[architecture]
        found = [f"Triton compiles wrongly: {line}" for line in self.wrong]
        if self.spills:
            found.append(f"{self.spills} instructions spill registers")
        if self.shared > limit:
            found.append(f"{self.shared} bytes of shared memory, of {limit}")
        if registers is not None and self.registers > registers:
            found.append(f"{self.registers} registers, no more than {registers} before")
        return found


def need_of(launch: Launch, architecture: int) -> Need:
    """Compile what was recorded, for that architecture."""
    options = {"num_warps": launch.config.warps, "num_stages": launch.config.stages, **OPTIONS}
    made = triton.compile(source_of(launch), target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        usage = read_binary(cubin, "-res-usage")
        code = "" if "STACK:0 " in usage else read_binary(cubin, "-sass")
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    ttir = made.asm["ttir"]
    wrong = transposed_products(ttir) + (chained_products(ttir) if architecture >= 100 else [])
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return Need(int(registers[1]), spills, made.metadata.shared, tuple(wrong))


def read_binary(cubin: Path, what: str) -> str:
    return subprocess.run([CUOBJDUMP, what, cubin], capture_output=True, text=True, check=True).stdout


def source_of(launch: Launch) -> ASTSource:
    """With the types and alignments that Triton's launcher would read off the inputs."""
    kernel: Any = launch.kernel
    types, constants, attributes = {}, {}, {}

    def describe(place: tuple[int, ...], x: Any, *, specialise: bool) -> Any:
        if isinstance(x, tuple):
            return tuple(describe((*place, n), y, specialise=specialise) for n, y in enumerate(x))
        if isinstance(x, int) and x == 1 and specialise:
            constants[place] = 1
            return "constexpr"
        if isinstance(x, Tensor) or (isinstance(x, int) and x % 16 == 0 and specialise):
            attributes[place] = [["tt.divisibility", 16]]
        return f"*{TYPES[x.dtype]}" if isinstance(x, Tensor) else "i32" if isinstance(x, int) else "fp32"

    inputs = dict(zip(kernel.arg_names, launch.inputs, strict=False)) | launch.constants
    for n, parameter in enumerate(kernel.params):
        value = inputs[parameter.name]
        if parameter.is_constexpr:
            constants[(n,)] = value
            types[parameter.name] = "constexpr"
        else:
            types[parameter.name] = describe((n,), value, specialise=not parameter.do_not_specialize)
    return ASTSource(kernel, types, constants, attributes)


class Case(NamedTuple):
    """A line of a table: a kernel, and where it is launched."""

    kernel: str
    dtype: torch.dtype
    width: int
    architecture: int

    @property
    def name(self) -> str:
        return name_of(*self)


def launches_of(family: Family, dtype: torch.dtype, width: int, architecture: int) -> list[Launch]:
    """What the family's calls launch, each variant of a kernel once."""
    with recorded(architecture) as launches:
        for call in family.calls(dtype, width):
            call()
    return list({variant(launch): launch for launch in launches}.values())


def variant(launch: Launch) -> str:
    source = source_of(launch)
    return f"{launch.kernel.__name__} {source.signature} {source.constants} {source.attrs}"


def cases(family: Family) -> Iterator[Case]:
    """All kernels of a family, as cards, dtypes and widths need them."""
    for architecture in ARCHITECTURES:
        for dtype in PRECISIONS:
            for width in WIDTHS:
                kernels = {x.kernel.__name__ for x in launches_of(family, dtype, width, architecture)}
                yield from (Case(kernel, dtype, width, architecture) for kernel in sorted(kernels))


def variants(family: Family, case: Case) -> list[Launch]:
    """Of the kernel, as the table, or what is tried in its place, has it."""
    launches = launches_of(family, case.dtype, case.width, case.architecture)
    return [x for x in launches if x.kernel.__name__ == case.kernel]


def check(family: Family, case: Case) -> list[str]:
    """What is wrong with a kernel as the table has it."""
    line = family.configs.lines.get(case.name)
    if line is None:
        return ["the table has no line for it: python -m subquad.ops.triton --write"]
    needs = (need_of(launch, case.architecture) for launch in variants(family, case))
    return [fault for need in needs for fault in need.faults(case.architecture, line.get(REGISTERS))]


def search(family: Family, case: Case) -> list[str]:
    """Write the line's config, or the next candidate that passes; else say what is wrong with each."""
    wrong, line = [], family.configs.lines.get(case.name)
    candidates = list(family.configs.candidates(*case))
    if line is not None and config_of(line) in candidates:
        candidates = candidates[candidates.index(config_of(line)) :]
    for config in candidates:
        with family.configs.trying(*case, config=config):
            launches = variants(family, case)
        needs, faults = [], []
        while launches and not faults:
            needs.append(need_of(launches.pop(), case.architecture))
            faults = needs[-1].faults(case.architecture)
        if not faults:
            family.configs.add(case.name, line_of(config, needs))
            return []
        wrong += [f"{config}: {fault}" for fault in faults]
    return wrong


def line_of(config: Config, needs: list[Need]) -> dict[str, int]:
    most = {"shared": max(x.shared for x in needs), REGISTERS: max(x.registers for x in needs)}
    return {**config.blocks, "warps": config.warps, "stages": config.stages, **most}
