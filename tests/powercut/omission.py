"""Every call in the engine that makes something durable, found in its source; and a Python in which one of them is left out.

A site is named `MODULE:FUNCTION:CALL`, with `#2` and so on where a function makes the same call again. What counts:
`os.fsync`, `os.fdatasync`, `syncfs`, the flush of a mapping, `PRAGMA synchronous=FULL`, and the functions of
`io/files.py` that do one of these for their caller.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

ENGINE = Path(__file__).parents[2] / "engine"

_INSTEAD = {
    "os.fsync": "(lambda *_: None)",
    "os.fdatasync": "(lambda *_: None)",
    "os.sync": "(lambda: None)",
    "syncfs": "(lambda *_: 0)",
    "mmap.flush": "(lambda *_: None)",
    "sync_folder": "(lambda *_: None)",
    "replace_file": '(lambda *values, **named: replace_file(*values, **{**named, "durable": False}))',
    "write_new_file": "(lambda path, data: path.write_bytes(data))",
    "sync_name": "(lambda *_: None)",
    "make_folder": "(lambda path, mode=0o700: path.mkdir(mode=mode, parents=True, exist_ok=True))",
}
"""What stands in a call's place when it is left out."""
_PRAGMA = "PRAGMA synchronous=FULL"
_OPEN_FLAGS = {"O_SYNC", "O_DSYNC"}


class _Sites(ast.NodeTransformer):
    """Walks a module; notes its sites, and replaces the one to be left out."""

    def __init__(self, module: str, omitted: str | None = None) -> None:
        self._module = module
        self._omitted = omitted
        self._function: list[str] = []
        self._counts: Counter[str] = Counter()
        self._maps = False
        self._undurable: set[int] = set()
        self.found: list[str] = []

    def _site(self, call: str, node: ast.expr) -> ast.expr:
        name = f"{self._module}:{'.'.join(self._function) or '<module>'}:{call}"
        self._counts[name] += 1
        if self._counts[name] > 1:
            name = f"{name}#{self._counts[name]}"
        self.found.append(name)
        if name != self._omitted:
            return node
        if call == _PRAGMA:
            return ast.copy_location(ast.Constant("PRAGMA synchronous=OFF"), node)
        return ast.copy_location(ast.parse(_INSTEAD[call], mode="eval").body, node)

    def _within(self, node: ast.AST, name: str) -> ast.AST:
        self._function.append(name)
        try:
            return self.generic_visit(node)
        finally:
            self._function.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._within(node, node.name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._within(node, node.name)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._within(node, node.name)

    def visit_Import(self, node: ast.Import) -> ast.AST:
        self._maps = self._maps or any(alias.name == "mmap" for alias in node.names)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        durable = named.get("durable")
        if isinstance(durable, ast.Constant) and durable.value is False:
            self._undurable.add(id(node.func))
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        of_os = isinstance(node.value, ast.Name) and node.value.id == "os"
        if of_os and f"os.{node.attr}" in _INSTEAD:
            return self._site(f"os.{node.attr}", node)
        assert node.attr not in _OPEN_FLAGS, f"{self._module} opens a file with {node.attr}: teach tests/powercut that"
        if node.attr == "syncfs":
            return self._site("syncfs", node)
        if node.attr == "flush" and self._maps:
            return self._site("mmap.flush", node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in _INSTEAD and isinstance(node.ctx, ast.Load) and id(node) not in self._undurable:
            return self._site(node.id, node)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return self._site(_PRAGMA, node) if node.value == _PRAGMA else node


def sites() -> Iterator[str]:
    """Every site in the engine."""
    for path in sorted(ENGINE.rglob("*.py")):
        parts = path.relative_to(ENGINE).with_suffix("").parts
        walk = _Sites(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        walk.visit(ast.parse(path.read_text()))
        yield from walk.found


class _Loader(importlib.machinery.SourceFileLoader):
    omitted = ""

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        walk = _Sites(fullname, self.omitted)
        tree = ast.fix_missing_locations(walk.visit(ast.parse(self.get_data(path))))
        assert self.omitted in walk.found, f"there is no {self.omitted}"
        return compile(tree, path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, omitted: str) -> None:
        self._omitted = omitted

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._omitted.partition(":")[0]:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert isinstance(spec.loader, importlib.machinery.SourceFileLoader)
        spec.loader = _Loader(spec.loader.name, spec.loader.path)
        spec.loader.omitted = self._omitted
        return spec


def omit(site: str) -> None:
    """From here on this process runs the engine without that call. Its module must not have been imported yet."""
    assert site.partition(":")[0] not in sys.modules, f"{site} is imported already"
    sys.meta_path.insert(0, _Finder(site))


if __name__ == "__main__":
    print("\n".join(sites()))
