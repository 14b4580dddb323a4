"""For mkdocstrings: the comment at the end of a field's line, or above it, is the field's description.

Classes of plain values describe their fields so (`out: Path  # directory of the results`). Those descriptions
become a list of attributes below the class; a field that has a docstring keeps that.
"""

from __future__ import annotations

import io
import tokenize
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Lists the fields that comments describe, for each class that has any and no such list of its own."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe for each class once its members are known."""
        described = {
            name: comment
            for name, member in cls.members.items()
            if isinstance(member, griffe.Attribute) and member.docstring is None
            for comment in [_comment_of(member)]
            if comment and not name.startswith("_")
        }
        text = cls.docstring.value if cls.docstring is not None else ""
        if described and "Attributes:" not in text:
            listed = "\n".join(f"    {name}: {comment}" for name, comment in described.items())
            whole = f"{text}\n\nAttributes:\n{listed}"
            cls.docstring = griffe.Docstring(
                whole, lineno=cls.lineno, parent=cls, parser=griffe.Parser.google
            )


def _comment_of(field: griffe.Attribute) -> str:
    lines = field.module.lines_collection[field.filepath]
    first, last = field.lineno or 1, field.endlineno or field.lineno or 1
    if comment := _comment("\n".join(lines[first - 1 : last])):
        return comment
    above = lines[first - 2].strip() if first > 1 else ""
    return above.removeprefix("# ") if above.startswith("# ") and "noqa" not in above else ""


def _comment(source: str) -> str:
    """The comments of some lines of Python, without the directives of tools."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, IndentationError):
        return ""
    found = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return " ".join(text for text in found if not text.startswith(("noqa", "type:", "fmt:")))
