"""What people import: names that are there, documented, and cost nothing until they are used."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import own_sample
import pytest

import subquad
from subquad.notation import written

ROOT = Path(__file__).parents[1]
LAZY = ["subquad", "subquad.features", "subquad.nn", "subquad.ops"]
PUBLIC = [*LAZY, "subquad.mechanisms", "subquad.patterns", "subquad.testing"]
EXPORTS = [(package, name) for package in PUBLIC for name in import_module(package).__all__]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("package", "name"), EXPORTS)
def test_every_export_is_there_documented_and_seen(package, name):
    module = import_module(package)
    export = getattr(module, name)
    assert not isinstance(export, ModuleType)
    assert name in dir(module)
    if getattr(export, "__module__", "").startswith("subquad"):  # else a constant, or the type of a shape
        assert (export.__doc__ or "").strip(), f"{package}.{name} says nothing"
        assert not export.__doc__.startswith(f"{name}("), f"{package}.{name} has the docstring of its fields"


@pytest.mark.parametrize("package", LAZY)
def test_the_type_checker_and_python_see_the_same_exports(package):
    module = import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    checked = next(
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    told = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert module._homes == told
    assert sorted(told, key=lambda name: (name.lower() == name, name)) == module.__all__


@pytest.mark.parametrize("package", LAZY)
def test_importing_a_package_loads_no_torch_before_a_name_is_used(package):
    seen = run(f"import sys, {package}; dir({package}); print('torch' in sys.modules)")
    assert seen.strip() == "False"


TWINS = [
    (package, name)
    for package in LAZY
    for name in import_module(package).__all__
    if import_module(package)._homes[name] == f"{package}.{name}"
]


def test_some_exports_are_called_as_their_module_is():
    assert ("subquad.ops", "window_attention") in TWINS


@pytest.mark.parametrize("first", ["the export", "the module"])
def test_an_export_called_as_its_module_is_always_the_export(first):
    lines = ["import sys, types"]
    for package, name in TWINS:
        use, load = f"import {package}; {package}.{name}", f"import {package}.{name}"
        lines += [use, load] if first == "the export" else [load, use]
        lines += [
            f"from {package} import {name}",
            f"from {package}.{name} import {name} as same",
            f"assert {name} is same is {package}.{name}, {name!r}",
            f"assert isinstance(sys.modules['{package}.{name}'], types.ModuleType)",
        ]
    run("\n".join(lines))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'subquad' has no attribute 'nonsense'"):
        subquad.nonsense  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec("from subquad.ops import nonsense")


def test_a_name_that_moved_works_and_warns_where_it_is_used():
    with pytest.warns(DeprecationWarning, match=r"subquad\.load is called subquad\.load_model now"):
        old = subquad.load  # pyright: ignore[reportAttributeAccessIssue]
    assert old is subquad.load_model
    code = "import sys, subquad; sys.stderr = sys.stdout; from subquad import load"
    assert run(code).startswith("<string>:1: DeprecationWarning")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # those that moved are still there
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_of_subquad_in_the_docs_is_there(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("subquad"):
                for alias in node.names:
                    exec(f"from {node.module} import {alias.name}")
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("subquad."):
                eval(ast.unparse(node), {"subquad": subquad})


@pytest.mark.slow
def test_a_comparison_from_python_is_that_of_the_command_line(tmp_path):
    config = subquad.Comparison(
        attention=("linear",),
        tasks=(written("custom", {"schema": str(own_sample.write(tmp_path / "own"))}),),
        length=16,
        model=subquad.ModelConfig(dim=8, depth=1, heads=2),
        training=subquad.TrainingConfig(steps=2),
        bench=False,
    )
    findings = subquad.compare(config, out=tmp_path / "runs")
    assert {row.label for row in findings.tasks[0].rows} >= {"linear", "majority"}
    assert not findings.missing
    assert findings.answer
    page = tmp_path / "runs" / "report.html"
    assert page.read_text().lower().startswith("<!doctype html>")
    before = page.stat().st_mtime_ns
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "records").iterdir()}
    assert subquad.compare(config, out=tmp_path / "runs").comparison == findings.comparison
    assert {path: path.stat().st_mtime_ns for path in records} == records
    assert page.stat().st_mtime_ns >= before


def test_a_comparison_that_cannot_be_done_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="unknown mechanism 'liner'"):
        subquad.compare(subquad.Comparison(attention=("liner",)), out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
