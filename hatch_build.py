"""What a build does beyond packing files: it compiles the kernels, and makes the README's links absolute."""

import os
import re
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

NATIVE = "src/subquad/ops/native"
REPOSITORY = "SUBQUAD_REPOSITORY"  # the variable with the project's address, where releases are made
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")  # of Markdown, into the repository


class KernelsHook(BuildHookInterface):
    """Compiles the kernels when the package is installed or a wheel is made, where there is a compiler."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build = runpy.run_path(f"{self.root}/{NATIVE}/build.py")
        try:
            built = build["build_kernels"](tell=lambda line: self.app.display_info(f"subquad: {line}"))
        except build["BuildError"] as error:
            self.app.display_warning(f"subquad: no native kernels, PyTorch's operators are used: {error}")
            return
        build_data["artifacts"] += [f"{NATIVE}/{library.name}" for library in built]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


class DescriptionHook(MetadataHookInterface):
    """The README as the project's description, with links that lead somewhere from a package index too."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text("utf-8")
        home = os.environ.get(REPOSITORY, "").rstrip("/")
        if home:
            text = absolute(text, home)
            metadata["urls"] = {
                "Repository": home,
                "Documentation": f"{home}/tree/main/docs",
                "Changelog": f"{home}/blob/main/CHANGELOG.md",
                "Issues": f"{home}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(markdown: str, home: str) -> str:
    """The text with links into the repository as addresses, those of pictures as addresses of files."""

    def address(link: re.Match[str]) -> str:
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}[{link[2]}]({home}/{kind}/main/{link[3]})"

    return LINK.sub(address, markdown)
