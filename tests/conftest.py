"""What holds for every test."""

import os
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import jaxtyping
import pytest
import torch
from annotations import check_shapes_where_there_are_any

jaxtyping.jaxtyped = check_shapes_where_there_are_any(jaxtyping.jaxtyped)

import subquad  # noqa: E402, after what checks its types

SOURCES = sorted(Path(subquad.__file__).parent.rglob("*.py"))
DIGEST = sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]

torch.set_num_threads(1)  # small tensors gain nothing from more, and test processes share cores
# PyTorch finds a cached graph by its operators' names, whatever their code says by now
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/subquad-graphs-{DIGEST}")


@pytest.fixture(autouse=True)
def same_random_numbers_at_every_run():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    """Of prepared data sets: nobody's own is read or written."""
    before = os.environ.get("SUBQUAD_CACHE")
    os.environ["SUBQUAD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("SUBQUAD_CACHE")
    if before is not None:
        os.environ["SUBQUAD_CACHE"] = before


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory):
    """The path of that of the small data set of `own_sample`."""
    from own_sample import write

    return write(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def data(schema: Path):
    """What that schema describes."""
    from subquad import tasks

    return tasks.load("custom", schema=str(schema))


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command line in this process: status, standard output and standard error."""
    from subquad.__main__ import main

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["subquad", *map(str, arguments)])
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        out, told = capsys.readouterr()
        return status, out, told

    return run
