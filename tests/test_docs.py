"""The docs say what the code does."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from subquad.mechanisms.linear import LinearAttention
from subquad.testing import contract

ROOT = Path(__file__).parents[1]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def make():
    return runpy.run_path(str(ROOT / "docs" / "make.py"))


def test_the_readmes_table_is_made_from_the_traits(make):
    readme = (ROOT / "README.md").read_text()
    assert make["with_table"](readme) == readme, "run: python docs/make.py"


def test_the_mechanisms_pages_are_made_from_docstrings_and_traits(make):
    found = {path.stem: path.read_text() for path in (ROOT / "docs" / "mechanisms").glob("*.md")}
    assert found == make["pages"](), "run: python docs/make.py"


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


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's encoder makes them
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # and says when it does not
def test_the_examples_of_replacing_torchs_attention_run():
    exec("\n".join(blocks(ROOT / "docs" / "drop-in.md", "python")), {})
