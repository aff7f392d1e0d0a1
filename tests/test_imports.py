"""Holds the import rules between rooms (docs: README 'Layout') by reading the source, not by running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "methods", "evaluation", "experiments", "leaderboard")
ALLOWED: dict[str, tuple[str, ...]] = {
    "models": (),
    "methods": ("models",),
    "evaluation": ("models",),
    "experiments": ("models", "methods", "evaluation", "leaderboard.record", "leaderboard.errors", "leaderboard.variants"),
    "leaderboard": (),
    "run_all": ("experiments", "leaderboard"),
}
FORBIDDEN_OUTSIDE = {"leaderboard": ("torch", "transformers")}
HEAVY = ("lm_eval", "datasets", "matplotlib", "ray", "pandas")  # only inside functions


def sources() -> list[tuple[str, Path]]:
    found = [(room, path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [*found, ("run_all", ROOT / "run_all.py")]


def imported(tree: ast.AST, *, only_module_level: bool = False) -> Iterator[tuple[str, int]]:
    """Every absolute import as (dotted name, line), ours without `prunebench.`; `from a import b` gives `a.b`."""
    nodes = ast.walk(tree) if not only_module_level else iter_module_level(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name.removeprefix("prunebench."), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((f"{node.module}.{alias.name}".removeprefix("prunebench."), node.lineno) for alias in node.names)


def iter_module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements that run at import: not function bodies, not `if TYPE_CHECKING` blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from iter_module_level(node)


def is_under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def test_the_rules_see_the_imports_that_they_are_about() -> None:
    seen = {name.split(".")[0] for owner, path in sources() if owner == "run_all" for name, _ in imported(ast.parse(path.read_text()))}
    assert {"experiments", "leaderboard"} <= seen


@pytest.mark.parametrize("room", [*ROOMS, "run_all"])
def test_a_room_imports_only_the_rooms_that_the_design_draws(room: str) -> None:
    wrong = []
    for owner, path in sources():
        if owner != room:
            continue
        for name, line in imported(ast.parse(path.read_text(encoding="utf-8"))):
            other_room = name.split(".")[0] in (*ROOMS, "run_all") and name.split(".")[0] != room
            if other_room and not any(is_under(name, allowed) for allowed in ALLOWED[room]):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
            if any(is_under(name, banned) for banned in FORBIDDEN_OUTSIDE.get(room, ())):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_are_imported_only_inside_functions() -> None:
    wrong = []
    for owner, path in sources():
        if owner == "leaderboard":  # its page-making modules are themselves imported inside functions
            continue
        for name, line in imported(ast.parse(path.read_text(encoding="utf-8")), only_module_level=True):
            if any(is_under(name, heavy) for heavy in HEAVY):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_reads_or_writes_pickles() -> None:
    wrong = []
    for _, path in sources():
        for name, line in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def modules() -> dict[str, Path]:
    """Every module of the rooms by its dotted name without `prunebench.`."""
    named = {}
    for _, path in sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that reach each other , the strongly connected components of the import graph."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for following in graph[waiting.pop()] - found:
                found.add(following)
                waiting.append(following)
        return found

    reach = {name: reached(name) for name in graph}
    groups = {frozenset({name} | {other for other in reach[name] if name in reach[other]}) for name in graph}
    return [set(group) for group in groups if len(group) > 1]


def test_no_modules_import_each_other_but_the_anatomy_and_its_reader() -> None:
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph[name] = set()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        hidden = {id(node) for branch in ast.walk(tree) if is_for_types_only(branch) for node in ast.walk(branch)}
        for node in ast.walk(tree):
            if id(node) in hidden:
                continue
            for target, _ in imported(ast.Module([node], [])) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                while target and target not in known:
                    target = target.rpartition(".")[0]
                graph[name] |= {target} - {name, ""}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert circles(graph) in ([], [{"models.anatomy", "models.anatomy_reader"}])


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
