"""What a stage depends on, as a flat dict {thing: fingerprint}: "stale, and why" is the difference of two such dicts.

Compute is the cells without the tag `figure` and what they reach: modules of fundus_lib (through import statements,
plots left out), the data files those modules name, the settings sections the code names. Code is compared by its syntax
tree: comments, formatting and docstrings never make a stage stale, nor does markdown.
"""

import ast
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fundus_lib import settings as profiles

RUNNER = {f"fundus_lib.{name}" for name in ("runs", "staleness", "settings")}   # decide when to run, not what comes out
# Settings that change the time or the bill, not the result; seeds are a thing of their own.
NOT_COMPUTE = {"seeds", "workers", "shards.count", "shards.engine", "shards.gpus_each", "server.url",
               "server.key_variable", "server.in_flight", "server.timeout_seconds", "server.price_in",
               "server.price_out", "server.budget"}
Key = dict[str, str]


class Cell(NamedTuple):
    tags: frozenset[str]
    tree: ast.Module


class Module(NamedTuple):
    digest: str
    imports: frozenset[str]
    strings: frozenset[str]             # that may name a file
    sections: frozenset[str]            # x of .settings.x


def digest(content: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """Of names, sizes and modification times below `folder`: cheap enough for 100,000 photographs."""
    found = [(p.relative_to(folder).as_posix(), p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
    return digest("\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found))


def read_cells(notebook: Path) -> list[Cell]:
    """The code cells. ValueError for a notebook that is missing or no JSON, and for a cell that is not Python."""
    if not notebook.exists():
        raise ValueError(f"{notebook} does not exist.\n  get it back:  git checkout -- notebooks")
    cells = []
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"], start=1):
        if cell["cell_type"] == "code":
            source = re.sub(r"^\s*[%!].*$", "", "".join(cell["source"]), flags=re.MULTILINE)    # no magics
            try:
                cells.append(Cell(frozenset(cell["metadata"].get("tags", ())), ast.parse(source)))
            except SyntaxError as error:
                raise ValueError(f"{notebook}: cell {number}, line {error.lineno}: {error.msg}") from None
    return cells


class _Essence(ast.NodeTransformer):
    """Drops what cannot change a result: docstrings, and the arguments of open_stage (they come from the runner)."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "open_stage":
            node.keywords = []
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(getattr(body[0], "value", None), ast.Constant) \
                and isinstance(body[0], ast.Expr):
            del body[0]
        return node


def imports(tree: ast.AST, package: str = "fundus_lib") -> Iterator[tuple[str, str, str]]:
    """(name bound, the import in words, module it may come from) for every import in `tree`, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.asname or a.name.split(".")[0], f"import {a.name}", a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(dots, package) if node.level else dots
            for name, module in ((a, m) for a in node.names for m in (source, f"{source}.{a.name}")):
                yield name.asname or name.name, f"from {source} import {name.name}", module


def sections(tree: ast.AST) -> set[str]:
    """The x of every `.settings.x`; "*" when the settings are handed on whole."""
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    parts = {id(n.value): n.attr for n in nodes}
    return {parts.get(id(n), "*") for n in nodes if n.attr == "settings"}


@cache
def _module(name: str, path: Path, changed: int) -> Module:
    tree = _Essence().visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    started = {text for text in strings if text.startswith("fundus_lib.")}              # python -m fundus_lib.x
    return Module(digest(ast.dump(tree)), frozenset({m for *_, m in imports(tree, package)} | started),
                  frozenset(s for s in strings if re.fullmatch(r"\w[\w.-]{0,60}(/\w[\w.-]{0,60}){0,4}", s)),
                  frozenset(sections(tree) - {"*"}))


def closure(names: Iterable[str], root: Path, without: set[str]) -> dict[Path, Module]:
    """The modules of root/fundus_lib that `names` reach by import statements, with the packages they lie in."""
    found, seen, waiting = {}, set(without), list(names)
    while waiting:
        name = waiting.pop()
        if name in seen or name.split(".")[0] != "fundus_lib":
            continue
        seen.add(name)
        base = root.joinpath(*name.split("."))
        if path := next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None):
            found[path] = _module(name, path, path.stat().st_mtime_ns)
            waiting += [*found[path].imports, name.rpartition(".")[0]]
    return found


def data_files(modules: dict[Path, Module], root: Path) -> set[Path]:
    """Files that a module names: beside itself, in the package, or as "folder/..." in `root`. Python is not data."""
    named = {base / text for path, module in modules.items() for text in module.strings
             for base in (path.parent, root / "fundus_lib", *([root] if "/" in text else []))}
    inside = {p for path in named if path.exists() for p in ([path] if path.is_file() else path.rglob("*"))}
    return {p for p in inside if p.is_file() and p.suffix not in (".py", ".pyc")}


def code_key(notebook: Path, stage: str, settings: profiles.Settings, seeds: range, root: Path, *,
             figures: bool = False) -> Key:
    """What the stage's own cells depend on; with `figures` its figure cells and the plots count as well."""
    cells = [cell for cell in read_cells(notebook) if "parameters" not in cell.tags]
    mine = [_Essence().visit(tree) for tags, tree in cells
            if ("base_model" in tags) == (stage == "base_model") and (figures or "figure" not in tags)]
    nodes = [node for tree in mine for node in ast.walk(tree)]
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    used = [(words, module) for _, tree in cells for name, words, module in imports(tree) if name in names]
    modules = closure({m for _, m in used}, root, RUNNER if figures else RUNNER | {"fundus_lib.plots"})
    code = [ast.dump(n) for tree in mine for n in tree.body if not isinstance(n, ast.Import | ast.ImportFrom)]
    key = {"notebook cells": digest("\n".join([*code, *sorted({words for words, _ in used})]))}
    key |= {path.relative_to(root).as_posix(): module.digest for path, module in modules.items()}
    key |= {path.relative_to(root).as_posix(): file_digest(path) for path in data_files(modules, root)}
    wanted = set().union(*map(sections, mine), *(module.sections for module in modules.values()))
    named = names | {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    if named & {"SEEDS", "seeds"}:
        key["seeds"] = f"{seeds.start} to {seeds.stop - 1}"
    elif named & {"SEED", "seed"}:
        key["seeds"] = f"{seeds.start}"
    chosen = profiles.flat(settings, set(profiles.Settings.model_fields) if "*" in wanted else wanted)
    return key | {f"settings.{name}": str(value) for name, (value, _) in chosen.items() if name not in NOT_COMPUTE}


def differences(old: Key, new: Key) -> list[str]:
    """What changed from `old` to `new`, by name; for settings with both values."""
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    shown = [f"{n} {old.get(n)} -> {new.get(n)}" if n.startswith(("settings.", "seeds")) else n for n in names[:6]]
    return shown + ([f"{len(names) - 6} more"] if len(names) > 6 else [])
