"""The figures of the code's structure: lines, longest files, circles of imports, arrows back, torch in the analysis.

python -m scripts.structure

Prints the figures, and leaves with status 1 where a rule is broken. The sources are read, never imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The way from the records to the reader: an evaluation must not grow longer than what it evaluates.
COUNTED = ("experiments/analysis", "experiments/study", "experiments/core/records.py")
MOST_LINES, LONGEST_FILE = 4800, 500
# What a package may import of ours, besides itself; the first prefix that fits a module counts.
ARROWS: dict[str, tuple[str, ...]] = {
    "fadam": (),
    "experiments.core": ("fadam",),
    "experiments.asr": ("experiments.core", "fadam"),
    "experiments.llm": ("experiments.core", "fadam"),
    "experiments.vqvae": ("experiments.core", "fadam"),
    "experiments.theory": ("experiments.asr", "experiments.llm", "experiments.vqvae", "experiments.core", "fadam"),
    "experiments.analysis": ("experiments.core",),
    "experiments.study": ("experiments.analysis", "experiments.core"),
    "experiments.own": ("experiments.study", "experiments.analysis", "experiments.core", "fadam"),
    "experiments.study.__main__": ("experiments.own", "experiments.study", "experiments.analysis", "experiments.core"),
    "experiments": ("experiments.core",),
    "hydra_plugins": ("experiments.core",),
    "examples": ("experiments", "fadam"),
    "scripts": ("experiments", "fadam"),
}
HEAVY = ("torch", "lightning", "fadam")


def modules(root: Path = ROOT) -> dict[str, ast.Module]:
    """The sources of all packages, by module name."""
    found = {}
    for top in dict.fromkeys(name.split(".")[0] for name in ARROWS):
        for path in sorted((root / top).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def _nodes(tree: ast.AST, inside: bool) -> Iterator[ast.AST]:
    """The nodes of a module; `inside`: those of functions, and what only type checkers read, as well."""
    for node in ast.iter_child_nodes(tree):
        checked = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if inside or not (checked or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield node
            yield from _nodes(node, inside)


def imports(sources: Mapping[str, ast.Module], inside: bool = True) -> dict[str, set[str]]:
    """Module -> what it imports, ours by the name of the module; `inside`: imports inside of functions as well."""
    found: dict[str, set[str]] = {}
    for name, tree in sources.items():
        found[name] = mine = set()
        for node in _nodes(tree, inside):
            if isinstance(node, ast.Import):
                mine |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                mine |= (below & sources.keys()) or {node.module}
    return found


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """The circles of imports that are met when modules are loaded, each once."""
    found: list[str] = []
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> None:
        if name in way:
            found.append(" -> ".join([*way[way.index(name) :], name]))
        elif name in graph and name not in done:
            for other in sorted(graph[name]):
                follow(other, [*way, name])
            done.add(name)

    for name in graph:
        follow(name, [])
    return found


def _package(name: str, packages: Mapping[str, tuple[str, ...]]) -> str | None:
    fits = [package for package in packages if name == package or name.startswith(f"{package}.")]
    return max(fits, key=len, default=None)


def arrows_back(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports of ours that `ARROWS` does not allow."""
    found = []
    for name, imported in graph.items():
        mine = _package(name, ARROWS)
        for other in sorted(imported):
            theirs = _package(other, ARROWS)
            if theirs and theirs != mine and not _package(theirs, dict.fromkeys(ARROWS[mine or theirs], ())):
                found.append(f"{name} imports {other}")
    return found


def heavy(graph: Mapping[str, set[str]], start: str = "experiments.analysis") -> list[str]:
    """What of `HEAVY` the modules below `start` import, themselves or through others of ours."""
    found = []
    todo = [name for name in graph if name.startswith(start)]
    seen = set(todo)
    while todo:
        name = todo.pop()
        found += [f"{name} imports {other}" for other in sorted(graph[name]) if other.split(".")[0] in HEAVY]
        todo += [other for other in graph[name] if other in graph and other not in seen]
        seen |= graph[name]
    return found


def lines(root: Path = ROOT) -> dict[str, int]:
    """Lines by file of what is counted."""
    paths = (
        path for name in COUNTED for path in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))
    )
    return {str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}


def main() -> int:
    counted, sources = lines(), modules()
    graph = imports(sources)
    for name in COUNTED:
        print(f"{sum(n for path, n in counted.items() if path.startswith(name)):6,} lines  {name}")
    longest = max(counted, key=counted.__getitem__)
    total = sum(counted.values())
    print(f"{total:6,} lines  in all, at most {MOST_LINES:,}")
    print(f"{counted[longest]:6,} lines  {longest}, the longest file, at most {LONGEST_FILE}")
    broken = total > MOST_LINES or counted[longest] > LONGEST_FILE
    rules = {
        "circles of imports": circles(imports(sources, inside=False)),
        "arrows back": arrows_back(graph),
        "imports of torch in the analysis": heavy(graph),
    }
    for what, found in rules.items():
        print("\n  ".join([f"{len(found):6} {what}", *found]))
        broken = broken or bool(found)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
