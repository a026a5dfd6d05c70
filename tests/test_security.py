"""What is read from disk is data: it is not run, and leads to no other file (docs/security.md)."""

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import report_samples as made_up
from experiments_sample import quick
from own_sample import write

import subquad
from subquad import tasks
from subquad.documents import Damaged
from subquad.experiments.model import build_model
from subquad.experiments.predictor import export, load_model
from subquad.records import Store
from subquad.report import findings_in
from subquad.report.page import write_page
from subquad.tasks.part_folder import PartFolder
from subquad.tasks.preparable import DataPart

PACKAGE = Path(subquad.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"torch.load", "np.load", "numpy.load", "os.system", "os.popen", "pd.read_pickle", "yaml.load"}
OPTIONS = {("shell", True), ("allow_pickle", True), ("trust_remote_code", True), ("weights_only", False)}


def dangers(source: str) -> list[str]:
    """What in a module runs or unpickles what may have been read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.partition(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
                found.append(module)
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                found.append(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)) if (
                f"{owner}.{name}" in METHODS
            ):
                found.append(f"{owner}.{name}")
            case ast.keyword(arg=str(name), value=ast.Constant(value=value)) if (name, value) in OPTIONS:
                found.append(f"{name}={value}")
    return found


def test_nothing_that_is_read_is_run_or_unpickled():
    sources = {path: path.relative_to(PACKAGE).parts for path in sorted(PACKAGE.rglob("*.py"))}
    own = [
        path for path, parts in sources.items() if "testing" not in parts
    ]  # that copies what it made itself
    assert {path: found for path in own if (found := dangers(path.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "import torch; torch.load('x')",
        "run('ls', shell=True)",
        "np.load('x')",
        "load('x', trust_remote_code=True)",
    ],
)
def test_what_runs_or_unpickles_is_seen(source: str):
    assert dangers(source)


OPENED: list[str] | None = None


def remember(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], str | bytes | Path):
        OPENED.append(str(arguments[0]))


sys.addaudithook(remember)


def opened(act: Callable[[], object]) -> list[str]:
    """The files that Python opens meanwhile."""
    global OPENED
    OPENED = []
    try:
        act()
        return OPENED
    finally:
        OPENED = None


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A file outside of the folder that is read."""
    path = tmp_path / "elsewhere" / "secret.toml"
    path.parent.mkdir()
    path.write_text("secret = 1")
    return path


def test_a_model_leads_to_no_file_outside_of_its_folder(tmp_path: Path, sentinel: Path):
    schema = write(tmp_path / "own")
    data = tasks.load("custom", schema=str(schema))
    folder, spec = tmp_path / "model", quick(schema, data)
    export(build_model(spec, data), data, spec, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace(str(schema), str(sentinel)))
    assert str(sentinel) in config.read_text()
    seen = opened(lambda: load_model(folder))
    assert str(config) in seen
    assert not [path for path in seen if str(tmp_path) in path and str(folder) not in path]


def test_a_comparison_leads_to_no_file_outside_of_its_folder(tmp_path: Path, sentinel: Path):
    setting = made_up.comparison(
        made_up.ROWS[:2], seeds=1, label=str(sentinel), task=str(sentinel), target=str(sentinel)
    )
    setting["data"] = {**setting["data"], "options": {"schema": str(sentinel)}}
    folder = made_up.write(tmp_path / "runs", setting, made_up.sample(setting))
    seen = opened(lambda: write_page(findings_in(folder), folder))
    assert str(folder / "comparison.json") in seen
    assert not [path for path in seen if str(tmp_path) in path and str(folder) not in path]


@pytest.mark.parametrize(
    "key", ["../../elsewhere/secret", "/etc/passwd", "0" * 15, "0" * 16 + "\n", "Z" * 16]
)
def test_a_key_that_may_be_a_path_is_none(tmp_path: Path, key: str):
    setting = made_up.comparison(made_up.ROWS[:1], seeds=1)
    folder = made_up.write(tmp_path / "runs", setting, made_up.sample(setting))
    document = json.loads((folder / "comparison.json").read_text())
    document["tasks"][0]["keys"]["fit"] = [key]
    (folder / "comparison.json").write_text(json.dumps(document))
    with pytest.raises(Damaged, match=r"tasks.*keys\.fit\.0: string should match pattern"):
        Store(folder).get_comparison()


def test_prepared_data_lead_to_no_file_outside_of_their_folder(tmp_path: Path):
    """With the checksums of one who wrote them so."""
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    stored = PartFolder(tmp_path / "prepared")
    stored.append(DataPart({"x": np.zeros(8, np.uint8)}, {}, 1.0))
    lines = tmp_path / "prepared" / "parts"
    text = lines.read_bytes().split(b" ", 1)[1].strip().replace(b'"x"', b'"../secret"')
    lines.write_bytes(b"%08x %s\n" % (crc32(text), text))
    with pytest.raises(Damaged, match=r"line 1 of parts: arrays\.\.\./secret"):
        PartFolder(tmp_path / "prepared")


@pytest.mark.parametrize("page", ["security.md", "reliability.md"])
def test_every_test_that_a_page_names_exists(page: str):
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (DOCS / page).read_text())
    assert len(named) >= 10
    for file, name in named:
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(), name
