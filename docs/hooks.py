"""What `mkdocs build` adds to the pages of docs/.

- The page of commands gets every option and setting, from the classes that the command line is made from.
- Files elsewhere in the repository that the pages lead to (recipes, model cards) become pages too, so that a
  relative link works in the repository and on the site.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import posixpath
import re
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

from tbkin_cli.main import STAGES
from tbkin_cli.options import CallOptions
from tbkin_core.settings import StageConfig, fields_of
from tbkin_core.settings.base import Field, Group

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS_MARK = "<!-- every setting: filled in by docs/hooks.py -->"
COMMANDS_PAGE = "commands.md"
ELSEWHERE = {
    "examples/README.md": "more/examples.md",
    "examples/shipped_models/README.md": "more/shipped-models.md",
    "tests/cuda/RESULTS.md": "more/gpu-results.md",
    "tbkin_core/resources/models/photo-answers/README.md": "more/photo-answers.md",
    "tbkin_core/resources/models/photo-search/README.md": "more/photo-search.md",
    "tbkin_core/resources/parser/README.md": "more/parser.md",
    "CONTRIBUTING.md": "more/contributing.md",
}
"""Files of the repository that are pages of the site, each with its place there."""
_PICTURES = "examples/figures"
_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")


# ---- the settings, from their classes -------------------------------------------------------------


def settings_text() -> str:
    """Every command with its options and settings, as Markdown with HTML lists."""
    common = {**fields_of(StageConfig), **fields_of(CallOptions)}
    parts = ["## Options of every command\n"]
    parts += _grouped("every", _notes(StageConfig), common)
    for name, stage in STAGES.items():
        own = {
            key: field
            for key, field in fields_of(stage.settings).items()
            if key not in common or field.option != common[key].option
        }
        arguments = " ".join(field.option.metavar for field in own.values() if field.option.argument)
        parts.append(f"## tbkin {name}\n")
        parts.append(f"```sh\n{stage.example}\n```\n")
        parts += [f"{paragraph}\n" for paragraph in stage.help.split("\n\n")]
        parts.append(f"Called as `{' '.join(filter(None, ['tbkin', name, '[OPTIONS]', arguments]))}`.\n")
        parts += _grouped(name, _notes(stage.settings), own)
    return "\n".join(parts)


def _grouped(command: str, notes: dict[str, str], fields: dict[str, Field]) -> Iterator[str]:
    """A section for the arguments, one for each heading of --help, and one for what has no option."""
    sections: dict[str, list[Field]] = {
        name: [] for name in ("Arguments", *Group, "In files and in Python alone")
    }
    for field in fields.values():
        group = "Arguments" if field.option.argument else field.option.group
        sections[group or "In files and in Python alone"].append(field)
    for title, members in sections.items():
        if members:
            entries = "\n".join(_entry(command, field, notes) for field in members)
            # The id keeps equal headings of several commands apart, and says which command it is of.
            anchor = f"{command}-group-{title.lower().replace(' ', '-')}"
            # No heading: in the table of contents a command would have ten of them.
            yield f'<p class="group" id="{anchor}">{title}</p>\n<dl class="settings">\n{entries}\n</dl>\n'


def _entry(command: str, field: Field, notes: dict[str, str], prefix: str = "") -> str:
    """A setting: what one types, its key, what it takes and is by default, and what it does."""
    option, key = field.option, f"{prefix}{field.name}"
    typed = escape(key if option.group is None else _typed(field)).replace("|", "|<wbr>")
    shown = f"<code>{typed}</code> "
    # What has no option is shown by its key, and what no file of settings holds has none.
    has_key = option.group is not None and field.name not in fields_of(CallOptions)
    facts = [f"key <code>{escape(key)}</code>"] if has_key else []
    facts += [_takes(field)]
    facts += [] if option.argument else [_default(field)]
    facts += ["required"] if option.required else []
    facts += ["may be given several times"] if field.is_list and not option.argument and option.group else []
    facts += [f"for <code>--task {' or '.join(option.only_for)}</code>"] if option.only_for else []
    facts += [f"with <code>--{option.only_with.replace('_', '-')}</code>"] if option.only_with else []
    text = " ".join(filter(None, [option.help, notes.get(field.name, "")]))
    told = f'<span class="facts">{"; ".join(filter(None, facts))}</span>'
    entry = f'<dt id="{command}-{escape(key)}">{shown}{told}</dt>\n<dd>{_inline(text)}</dd>'
    if hasattr(field.kind, "__dataclass_fields__"):
        inner = _notes(field.kind)
        return "\n".join(
            [entry, *(_entry(command, it, inner, f"{key}.") for it in fields_of(field.kind).values())]
        )
    return entry


def _typed(field: Field) -> str:
    """As it is typed: `--threshold X`, `--quiet, -q`."""
    option = field.option
    value = option.metavar or {int: "N", float: "X", Path: "PATH", str: "TEXT"}.get(field.kind, "")
    if option.choices:
        value = "|".join(filter(None, [*option.choices, option.others]))
    return value if option.argument else f"{', '.join(field.flag.split())} {value}".strip()


def _takes(field: Field) -> str:
    """The numbers it may be, and of a key without an option its choices."""
    option = field.option
    if option.choices and option.group is None:
        return "one of " + ", ".join(f"<code>{escape(it)}</code>" for it in option.choices)
    if option.above is not None:
        return f"above {option.above:g}"
    if option.low is None:
        return ""
    if option.high is None:
        return f"at least {option.low:g}"
    return f"from {option.low:g} to {option.high:g}" if option.high < 2**62 else f"at least {option.low:g}"


def _default(field: Field) -> str:
    value, option = field.default, field.option
    if hasattr(field.kind, "__dataclass_fields__"):
        return "a mapping of the following"
    if value in (None, [], "", Path()) and not option.unset:
        return "" if option.required else "unset by default"
    if value in (None, []):
        return f"default: {escape(option.unset)}"
    if isinstance(value, bool):
        return f"default: {str(value).lower()}"
    written = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"default: {escape(f'{value:g}' if isinstance(value, float) else written)}"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(" ".join(text.split()), quote=False))


@functools.cache
def _notes(kind: type[Any]) -> dict[str, str]:
    """The texts below fields, of which --help has no room, by field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not hasattr(base, "__dataclass_fields__"):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found.pop(field.target.id, None)
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    found[field.target.id] = str(below.value.value)
    return found


