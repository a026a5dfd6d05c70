"""What Triton is known to compile wrongly without a word, read off a kernel's Triton IR.

`transposed_products`: products whose first operand is the transpose of another's result. Wrong on Hopper with
Triton 3.4 to 3.7.0 (fla-org/flash-linear-attention issue 640, triton-lang/triton issue 6124).

`chained_products`: products in a loop that go on with the sum of another product of the same round. Wrong on
Blackwell with Triton 3.6 to 3.8 (triton-lang/triton issue 10821). Two sums, added behind the loop, are right.

Neither interpreter nor compiler shows it. The IR is read before layouts are chosen, so that sound code may be
named too.
"""

import re
from collections import defaultdict
from typing import NamedTuple

STRAIGHT, TURNED = 1, 2  # flags: a value descends from a product, or from the transpose of one
ENDS = {"tt.load", "tt.reduce", "tt.make_range", "tt.get_program_id", "tt.descriptor_load", "arith.constant"}
LOOPS = {"scf.for", "scf.while"}

LOCATION = re.compile(r"\s*loc\((?:[^()]|\([^()]*\))*\)")
LINE = re.compile(r'^(?:(%[\w.\-]+)(?::(\d+))? = )?"?([\w]+\.[\w.]+)"?(.*)$')
VALUE = re.compile(r"%[\w.\-]+(?:#\d+)?")
CARRIED = re.compile(r"(?:iter_args|scf\.while )\((.*?)\)")
ARGUMENTS = re.compile(r"^\^\w+\((.*)\):$")


class Operation(NamedTuple):
    """A line of the code, whose values have numbers of their own."""

    name: str
    results: list[int]
    operands: list[int]
    line: str
    region: int  # in which it stands


class Region(NamedTuple):
    """Code in braces: the operation that it belongs to, and the values that a loop carries through it."""

    number: int
    owner: Operation | None
    carried: list[int]


class Code:
    """The operations of a function, and whence each value may come: from loops and branches, too."""

    def __init__(self, ttir: str) -> None:
        self.operations: list[Operation] = []
        self.loops: set[int] = set()  # numbers of regions
        self.sources: dict[int, list[int]] = defaultdict(list)  # of values that are the same as another
        self._names: list[dict[str, int]] = [{}]
        self._regions = [Region(0, None, [])]
        self._values = self._numbers = 0
        self._passed: list[int] = []  # by scf.condition to the region behind it
        for line in ttir.splitlines():
            line = LOCATION.sub("", line).strip()
            if line and not line.startswith("#"):
                self._read(line)

    def _define(self, name: str) -> int:
        self._values += 1
        self._names[-1][name] = self._values
        return self._values

    def _value(self, name: str) -> int:
        return next((names[name] for names in reversed(self._names) if name in names), 0)

    def _open(self, owner: Operation | None, *, loop: bool) -> None:
        self._numbers += 1
        self._regions.append(Region(self._numbers, owner, []))
        self._names.append({})
        if loop:
            self.loops.add(self._numbers)

    def _read(self, line: str) -> None:
        if line.startswith("}"):
            region = self._regions.pop()
            self._names.pop()
            if line.endswith("{"):  # else, do
                self._open(region.owner, loop=region.number in self.loops)
                self._regions[-1].carried.extend(region.carried)
            return
        if arguments := ARGUMENTS.match(line):
            values = [self._define(name) for name in VALUE.findall(arguments[1])]
            for value, source in zip(values, self._passed, strict=False):
                self.sources[value].append(source)
            self._passed = []
        elif match := LINE.match(line):
            self._operation(line, *match.groups())
        elif line.endswith("{"):
            self._open(None, loop=False)

    def _operation(self, line: str, result: str | None, count: str | None, name: str, rest: str) -> None:
        carried = CARRIED.search(line) if name in LOOPS else None
        pairs = [pair.split(" = ") for pair in carried[1].split(", ")] if carried else []
        begins = [self._value(value.strip()) for _, value in pairs]
        operands = [] if name in LOOPS else [self._value(x) for x in VALUE.findall(rest)]
        results = []
        if result:
            names = [result] if count is None else [f"{result}#{n}" for n in range(int(count))]
            results = [self._define(x) for x in names]
            self._names[-1][result] = results[0]
        operation = Operation(name, results, operands, line, self._regions[-1].number)
        self.operations.append(operation)
        for value, begin in zip(results, begins, strict=False):
            self.sources[value].append(begin)
        if line.endswith("{"):
            self._open(operation, loop=name in LOOPS)
            values = [self._define(name.strip()) for name, _ in pairs]
            self._regions[-1].carried.extend(values)
            for value, begin in zip(values, begins, strict=True):
                self.sources[value].append(begin)
        elif name in ("scf.yield", "scf.condition"):
            self._yield(operands[name == "scf.condition" :])
            self._passed = operands[1:] if name == "scf.condition" else []

    def _yield(self, values: list[int]) -> None:
        """To the results of the operation around, and to the next round of a loop."""
        region = self._regions[-1]
        for targets in (region.owner.results if region.owner else [], region.carried):
            for target, value in zip(targets, values, strict=False):
                self.sources[target].append(value)


def transposed_products(ttir: str) -> list[str]:
    """The lines with a product whose first operand descends from the transpose of a product."""
    code = Code(ttir)
    flags: dict[int, int] = defaultdict(int)
    changed = True
    while changed:
        before = dict(flags)
        for operation in code.operations:
            found = 0
            for operand in operation.operands:
                found |= flags[operand]
            if operation.name in ENDS or operation.name in LOOPS:
                found = 0
            elif operation.name == "tt.trans":
                found = (found & STRAIGHT) << 1 | (found & TURNED) >> 1
            elif operation.name == "tt.dot":
                found = STRAIGHT
            for result in operation.results:
                flags[result] |= found
        for value, sources in code.sources.items():
            for source in sources:
                flags[value] |= flags[source]
        changed = dict(flags) != before
    dots = [operation for operation in code.operations if operation.name == "tt.dot"]
    return [operation.line for operation in dots if flags[operation.operands[0]] & TURNED]


def chained_products(ttir: str) -> list[str]:
    """The lines with a product in a loop that adds to the result of another one in the same round."""
    code = Code(ttir)
    dots = [x for x in code.operations if x.name == "tt.dot" and x.region in code.loops]
    made = {result: operation.region for operation in dots for result in operation.results}
    return [operation.line for operation in dots if made.get(operation.operands[2]) == operation.region]
