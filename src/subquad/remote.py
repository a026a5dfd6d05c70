"""A folder of files at an address, such as s3://BUCKET/FOLDER, as fsspec reaches it.

What it takes to reach an address, keys or another endpoint, fsspec reads from the environment and from its
own configuration, on each machine.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from subquad.files import write_whole

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

WITHIN_A_PROCESS = ("memory", "dir", "reference")  # addresses that mean something else in another process


def is_address(text: str) -> bool:
    """Whether it is an address, and no path of this machine."""
    return "://" in text


@dataclass(frozen=True)
class Remote:
    """The folder at an address. Names of files are relative to it, with "/" in between.

    Raises `ValueError` for an address that cannot be reached, and `OSError` where one is not as it should be.
    """

    address: str

    def __post_init__(self) -> None:
        protocol = self.address.partition("://")[0]
        if protocol in WITHIN_A_PROCESS:
            raise ValueError(
                f"{self.address!r} is not the same in all processes: take s3://, gs:// or file://"
            )
        try:
            _ = self.files, self.root
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.address!r} cannot be reached: {error}") from None

    @cached_property
    def files(self) -> "AbstractFileSystem":
        from fsspec.core import url_to_fs

        return url_to_fs(self.address)[0]

    @cached_property
    def root(self) -> PurePosixPath:
        from fsspec.core import url_to_fs

        return PurePosixPath(url_to_fs(self.address)[1])

    def push(self, folder: Path, name: str) -> None:
        """Write a file of a folder here, or all files of a folder in it, each whole or not at all."""
        source = folder / name
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file():
                self.write(path.relative_to(folder).as_posix(), path.read_bytes())

    def write(self, name: str, content: bytes) -> None:
        target = self.root / name
        if self.is_local:
            write_whole(Path(target), content)
        else:  # object stores show an object when all of it is there
            self.files.pipe_file(str(target), content)

    def pull(self, folder: Path, name: str) -> None:
        """Write a file from here into a folder, or all files below a folder; nothing where there is none."""
        for path in self.found(name):
            relative = PurePosixPath(path).relative_to(self.root)
            if ".." in relative.parts:
                raise OSError(f"{path!r} leads outside of {self.address!r}")
            content = self.files.cat_file(path)
            assert isinstance(content, bytes)
            write_whole(folder / relative, content)

    def names(self, folder: str) -> list[str]:
        """Those of the files in a folder."""
        return [PurePosixPath(path).name for path in self.found(folder)]

    def found(self, name: str) -> list[str]:
        """The path of a file, or those of all files below a folder; none where there is none."""
        self.files.invalidate_cache()
        try:
            return list(self.files.find(str(self.root / name)))
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        with suppress(FileNotFoundError):
            self.files.rm_file(str(self.root / name))

    @property
    def is_local(self) -> bool:
        return "file" in self.files.protocol
