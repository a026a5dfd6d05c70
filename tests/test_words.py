"""One word for one thing: names of modules mean the same everywhere, and none is of a private dialect."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import subquad

PACKAGE = Path(subquad.__file__).parent
MOST = 3  # modules that may define one name, beyond which it says nothing any more

# every backend of an operator has them, so that one can stand for another: `subquad.ops.backends.Backend`
PROTOCOL = {"refuses", "forward", "backward", "step", "initial", "advance", "make_call", "BACKENDS", "SCHEMA"}
# and every family of Triton kernels these: `subquad.ops.triton.configs.Family`
PROTOCOL |= {"FAMILY", "CONFIGS", "calls", "candidates"}

RETIRED = {
    *("Around", "Given", "Live", "Map", "Mixed", "Pulled", "Sight", "Trained", "Watch"),
    *("again", "aside", "asked", "begun", "beside", "carry_out", "deed", "found", "fresh", "given", "hidden"),
    *("hide", "hide_", "joined", "kept", "listened_to", "opened", "own", "pull", "pulled_back"),
    *("refuse_strangers", "require_together", "said", "told", "torn", "usable"),
    *("AT_ONCE", "EVERY", "FEW", "HEED", "LOOK_AGAIN", "PATIENCE", "QUIET", "TOGETHER"),
}


def defined(path):
    """The names that a module defines itself, private ones and `__all__` apart."""
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                names = [x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_"))


def in_operator(path):
    folder = path.parent
    return folder.parent.name == "ops" and (folder / "reference.py").exists()


MODULES = defaultdict(set)
for path in sorted(PACKAGE.rglob("*.py")):
    for name in set(defined(path)):
        if not (name in PROTOCOL and in_operator(path)):
            MODULES[name].add(str(path.relative_to(PACKAGE)))


def test_no_name_is_defined_in_more_than_three_modules():
    assert {name: sorted(modules) for name, modules in MODULES.items() if len(modules) > MOST} == {}


@pytest.mark.parametrize("word", sorted(RETIRED))
def test_a_retired_word_names_nothing(word):
    assert MODULES.get(word, set()) == set()
