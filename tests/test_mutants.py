"""`make mutants` takes long and is not run here; its tables must name what is there."""

import ast
from pathlib import Path

from tools.mutants.tables import modules, survivors

ROOT = Path(__file__).parents[1]


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    methods = {
        f"{node.name}.{each.name}"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for each in node.body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return methods | {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_modules_and_their_tests_are_there() -> None:
    assert [file for module in modules() for file in (module.path, *module.tests) if not (ROOT / file).is_file()] == []
    assert [name for module in modules() for name in set(module.functions) - functions(ROOT / module.path)] == []


def test_survivors_are_lines_of_functions_that_are_there() -> None:
    paths = {module.path for module in modules()}
    assert {survivor.module for survivor in survivors()} <= paths
    assert [each.change for each in survivors() if each.change[0] not in functions(ROOT / each.module)] == []
    assert all(survivor.reason for survivor in survivors())
    sources = {path: " ".join((ROOT / path).read_text().split()) for path in paths}
    assert [each.change for each in survivors() if " ".join(each.change[1].split()) not in sources[each.module]] == []
