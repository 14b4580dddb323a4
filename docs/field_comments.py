"""For mkdocstrings: a comment at the end of a field's line is what the field's description says.

Classes of plain values describe their fields so (`out: Path  # directory of the results`); one that has a
docstring below it keeps that.
"""

from __future__ import annotations

import io
import tokenize
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Gives attributes without a docstring the comment that ends their line, or stands above them."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Called by griffe for each attribute that it finds."""
        if attr.docstring is not None or attr.parent is None or not attr.parent.is_class:
            return
        lines = attr.parent.module.lines_collection[attr.filepath]
        first, last = attr.lineno or 1, attr.endlineno or attr.lineno or 1
        comment = _comment("\n".join(lines[first - 1 : last]))
        above = lines[first - 2].strip() if first > 1 else ""
        if not comment and above.startswith("# ") and "noqa" not in above:
            comment = above.removeprefix("# ")
        if comment:
            attr.docstring = griffe.Docstring(comment, lineno=first, parent=attr)


def _comment(source: str) -> str:
    """The comments of some lines of Python, without the directives of tools."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, IndentationError):
        return ""
    found = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return " ".join(text for text in found if not text.startswith(("noqa", "type:", "fmt:")))
