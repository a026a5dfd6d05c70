"""`subquad pattern`: a drawing in the terminal, as an SVG, or its counts as JSON."""

import json
from xml.etree import ElementTree

import pytest
import test_cli

from subquad.patterns import CAUSAL, Global, Local

call = test_cli.call  # the fixture


def test_a_pattern_is_drawn_with_its_counts(call):
    status, out, err = call("pattern", "Local(2)|Global(1)", "--length", "16")
    assert (status, err) == (0, "")
    pairs = int((Local(2) | Global(1)).mask(16).sum())
    first, *_, last = out.splitlines()
    assert first == "Local(2) | Global(1)"
    assert last.startswith(f"{pairs} of 16² = 256 pairs")
    assert "▄" in out


def test_causal_draws_the_causal_form_and_json_tells_its_counts(call):
    status, out, _ = call("pattern", "Local(2) | Global(1)", "--causal", "--json")
    told = json.loads(out)
    causal = (Local(2) | Global(1)) & CAUSAL
    assert status == 0
    assert (told["expression"], told["length"]) == (repr(causal), 64)
    assert (told["pairs"], told["density"]) == (int(causal.mask(64).sum()), told["pairs"] / 64**2)


def test_the_picture_is_written_whole_into_a_folder_of_its_own(call, tmp_path):
    path = tmp_path / "new" / "pattern.svg"
    status, out, _ = call("pattern", "PerHead(Local(2), CAUSAL)", "--svg", str(path))
    assert status == 0
    assert out.endswith(f"svg: {path}\n")
    assert [file.name for file in path.parent.iterdir()] == ["pattern.svg"]
    assert ElementTree.parse(path).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Local(2) | Glob(1)"], "at character 12: unknown pattern 'Glob'; did you mean 'Global'?"),
        (["Local(2"], "at character 8: expected ',' or ')', not the end: Local(width)"),
        ([""], "pattern '', at character 1: expected a pattern, not the end"),
        (["Local(1)\n|\n\x1b[31m"], r"pattern 'Local(1)\n|\n\x1b[31m', at character 12: expected a pattern"),
        (["(" * 5000], "at character 1: 5,000 characters are too many; 4,000 is the most"),
        (
            ["Local(2)", "--length", "5000"],
            "a drawing of this pattern takes a length from 1 to 4,096, not 5,000",
        ),
        (["Ring(2)", "--causal"], "Ring(2) & CAUSAL has no meaning"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_status_2_and_no_picture(call, tmp_path, arguments, message):
    status, out, err = call("pattern", *arguments, "--svg", str(tmp_path / "pattern.svg"))
    assert (status, out) == (2, "")
    assert err.startswith("subquad: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(call, tmp_path):
    (tmp_path / "taken").mkdir()
    status, out, err = call("pattern", "Local(2)", "--svg", str(tmp_path / "taken"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_help_names_the_command_without_loading_torch():
    told = test_cli.subquad(
        "--help", before="import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    )
    assert "│ pattern " in told.stdout
    assert told.stdout.endswith("False\n")
