"""PyTorch's private names stand in one file, and the installed PyTorch has them."""

import ast
import functools
import importlib
from pathlib import Path

import pytest
import torch

import subquad

PACKAGE = Path(subquad.__file__).parent
INTERNALS = PACKAGE / "torch_internals.py"


def nodes(path):
    return list(ast.walk(ast.parse(path.read_text())))


def dotted(node):
    """`torch.a.b` as written; None where the chain does not begin with a name."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return before and f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def imported(path):
    """What the file imports, by the name that it has there."""
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((x.asname or x.name, f"{node.module}.{x.name}") for x in node.names)
        elif isinstance(node, ast.Import):
            yield from ((x.asname or x.name.partition(".")[0], x.name) for x in node.names)


def named(path):
    """The names of torch, dots and all, that the file imports or reaches through an import."""
    known = dict(imported(path))
    found = set(known.values())
    for name in filter(None, map(dotted, (x for x in nodes(path) if isinstance(x, ast.Attribute)))):
        first, _, rest = name.partition(".")
        found.add(f"{known.get(first, first)}.{rest}")
    return {name for name in found if name.startswith("torch.")}


def private(name):
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def attributes(path):
    """The private attributes of whatever the file has in its hands."""
    return {x.attr for x in nodes(path) if isinstance(x, ast.Attribute) and private(x.attr)}


PRIVATE = sorted(name for name in named(INTERNALS) if private(name))
OTHERS = sorted(path for path in PACKAGE.rglob("*.py") if path != INTERNALS)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_file_names_what_is_private_to_torch(path):
    assert not {name for name in named(path) if private(name)}
    assert not attributes(path) & attributes(INTERNALS)


@pytest.mark.parametrize("name", PRIVATE)
def test_the_installed_torch_has_each_private_name(name):
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        functools.reduce(getattr, parts[i:], module)
        return
    raise AssertionError(f"no module of {name}")


def test_an_operator_tells_its_name_body_and_gradients():
    from subquad import torch_internals

    op = torch.library.custom_op(
        "subquad::twice", lambda x: 2 * x, mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    assert torch_internals.op_name(op) == "subquad::twice"
    assert torch_internals.op_autograd(op) == (None, None)
    op.register_autograd(lambda ctx, grad: 2 * grad, setup_context=lambda ctx, inputs, output: None)
    assert None not in torch_internals.op_autograd(op)
    assert torch_internals.op_body(op) is torch_internals.op_body_of(torch.ops.subquad.twice.default)
    assert torch_internals.op_body_of(torch.ops.aten.add.Tensor) is None


def test_a_tensor_outlives_its_vmap():
    from subquad.torch_internals import has_outlived

    kept = []

    def keep(x):
        kept.append(x)
        assert not has_outlived(x)
        return x

    torch.func.vmap(keep)(torch.ones(2))
    assert has_outlived(kept[0])
    assert not has_outlived(torch.ones(2))


def test_views_lie_in_one_storage():
    from subquad.torch_internals import storage_id

    x = torch.ones(4)
    assert storage_id(x.untyped_storage()) == storage_id(x[:2].untyped_storage())
    assert storage_id(x.untyped_storage()) != storage_id(x.clone().untyped_storage())
