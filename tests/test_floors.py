"""Modules import downwards only, and stay small."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"registry", "options", "trees", "checksums", "sharding", "io", "version", "command_line", "progress"},
    {"losses", "semantic_ids"},
    {"data", "models"},
    {"peft"},
    {"inference"},
    {"baselines"},
    {"evaluation"},
    {"training"},
    {"tasks"},
    {"runs"},
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
FILES = sorted((ROOT / "llm4rec_jax").rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def modules(tree: ast.AST) -> set[str]:
    """Returns the modules that are imported anywhere in a file, also within functions; not those for types alone."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    for_types = {id(node) for block in blocks for node in ast.walk(block)}
    imported = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return imported


def floor_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "llm4rec_jax" and len(parts) > 1 and parts[1] in LEVEL else None


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_the_top_of_the_package_holds_the_ground_floor_only():
    assert {f.stem for f in FILES if f.parent == ROOT / "llm4rec_jax"} == FLOORS[0] | {"__init__"}


@pytest.mark.parametrize("file", FILES, ids=name)
def test_imports_go_down(file):
    own = file.relative_to(ROOT / "llm4rec_jax").with_suffix("").parts[0]
    if own == "__init__":
        return
    imported = {floor for module in modules(TREES[file]) if (floor := floor_of(module))}
    upwards = {floor for floor in imported if LEVEL[floor] > LEVEL[own]}
    # Losses know how candidates are named, which is a matter of the data.
    upwards -= {"data"} if own == "losses" else set()
    beside = {floor for floor in imported if LEVEL[floor] == LEVEL[own] and {own, floor} == {"data", "models"}}
    assert not upwards | (beside if own == "data" else set())
    assert not any(module.split(".")[0] in ("experiments", "configs") for module in modules(TREES[file]))
    if own == "data":
        assert not any(module.split(".")[0] in ("jax", "flax") for module in modules(TREES[file]))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_files_and_functions_are_small(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 150, node.name
            arguments = node.args
            count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
            assert count <= 12, node.name


def test_no_part_has_to_be_rescued():
    text = "\n".join(file.read_text(encoding="utf-8") for file in FILES)
    assert not re.findall(r"isinstance\([^)]*\.users\b", text)
    assert len(re.findall(r"assert .* is not None", text)) <= 10
