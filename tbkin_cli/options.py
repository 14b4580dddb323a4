"""The options of a subcommand, made from its settings, and how --help shows them."""

# ruff: noqa: RUF009 (`option` makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from tbkin_core.settings import StageConfig, fields_of
from tbkin_core.settings.base import Field, Group, option

_COLUMN = 24
"""Width of the options in --help, beside their texts."""


@dataclass(frozen=True)
class CallOptions:
    """The options of every subcommand that are no settings."""

    config: Path | None = option(None, "YAML file of settings; flags win over it.", Group.RUN, metavar="FILE")
    print_config: bool = option(
        False, "Print all settings as a YAML file with comments, those given among them, and stop.", Group.RUN
    )
    json: bool = option(False, "Print one JSON object on stdout instead of tables.", Group.OUTPUT)
    quiet: bool = option(
        False, "No progress and no log on stderr; warnings only.", Group.OUTPUT, flag="--quiet -q"
    )


def parameters(kind: type[StageConfig]) -> list[Parameter]:
    """The parameters of a Typer command for settings of this kind; None or [] where one is not given."""
    fields = [*fields_of(kind).values(), *fields_of(CallOptions).values()]
    return [_parameter(entry, kind) for group in Group for entry in fields if entry.option.group == group]


def _parameter(entry: Field, kind: type[StageConfig]) -> Parameter:
    # Paths are read by the settings: the question of `visualize` comes among images.
    item: Any = str if entry.kind is Path else entry.kind
    hint: Any = list[item] if entry.is_list else item
    text: dict[str, Any] = {"help": _help(entry, kind), "metavar": _metavar(entry), "show_default": False}
    if entry.option.argument:
        info: Any = typer.Argument(**text)
    else:
        info = typer.Option(*entry.flag.split(), rich_help_panel=entry.option.group, **text)
    needed = entry.option.argument and not entry.is_list and not entry.optional
    annotation: Any = Annotated[hint if needed else hint | None, info]
    default = Parameter.empty if needed else None
    return Parameter(entry.name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _metavar(entry: Field) -> str | None:
    meta = entry.option
    if meta.choices:
        return f"[{'|'.join(filter(None, [*meta.choices, meta.others]))}]"
    return meta.metavar or {int: "N", float: "X", Path: "PATH", str: "TEXT"}.get(entry.kind)


def _help(entry: Field, kind: type[StageConfig]) -> str:
    """The help text, and in brackets what the field says by itself."""
    meta = entry.option
    default = entry.default if entry.default not in (None, []) else meta.unset
    notes = ["required"] if meta.required else []
    if meta.only_for:
        notes.append(f"for --task {' or '.join(meta.only_for)}")
    if meta.only_with:
        notes.append(f"with {fields_of(kind)[meta.only_with].flag}")
    if entry.is_list and not meta.argument:
        notes.append("repeatable")
    if default != "" and entry.kind is not bool and not meta.argument:
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        notes.append(f"default: {', '.join(default) if isinstance(default, list) else shown}")
    return f"{meta.help}  [{'; '.join(notes)}]" if notes else meta.help


class Command(typer.core.TyperCommand):
    """A subcommand whose --help groups the options by what they are about."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Settings can be printed before there is any data."""
        needed = [entry for entry in self.params if entry.required and entry.param_type_name == "argument"]
        if "--print-config" not in args:
            needed = []
        try:
            for entry in needed:
                entry.required = False
            return super().parse_args(ctx, args)
        finally:
            for entry in needed:
                entry.required = True

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As the arguments are typed."""
        arguments = [entry for entry in self.params if entry.param_type_name == "argument"]
        return ["[OPTIONS]", *(entry.metavar or "" for entry in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """A section per group, the texts below each other."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            name, text = parameter.get_help_record(ctx) or ("", "")
            group = getattr(parameter, "rich_help_panel", None) or Group.OUTPUT
            if parameter.param_type_name == "argument":
                name, group = parameter.metavar or name, "Arguments"
            groups.setdefault(group, []).append((name.ljust(_COLUMN), text))
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records, col_max=_COLUMN)
