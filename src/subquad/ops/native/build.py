"""Compiles the kernels: a library for each instruction set. It imports nothing but Python's own.

`python -m subquad.ops.native` builds them where the package lies, with any flags that follow; installing from
source does so by itself where there is a compiler (hatch_build.py). `CXX` names another compiler.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
AVX2 = ("-DLANES=8", "-mavx2", "-mfma")
AVX512 = (
    "-DLANES=16",
    "-mavx512f",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512bw",
    "-mfma",
    "-mprefer-vector-width=512",
)
X86 = {"baseline": ("-DLANES=4",), "avx2": AVX2, "avx512": AVX512}
ARM = {"baseline": ("-DLANES=4",)}  # NEON is every ARM's baseline
SETS = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM}


def digest() -> int:
    """Of the sources as they are now. A library carries its own, for with others it would misread calls."""
    sources = sorted(x for x in HERE.iterdir() if x.suffix in (".cpp", ".h"))
    return int(hashlib.sha256(b"".join(x.read_bytes() for x in sources)).hexdigest()[:7], 16)


class BuildError(Exception):
    """Why there are no kernels, in one line."""


def library(name: str) -> Path:
    """Where the kernels for the instruction set called `name` lie."""
    return HERE / f"kernels-{name}.so"


def build_kernels(*, extra: tuple[str, ...] = (), tell: Callable[[str], None] = print) -> list[Path]:
    """Compile the libraries, with `extra` flags, and `tell` how far it is. Raises `BuildError`."""
    if (sets := SETS.get(platform.machine())) is None:
        raise BuildError(f"no kernels for {platform.machine()}")
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler ({', '.join(names)})")
    sources = sorted(HERE.glob("*.cpp"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        openmp = ("-fopenmp",) if has_openmp(compiler, Path(folder)) else ()
        flags = (*FLAGS, f"-DDIGEST={digest()}", *openmp, *extra)
        objects = {name: [f"{folder}/{name}-{source.stem}.o" for source in sources] for name in sets}
        made = {name: f"{folder}/{name}.so" for name in sets}
        compiles = [
            [compiler, *flags, *sets[name], "-c", str(source), "-o", compiled]
            for name in sets
            for source, compiled in zip(sources, objects[name], strict=True)
        ]
        links = ([compiler, "-shared", *flags, *objects[name], "-o", made[name]] for name in sets)
        tell(
            f"compiling kernels for {', '.join(sets)} with {compiler}, {len(compiles)} files; about a minute"
        )
        for done, _ in enumerate(pool.map(run, compiles), 1):
            if done % len(sources) == 0:
                tell(f"{done} of {len(compiles)} files compiled")
        list(pool.map(run, links))
        return [Path(shutil.move(made[name], library(name))) for name in sets]


def has_openmp(compiler: str, folder: Path) -> bool:
    """Without it the kernels run on one thread."""
    probe = folder / "probe.cpp"
    probe.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
    command = [compiler, "-fopenmp", str(probe), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True).returncode == 0


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BuildError(
            f"{Path(command[0]).name} failed: {next((x for x in lines if 'error' in x), lines[0])}"
        )
