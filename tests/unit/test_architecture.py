"""The rules that hold for all code: who may import whom, what is documented, what is not done at all."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.gofixtures import ROOT

LAYERS = ("goabi", "stepping", "ptserver", "cli")
"""Lowest first; a layer imports itself and what is below it."""

SOLE_IMPORTERS = {
    "rich": {"ptserver/attach/view.py", "ptserver/attach/screen.py", "ptserver/commands/attach.py"},
    "ptrace": {"stepping/ptrace_api.py"},
    "capstone": {"stepping/blocks.py"},
    "unicorn": {"stepping/unicorn_api.py"},
    "cryptography": {"ptserver/keys.py"},
    "ssl": {"ptserver/net/tls.py", "ptserver/net/tls_stream.py"},
    "elftools": {"goabi/elf.py", "goabi/dwarf.py"},
}

#: Modules of more than 500 lines, with the reason.
LONG_MODULES = {
    "stepping/syscalls/table.py": "data: one row per syscall",
    "ptserver/messages.py": "data: one class per message, which are published together",
}

#: Handlers of every exception that neither pass it on nor turn it into an error of ours, with the reason.
BLANKET_EXCEPTS = {
    "cli.py": "the one place where an error becomes a line and an exit status",
    "stepping/tracer_thread.py": "hands whatever a request raised on the tracer thread to the thread that asked",
}


def sources() -> list[Path]:
    return sorted(
        [ROOT / "cli.py", *(path for layer in LAYERS[:-1] for path in (ROOT / layer).rglob("*.py"))]
    )


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import, wherever it stands."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            yield node.lineno, node.module or ""


every_source = pytest.mark.parametrize("path", sources(), ids=name_of)


@every_source
def test_imports_go_downward(path: Path) -> None:
    own = LAYERS.index(name_of(path).partition("/")[0].removesuffix(".py"))
    upward = {*LAYERS[own + 1 :], "tests", "bench"}
    found = [f"line {line}: {name}" for line, name in imports(path) if name.partition(".")[0] in upward]
    assert not found


@every_source
def test_dangerous_libraries_have_one_importer(path: Path) -> None:
    for line, name in imports(path):
        importers = SOLE_IMPORTERS.get(name.partition(".")[0])
        assert importers is None or name_of(path) in importers, f"line {line}: {name}"


@every_source
def test_no_star_imports(path: Path) -> None:
    stars = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert not stars


@every_source
def test_what_is_public_is_documented(path: Path) -> None:
    missing = [] if ast.get_docstring(tree_of(path)) else ["the module"]
    missing += [f"line {line}: {name}" for line, name in undocumented(tree_of(path))]
    assert not missing


def undocumented(scope: ast.Module | ast.ClassDef) -> Iterator[tuple[int, str]]:
    for node in scope.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        decorators = {ast.unparse(decorator).partition(".")[2] for decorator in node.decorator_list}
        if ast.get_docstring(node) is None and not decorators & {"setter", "overload"}:
            yield node.lineno, node.name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node)


@every_source
def test_no_error_is_swallowed(path: Path) -> None:
    """`except Exception`, `except BaseException` and `except:` only clean up and pass on, but for those listed."""
    swallowing = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and is_blanket(node.type) and not passes_on(node)
    ]
    allowed = 1 if name_of(path) in BLANKET_EXCEPTS else 0
    assert len(swallowing) <= allowed, f"lines {swallowing}"


def is_blanket(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    names = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(isinstance(name, ast.Name) and name.id in ("Exception", "BaseException") for name in names)


def passes_on(handler: ast.ExceptHandler) -> bool:
    """Whether the handler always ends in a raise: of the same exception, or of another because of it."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and (last.exc is None or last.cause is not None)


@every_source
def test_modules_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 500 or name_of(path) in LONG_MODULES, f"{lines} lines"


def test_the_lists_here_are_no_longer_than_needed() -> None:
    names = {name_of(path) for path in sources()}
    assert set(LONG_MODULES) <= names
    assert set(BLANKET_EXCEPTS) <= names


def test_modules_of_tests_have_names_of_their_own() -> None:
    """They are in no packages, so pytest could not import the second one of a name."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
