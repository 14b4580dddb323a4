"""Results to stdout, errors to stderr, exit codes."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tbkin_core.errors import ConfigError, TbkinError
from tbkin_core.support.console import OBEYED, printable
from tbkin_core.support.interruption import INTERRUPTED

if TYPE_CHECKING:
    from rich.console import Console

    from tbkin_cli.tables import Table
    from tbkin_core.results import StageResult

SUCCESS, FAILURE, USAGE = 0, 1, 2
_SHOWN_PROBLEMS = 10
_WHOLE_TEXT = 24  # characters of a text that are not broken
_BETWEEN = 3  # between two columns
_NUMBER = re.compile(r"([<>] )?[+-]?[\d.,]+( ?%| to [+-]?[\d.,]+|(, [\d.]+)+)?|nan|inf|–")


def show(result: StageResult, as_json: bool) -> None:
    """Print a stage's result: tables, or one JSON object."""
    # NumPy, rich and the results cost three tenths of a second that --help need not wait for.
    from tbkin_core.support.files import json_text

    if as_json:
        print(_escaped(json_text(result.values)))
        return
    from rich.console import Console
    from rich.text import Text

    from tbkin_cli.tables import notes_of, tables_of

    # A pipe or a file gets whole cells, whatever the width of the terminal.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for table in tables_of(result):
        print_table(console, table)
    notes = notes_of(result)
    lines = [f"note: {note}" for note in notes[:_SHOWN_PROBLEMS]]
    if len(notes) > _SHOWN_PROBLEMS:
        lines.append(f"note: and {len(notes) - _SHOWN_PROBLEMS} more (--json lists them all)")
    lines += [f"wrote {file}" for file in result.files] + [f"next: {hint}" for hint in result.hints]
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table, in several below each other where the terminal is too narrow for all columns.

    Each begins with the first column. No number is ever broken; long texts are.
    """
    from rich.cells import cell_len
    from rich.table import Table as Shown
    from rich.text import Text

    headings = [printable(column) for column in table.columns]
    rows = [[printable(cell) for cell in row] for row in table.rows]
    columns = [[row[place] for row in rows] for place in range(len(headings))]
    numeric = [all(_NUMBER.fullmatch(cell) for cell in column if cell) for column in columns]
    least = []  # width of each column that holds what may not be broken
    for place, heading in enumerate(headings):
        widest = max(map(cell_len, columns[place]), default=0)
        widest = widest if numeric[place] else min(widest, _WHOLE_TEXT)
        least.append(max(widest, cell_len(heading)))
    # A title inside the table would be broken at the table's width.
    console.print(Text(printable(table.title), "italic"), soft_wrap=True)
    for places in _blocks(least, console.width):
        # What looks like markup is text.
        shown = Shown(show_edge=False, pad_edge=False)
        for place in places:
            shown.add_column(
                Text(headings[place]),
                justify="right" if numeric[place] else "left",
                overflow="fold",
                no_wrap=numeric[place],
            )
        for row in rows:
            shown.add_row(*(Text(row[place]) for place in places))
        console.print(shown)
        console.print()


def _blocks(widths: list[int], most: int) -> list[list[int]]:
    """Columns of these widths, by number, in as many tables as it takes; each begins with the first one."""
    blocks, used = [[0]], widths[0]
    for place, width in enumerate(widths[1:], start=1):
        if used + _BETWEEN + width > most and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(place)
        used += _BETWEEN + width
    return blocks


def _escaped(text: str) -> str:
    """JSON with its own escapes in place of what a terminal would obey, or stdout cannot write."""
    text = OBEYED.sub(_escape, text)
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    return text if is_unicode else re.sub(r"[^\x00-\x7f]", _escape, text)


def _escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


@contextlib.contextmanager
def errors_as_messages(overwrites: bool = False) -> Iterator[None]:
    """Turn errors into one message on stderr and an exit code."""
    import typer

    try:
        yield
    except TbkinError as error:
        hint = "" if error.hint is None else f"\n  {printable(error.hint)}"
        print(f"tbkin: {type(error).__name__}: {printable(error.message)}{hint}", file=sys.stderr)
        raise typer.Exit(USAGE if isinstance(error, ConfigError) else FAILURE) from None
    except KeyboardInterrupt as interruption:
        if isinstance(cause := interruption.__cause__, TbkinError):
            # What is done could not be kept.
            text = f"tbkin: interrupted, and then: {printable(cause.message)}"
        elif interruption.args:
            text = f"tbkin: interrupted; {interruption.args[0]}"
        else:
            same = "the same command without --overwrite" if overwrites else "the same command"
            text = f"tbkin: interrupted; what is finished is kept, {same} goes on"
        print(text, file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output has left (`tbkin ... | head`); that is no error of ours.
        sys.stderr.close()
        raise typer.Exit(SUCCESS) from None
    except MemoryError:
        print("tbkin: out of memory; lower --batch-size or use --size tiny", file=sys.stderr)
        raise typer.Exit(FAILURE) from None
    except OSError as error:
        text = f"tbkin: {error.filename or 'file system'}: {error.strerror or error}"
        print(printable(text), file=sys.stderr)
        raise typer.Exit(FAILURE) from None
