"""The docs say what the code does."""

import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import report_samples as made_up
from PIL import Image

from subquad import report, tasks
from subquad.config import ModelConfig
from subquad.experiments.comparison import plan, run
from subquad.experiments.config import Comparison, TrainingConfig
from subquad.experiments.grid import Observer
from subquad.mechanisms.linear import LinearAttention
from subquad.records import Store, comparison_key
from subquad.testing import contract
from subquad.testing.task import certify

ROOT = Path(__file__).parents[1]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def script(name):
    """What a script of docs defines; it finds the modules beside it, as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        return runpy.run_path(str(ROOT / "docs" / name))


@pytest.fixture(scope="module")
def make():
    return script("make.py")


def test_the_readmes_table_is_made_from_the_traits(make):
    readme = (ROOT / "README.md").read_text()
    assert make["with_table"](readme) == readme, "run: python docs/make.py"


def test_the_mechanisms_pages_are_made_from_docstrings_and_traits(make):
    found = {path.stem: path.read_text() for path in (ROOT / "docs" / "mechanisms").glob("*.md")}
    assert found == make["pages"](), "run: python docs/make.py"


def test_the_page_of_tasks_is_made_from_their_traits():
    made = script("tasks.py")
    page = made["PAGE"].read_text()
    assert made["with_tasks"](page) == page, "run: python docs/tasks.py"
    pictures = np.asarray(Image.open(made["PICTURES"]))
    assert np.array_equal(pictures, made["sheet"]()), "run: python docs/tasks.py"


def test_a_page_of_results_has_a_line_for_each_row_of_a_report(tmp_path):
    setting = made_up.comparison()
    found = made_up.findings(setting, made_up.sample(setting))
    folder = made_up.write(tmp_path, setting, made_up.sample(setting))
    task = found.question.task
    page = f"before\n<!-- {task}: made by docs/results.py -->\nold\n<!-- end of {task} -->\nafter"
    lines = script("results.py")["with_results"](page, [folder]).splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("before", "after", len(found.rows) + 6)
    assert all(f"`{row.label}`" in line for row, line in zip(found.rows, lines[4:-2], strict=True))


def test_a_page_of_results_has_what_rows_reach_by_parts_where_it_asks_for_it(tmp_path):
    setting = made_up.comparison()
    found = made_up.findings(setting, made_up.sample(setting))
    scores = found.parts[0]
    folder = made_up.write(tmp_path, setting, made_up.sample(setting))
    names = (found.question.task, f"{found.question.task} by {scores.title}")
    page = "".join(f"<!-- {name}: made by docs/results.py -->\n<!-- end of {name} -->\n" for name in names)
    made = script("results.py")["with_results"](page, [folder]).partition(f"<!-- {names[1]}:")[2].splitlines()
    assert made[1] == f"| {scores.title} | {' | '.join(part.name for part in scores.parts)} |"
    assert [line.split("`")[1] for line in made[3:-1]] == list(scores.scores)


def test_an_option_that_a_docstring_leaves_out_has_no_page(make):
    class Silent(LinearAttention):
        """Says nothing of its option.

        width: of something else.

        Approximates nothing.

        Not for anything.
        """

        def __init__(self, dims, *, causal, depth=2):
            super().__init__(dims, causal=causal)

    with pytest.raises(ValueError, match="the docstring of Silent has no line for the option 'depth'"):
        list(make["described"](Silent))


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """The mechanism of docs/adding-a-mechanism.md, as a reader would type it."""
    folder = tmp_path_factory.mktemp("documented")
    (folder / "documented_square.py").write_text(blocks(ROOT / "docs" / "adding-a-mechanism.md", "python")[0])
    sys.path.insert(0, str(folder))
    yield __import__("documented_square").SquareAttention
    sys.path.remove(str(folder))


def test_the_documented_mechanism_keeps_the_contract(square):
    for check in contract(square):
        if not hasattr(check, "slow"):
            check(square)


@pytest.fixture
def palindromes(tmp_path, monkeypatch):
    """The task of docs/adding-a-task.md, installed as a package of its own."""
    page = (ROOT / "docs" / "adding-a-task.md").read_text()
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    code = blocks(ROOT / "docs" / "adding-a-task.md", "python")[0]
    (tmp_path / "my_package" / "palindromes.py").write_text(code)
    info = tmp_path / "my_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1\n")
    entry = re.search(r'entry-points."(subquad.tasks)"\]\n(.*)', page)
    assert entry
    (info / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2].replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    tasks.catalog.cache_clear()
    yield "palindromes"
    tasks.catalog.cache_clear()
    for name in ("my_package", "my_package.palindromes"):
        sys.modules.pop(name, None)


def test_the_documented_task_keeps_the_contract(palindromes):
    outcomes = list(certify(tasks.build(palindromes)))
    assert [outcome for outcome in outcomes if not outcome.passed] == []


def test_the_documented_task_is_compared_end_to_end(palindromes, tmp_path):
    config = Comparison(
        tasks=(f"{palindromes}:words=100",),
        attention=("linear",),
        model=ModelConfig(dim=8, depth=1, heads=2),
        training=TrainingConfig(steps=2, batch=8),
        bench=False,
        device="cpu",
    )
    store = Store(tmp_path / "runs")
    planned = plan(config)
    records = run(planned, config, store, observer=Observer())
    assert [(record["kind"], record["status"]) for record in records] == [
        ("baseline", "ok"),
        ("baseline", "ok"),
        ("fit", "ok"),
    ], [record["reason"] for record in records]
    assert planned.document["tasks"][0]["unit"] == "letter"
    assert records[-1]["data"]["objective"] == "binary"
    assert "accuracy" in records[-1]["result"]["test"]
    assert report.write(store.folder, comparison_key(planned.document)).is_file()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's encoder makes them
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # and says when it does not
def test_the_examples_of_replacing_torchs_attention_run():
    exec("\n".join(blocks(ROOT / "docs" / "drop-in.md", "python")), {})
