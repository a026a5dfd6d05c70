"""Who may import whom. A lower layer never knows a higher one."""

import ast
import sys
from pathlib import Path

import pytest

import subquad

PACKAGE = Path(subquad.__file__).parent
CORE = {"torch", "jaxtyping"}
HOME = {"Dims": "mechanism", "Mechanism": "mechanism", "Traits": "mechanism", "build": "registry"}
EVERYWHERE = {"__version__", "exports", "extras"}
MAY_IMPORT = {
    "exports": set(),
    "extras": set(),
    "torch_internals": set(),
    "bounds": set(),
    "inputs": set(),
    "shards": set(),
    "config": {"bounds"},
    "mechanism": {"bounds", "inputs", "shards"},
    "ops": {"mechanism", "shards", "torch_internals"},
    "features": {"mechanism", "ops"},
    "patterns": {"mechanism", "ops", "torch_internals"},
    "memories": {"mechanism", "ops"},
    "mechanisms": {"bounds", "inputs", "mechanism", "ops", "features", "patterns", "memories", "shards"},
    "plugins": set(),
    "notation": {"plugins"},
    "fields": set(),
    "metrics": set(),
    "objectives": {"fields", "metrics"},
    "task": {"fields", "objectives"},
    "mixture": {"mechanism", "notation", "shards"},
    "registry": {"mechanism", "mechanisms", "mixture", "notation", "plugins"},
    "nn": {
        *("bounds", "config", "mechanism", "registry", "plugins", "ops", "files", "documents"),
        *("torch_internals", "fields", "inputs", "mixture", "notation", "shards"),
    },
    "parallel": {"mechanism", "nn", "shards"},
    "stand_in": {"mechanism", "ops", "registry"},
    "measure": {"inputs", "mechanism", "registry", "ops", "stand_in", "torch_internals"},
    "testing": {
        *("mechanism", "measure", "nn", "ops", "patterns", "registry", "torch_internals", "fields", "task"),
        "shards",
    },
    "files": set(),
    "tasks": {"documents", "fields", "files", "metrics", "objectives", "plugins", "task"},
    "documents": {"files"},
    "recorded": {"documents"},
    "remote": {"files"},
    "records": {"files", "documents", "recorded", "remote"},
    "report": {"records", "measure", "files", "notation"},
    "executors": {"plugins", "notation", "measure", "records", "recorded", "documents", "files", "remote"},
    "experiments": {
        *("mechanism", "registry", "plugins", "nn", "measure", "tasks", "records", "recorded", "documents"),
        *("bounds", "checkpoint", "config", "executors", "fields", "files", "notation", "objectives"),
        *("ops", "stand_in", "task"),
    },
    "cli": {
        *("mechanism", "registry", "patterns", "testing", "tasks", "records", "report", "experiments", "nn"),
        *("bounds", "config", "documents", "executors", "files", "measure", "mixture", "notation"),
        *("integrations", "plugins", "task"),
    },
    "checkpoint": {"documents", "files"},
    "integrations": {
        *("mechanism", "measure", "ops", "registry", "nn", "stand_in", "checkpoint", "config", "documents"),
    },
    "compare": {"experiments", "records", "report"},
    "choose": {"experiments", "records", "report"},
    "__main__": {"cli", "executors"},
}
THIRD_PARTY = {
    "ops": CORE | {"triton"},
    "testing": CORE | {"numpy"},
    "metrics": CORE | {"numpy", "sklearn"},
    "objectives": CORE | {"numpy"},
    "task": CORE | {"numpy"},
    "nn": CORE | {"safetensors", "typing_extensions"},
    "tasks": CORE
    | {"numpy", "polars", "sklearn", "threadpoolctl", "datasets", "tokenizers", "PIL"}
    | {"filelock", "pydantic", "typing_extensions"},
    "experiments": CORE | {"lightning", "numpy", "polars", "safetensors", "typing_extensions"},
    "executors": CORE | {"typing_extensions", "ray"},
    "checkpoint": CORE | {"safetensors"},
    "integrations": CORE
    | {"numpy", "peft", "polars", "safetensors", "scipy", "transformers"}
    | {"typing_extensions"},
    "documents": {"pydantic"},
    "recorded": {"pydantic", "typing_extensions"},
    "records": {"filelock"},
    "remote": {"fsspec"},
    "report": {"numpy", "rich", "scipy"},
    "cli": {"typer", "rich", "click"},
    "__main__": {"typer", "rich", "click"},
    "exports": set(),
    "extras": set(),
    "compare": set(),
    "choose": set(),
    "plugins": set(),
    "registry": set(),
}


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):

    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer == "__init__":
        return
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "subquad":
            target = HOME.get(rest, rest.partition(".")[0])
            allowed = MAY_IMPORT[layer] | {layer} | EVERYWHERE
            assert target in allowed, f"{path.name} ({layer}) imports {name}"
        elif top == "triton":
            assert path.name.startswith("triton_") or path.parent.name == "triton", (
                f"{path.name} imports {name}"
            )
        elif top not in sys.stdlib_module_names:
            assert top in THIRD_PARTY.get(layer, CORE), f"{path.name} ({layer}) imports {name}"


def test_no_file_outgrows_its_idea():
    longest = max(PACKAGE.rglob("*.py"), key=lambda path: len(path.read_text().splitlines()))
    assert len(longest.read_text().splitlines()) <= 400, longest