# ---- links and pages that stand elsewhere -----------------------------------------------------------


def site_links(text: str, page: str, place: str) -> str:
    """The links of a page as the site has them.

    Args:
        text: Its Markdown, outside code.
        page: Its path in the repository.
        place: Its path on the site.
    """

    def link(found: re.Match[str]) -> str:
        shown, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if path.startswith("docs/"):
            there = path.removeprefix("docs/")
        elif path.startswith(_PICTURES):
            there = f"pictures/{PurePosixPath(path).name}"
        elif path == "README.md":
            there = "index.md"
        elif path in ELSEWHERE or f"{path}/README.md" in ELSEWHERE:
            there = ELSEWHERE.get(path) or ELSEWHERE[f"{path}/README.md"]
        else:
            return shown.strip("[]")
        relative = posixpath.relpath(there, posixpath.dirname(place) or ".")
        return f"{shown}({relative}{'#' if anchor else ''}{anchor})"

    parts = re.split(r"(^```.*?^```$|^ {4}[^\n]*$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else _LINK.sub(link, part) for number, part in enumerate(parts))


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that stand elsewhere."""
    from mkdocs.structure.files import File

    for page, place in ELSEWHERE.items():
        text = site_links((REPOSITORY / page).read_text(encoding="utf-8"), page, place)
        files.append(File.generated(config, place, content=text))
    for picture in sorted((REPOSITORY / _PICTURES).glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Keep an option on one line: a browser would break it behind its hyphens."""
    return re.sub(r"<code>(--[\w-]+(?: [^\s<]{1,20})?)</code>", r'<code class="option">\1</code>', html)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the settings; lead links to where the site has what they name."""
    place = page.file.src_uri
    if place in ELSEWHERE.values():
        return markdown
    if place == COMMANDS_PAGE:
        markdown = markdown.replace(SETTINGS_MARK, settings_text())
    return site_links(markdown, f"docs/{place}", place)
