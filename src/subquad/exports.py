"""Names that a package offers, imported when they are first asked for.

A package states them twice, for the type checker under `TYPE_CHECKING` and for Python in a call of
`export_lazily`, so that importing it imports nothing else: no torch, where it is not used.

An export may be called as its module is, as `subquad.ops.window_attention` is. The name is then always the
export, in whatever order things are imported; the module goes on to be imported from by its full name.
"""

import sys
import warnings
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package whose exports are attributes, before and after they are imported."""

    _homes: Mapping[str, str]  # the module of each export
    _renamed: Mapping[str, str]  # the new name of each old one

    def __getattr__(self, name: str) -> Any:
        if name in self._renamed:
            now = self._renamed[name]
            warnings.warn(
                f"{self.__name__}.{name} is called {self.__name__}.{now} now, and the old name goes with the "
                "next release",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(self, now)
        if name not in self._homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(self._homes[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """Python binds an imported module to its package, where an export of that name takes its place."""
        if isinstance(value, ModuleType) and value.__name__ == self._homes.get(name):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})


def export_lazily(
    package: str, homes: Mapping[str, Iterable[str]], *, renamed: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Let `package` offer what its modules `homes` define, by name, and by old names with a warning."""
    module = sys.modules[package]
    exports = {name: f"{package}.{home}" for home, names in homes.items() for name in names}
    vars(module).update(_homes=exports, _renamed=renamed)
    module.__class__ = LazyPackage
