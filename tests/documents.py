"""Reads the Markdown of README.md and docs/: blocks, links, headings, commands, names in Python."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import typing
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from tbkin_cli.main import STAGES, app
from tbkin_core.settings import StageConfig, commented, load_config

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A block of code between fences."""

    page: Path
    line: int  # of its first fence, from 1
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        language, _, rest = match["info"].partition(" ")
        title = re.fullmatch(r'title="([^"]+)"', rest)
        lines = [line.removeprefix(match["indent"]) for line in match["text"].split("\n")]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, language, title[1] if title else "", "\n".join(lines)))
    return found


def prose(page: Path) -> str:
    """A page without its blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL)


def inline_code(page: Path) -> list[str]:
    """What stands between single back quotes, on one line each."""
    return [" ".join(found.replace("\\|", "|").split()) for found in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """The targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code-hosting sites make them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-{sum(it.startswith(slug) for it in found)}")
    return found


# ---- commands -------------------------------------------------------------------------------------


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, comments left out, a pipe's parts one by one."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "|" in words:
            yield words[: words.index("|")]
            words = words[words.index("|") + 1 :]
        if words:
            yield words


def settings_of(words: list[str], files: dict[str, Path]) -> StageConfig | None:
    """What `tbkin WORDS` would run with; None where it would only print something.

    Args:
        words: All behind `tbkin`.
        files: Files of settings by the names that the words may have for them; others are the repository's.

    Raises:
        Exception: An option is none, a value is not accepted, or something that is needed lacks.
    """
    group: Any = typer.main.get_command(app)
    name, *rest = words
    if name in ("--version", "--help"):
        return None
    assert name in group.commands, f"tbkin has no command {name!r}"
    if "--help" in rest:
        return None
    flags = dict(group.commands[name].make_context(name, rest).params)
    file, prints = flags.pop("config"), flags.pop("print_config")
    given = {key: value for key, value in flags.items() if value is not None and value not in ([], ())}
    given = {key: value for key, value in given.items() if key not in ("json", "quiet")}
    file = None if file is None else files.get(file, REPOSITORY / file)
    stage = STAGES[name]
    if prints:
        commented(stage.settings, file, stage.arrange(given))
        return None
    return load_config(stage.settings, file, stage.arrange(given))


# ---- names in Python --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instance:
    """Some object of a type."""

    kind: Any


class Names(ast.NodeVisitor):
    """Checks that what a piece of Python imports, calls and reads exists, as far as types are told.

    Raises:
        AssertionError: A name, an attribute or an argument is none.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for item in node.names:
            module = importlib.import_module(item.name)
            self.known[item.asname or item.name] = module

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = importlib.import_module(str(node.module))
        for item in node.names:
            assert hasattr(module, item.name), f"{node.module} has no {item.name}"
            self.known[item.asname or item.name] = getattr(module, item.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        found = self.told(node.value)
        if isinstance(node.targets[0], ast.Name):
            self.known[node.targets[0].id] = found

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.told(item.context_expr)
        for part in node.body:
            self.visit(part)

    def visit_Expr(self, node: ast.Expr) -> None:
        self.told(node.value)

    def told(self, node: ast.AST) -> Any:
        """What an expression is: an object, an `Instance`, or None where that is not told."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(self.told(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            self.told(node.slice)
            return self._item(self.told(node.value))
        for child in ast.iter_child_nodes(node):
            self.told(child)
        return None

    def _call(self, node: ast.Call) -> Any:
        function = self.told(node.func)
        for child in [*node.args, *(word.value for word in node.keywords)]:
            self.told(child)
        if function is None or not callable(function):
            return None
        words = {word.arg: None for word in node.keywords if word.arg}
        with suppress(ValueError):  # of C, without a signature
            inspect.signature(function).bind(*[None] * len(node.args), **words)
        if inspect.isclass(function):
            return Instance(function)
        return _instance(_hints(function).get("return"))

    def _attribute(self, owner: Any, name: str) -> Any:
        if owner is None:
            return None
        kind = owner.kind if isinstance(owner, Instance) else owner
        # A list and the like: of its own type.
        kind = typing.get_origin(kind) or kind
        kinds = (
            [kind, *kind.__subclasses__()]
            if inspect.isclass(kind) and isinstance(owner, Instance)
            else [kind]
        )
        declared = {
            key: hint for it in reversed(kinds) if inspect.isclass(it) for key, hint in _hints(it).items()
        }
        there = name in declared or any(hasattr(it, name) for it in kinds)
        assert there or (inspect.isclass(kind) and _is_set(kind, name)), f"{kind} has no {name}"
        if not isinstance(owner, Instance):
            return getattr(kind, name)
        if name in declared:
            return _instance(declared[name])
        value = getattr(kind, name, None)
        if isinstance(value, property):
            return _instance(_hints(value.fget).get("return"))
        return value.__get__(object()) if inspect.isfunction(value) else None

    def _item(self, owner: Any) -> Any:
        if not isinstance(owner, Instance):
            return None
        if typing.get_origin(owner.kind) in (list, tuple):
            return _instance(typing.get_args(owner.kind)[0])
        getter = getattr(owner.kind, "__getitem__", None)
        return _instance(_hints(getter).get("return")) if inspect.isfunction(getter) else None


def _is_set(kind: Any, name: str) -> bool:
    """Whether a class sets an attribute of its objects."""
    return re.search(rf"\bself\.{name}\b[^=\n]*= ", inspect.getsource(kind)) is not None


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner)
    except Exception:  # of libraries that name what is imported for type checkers alone
        return {}


def _instance(kind: Any) -> Instance | None:
    return None if kind in (None, Any, type(None)) or isinstance(kind, typing.TypeVar) else Instance(kind)
