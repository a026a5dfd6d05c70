"""Compiles the kernels when the package is installed or a wheel is made, where there is a compiler."""

import runpy
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "src/subquad/ops/native"


class KernelsHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build = runpy.run_path(f"{self.root}/{NATIVE}/build.py")
        try:
            built = build["build"]()
        except build["BuildError"] as error:
            self.app.display_warning(f"subquad: no native kernels, PyTorch's operators are used: {error}")
            return
        build_data["artifacts"] += [f"{NATIVE}/{library.name}" for library in built]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
