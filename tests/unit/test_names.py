"""Each thing has a name of its own, and what is pure reads nothing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "vllm_safe"
FILES = sorted(PACKAGE.rglob("*.py"))
# Names that all Python packages and programs use: a console script's `main`, and the `command` of each module of cli/.
CONVENTIONS = {"__init__", "__main__", "main", "command"}

# Decisions, what they stand on, and every module whose first lines say "Pure": functions of what they are handed.
PURE = [
    file
    for file in FILES
    if file.parent.name in {"decide", "diagnose", "causes"}
    or (file.parent.name == "plan" and not file.stem.endswith("_facts"))
    or file.stem.endswith("_decision")
    or str(file.relative_to(PACKAGE)) in {"config/model_names.py", "config/profiles.py", "config/rules.py", "config/settings.py"}
    or re.search(r"\bPure\b", ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")
]
# Nothing of these is a function of its arguments alone. `pathlib` is not among them: a path is a value, and IO_METHODS are what it does.
_MODULES = """
    asyncio builtins ctypes datetime fcntl getpass glob grp http importlib io locale mmap multiprocessing os platform psutil pwd random
    resource secrets select selectors shutil signal socket ssl subprocess sys tempfile threading time urllib uuid zoneinfo
"""
IMPURE = frozenset(_MODULES.split())
# Names of numbers, and forms of a number or a time that is handed in.
ALLOWED = {"os.waitstatus_to_exitcode", "signal.SIGTERM", "signal.Signals", "time.strftime", "time.struct_time"}
_METHODS = """
    absolute chmod cwd exists expanduser glob home is_dir is_file is_mount is_symlink iterdir lstat mkdir open read_bytes read_text
    readlink rename resolve rglob rmdir samefile stat symlink_to touch unlink write_bytes write_text
"""
IO_METHODS = frozenset(_METHODS.split())
OURS = frozenset({"kernfs", "program_output", "systemctl", "small_files"})  # of common and contract: constants and parsers alone


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def defined(kind: type[ast.stmt] | tuple[type[ast.stmt], ...]) -> Iterator[tuple[str, Path]]:
    for file in FILES:
        for statement in tree(file).body:
            if isinstance(statement, kind) and isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield statement.name, file


def twice(names: Iterator[tuple[str, Path]]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for name, file in names:
        if name not in CONVENTIONS:
            found[name].append(str(file.relative_to(PACKAGE)))
    return {name: files for name, files in found.items() if len(files) > 1}


def test_no_file_has_the_name_of_another() -> None:
    assert twice((file.stem, file) for file in FILES) == {}


def test_no_class_has_the_name_of_another() -> None:
    assert twice(defined(ast.ClassDef)) == {}


def test_no_public_function_has_the_name_of_another() -> None:
    functions = defined((ast.FunctionDef, ast.AsyncFunctionDef))
    assert twice((name, file) for name, file in functions if not name.startswith("_")) == {}


@pytest.mark.parametrize("file", PURE, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_what_is_pure_reads_nothing(file: Path) -> None:
    """Not a file, not the clock, not the time zone; a test of our own, since ruff's banned-api knows no methods and no `open`."""
    assert list(impurities(tree(file))) == []


def impurities(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (f"{node.lineno}: import {name.asname}" for name in node.names if name.asname and name.name in IMPURE)
        elif isinstance(node, ast.ImportFrom):
            yield from imported(node)
        elif isinstance(node, ast.Attribute):
            where = f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else node.attr
            module_of = where.partition(".")[0] if isinstance(node.value, ast.Name) else ""
            if node.attr in IO_METHODS or (module_of in IMPURE and where not in ALLOWED):
                yield f"{node.lineno}: {where}"
        elif isinstance(node, ast.Name) and node.id in {"open", "input", "print", "exec", "eval", "__import__"}:
            yield f"{node.lineno}: {node.id}"


def imported(node: ast.ImportFrom) -> Iterator[str]:
    origin, names = node.module or "", [name.name for name in node.names]
    for name in names:
        own = origin.startswith("vllm_safe.") and name.startswith(("read_", "write_", "show_", "list_", "open_", "find_files"))
        reads = own and (origin.endswith("_facts") or origin.rpartition(".")[2] in OURS)
        if reads or (origin.partition(".")[0] in IMPURE and f"{origin}.{name}" not in ALLOWED):
            yield f"{node.lineno}: from {origin} import {name}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import time\ntime.localtime(1)", ["2: time.localtime"]),
        ("import time\ntime.strftime('%H', x)", []),
        ("import time as clock\nclock.time()", ["1: import clock"]),
        ("from os import environ", ["1: from os import environ"]),
        ("from datetime import datetime", ["1: from datetime import datetime"]),
        ("import os.path\nos.path.exists(x)", ["2: exists", "2: os.path"]),
        ("from pathlib import Path\nPath('x').read_text()", ["2: read_text"]),
        ("open('x')", ["1: open"]),
        ("from vllm_safe.host.host_facts import Host, read_host", ["1: from vllm_safe.host.host_facts import read_host"]),
        ("from vllm_safe.common.kernfs import MODELS_SLICE", []),
    ],
)
def test_the_search_finds_what_reads(text: str, found: list[str]) -> None:
    assert list(impurities(ast.parse(text))) == found
