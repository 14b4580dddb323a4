"""How settings are declared, read, checked and written; the settings themselves stand in `stages`.

A setting is a dataclass field made by `option`: its type, default, bounds, choices and help stand there and
nowhere else. The command line is made from that, and every object is checked as it is made, be it from flags,
from YAML or in Python.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import os
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tbkin_core.errors import ConfigError
from tbkin_core.support import schema
from tbkin_core.support.console import shortened, shown
from tbkin_core.tasks.table import FINETUNE_TASKS

_DEVICES = re.compile(r"auto|cpu(:[1-9]\d{0,2})?|cuda(:\d+(,\d+)*)?")
_PREFIX = "settings: "
_MOST_BYTES = 1 << 16  # of a file of settings: a hundred times what all of them take
_MOST_FAULTS = 20  # in one message
_LONGEST_FAULT = 400
_MOST_DEEP = 20  # of a file's lists and mappings in each other
_EXAMPLE = "give a file of settings, one `name: value` a line, as config.yaml beside any result"
_HINT = "see the command's --help for what each one takes"

Config = TypeVar("Config", bound="StageConfig")


class Group(enum.StrEnum):
    """Headings of --help, in their order."""

    DATA = "Data"
    REGIONS = "Regions"
    GRAPHS = "Graphs"
    QUESTIONS = "Questions and expressions"
    MODEL = "Model"
    SELECTION = "Attention selection"
    TRAINING = "Training"
    SWEEP = "Sweep"
    FIGURE = "Figure"
    SERVER = "Server"
    RUN = "Run"
    OUTPUT = "Output"


@dataclass(frozen=True, slots=True)
class Option:
    """What a setting is, beside its type and its default."""

    help: str  # what it does, in a sentence or two
    # Heading it stands under in --help; without one it is no option of the command line.
    group: str | None = None
    _: KW_ONLY
    # low, high: the least and the greatest number allowed, None for no bound
    low: float | None = None
    high: float | None = None
    above: float | None = None  # numbers must be greater than this
    choices: tuple[str, ...] = ()  # the values allowed
    others: str = ""  # metavar of values allowed beside `choices`; its class checks those
    required: bool = False  # the default is no value; one must be given
    only_for: tuple[str, ...] = ()  # the tasks that have this setting; for the others it keeps its default
    only_with: str = ""  # another setting, without which this one keeps its default
    unset: str = ""  # what None or an empty list stands for, as --help puts it
    # Its name on the command line, where that is not the field's; several have spaces between them.
    flag: str = ""
    metavar: str = ""  # placeholder of the value in --help, where type and choices do not say enough
    argument: bool = False  # it is an argument of the command line, not an option


def option(default: Any, *args: Any, **kwargs: Any) -> Any:
    """A dataclass field: its default, and what `Option` takes. A list is copied for each object."""
    metadata = {"option": Option(*args, **kwargs)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Field:
    """A setting: `kind` is bool, int, float, str, Path, or a dataclass of further settings."""

    name: str
    kind: type[Any]
    is_list: bool
    optional: bool
    option: Option
    default: Any

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return self.option.flag or f"--{self.name.replace('_', '-')}"

    def read(self, value: Any) -> Any:
        """A value from Python, YAML or the command line as the field's type has it.

        Raises:
            TypeError, ValueError, OverflowError: It is none.
        """
        if value is None and self.optional:
            return None
        if self.is_list:
            return [self._read_one(item) for item in (value if isinstance(value, list | tuple) else [value])]
        return self._read_one(value)

    def _read_one(self, value: Any) -> Any:
        if isinstance(value, bool) != (self.kind is bool):
            raise TypeError
        if self.kind is Path and not isinstance(value, str | Path):
            raise TypeError
        if self.kind is str and not isinstance(value, str | int | float):
            raise TypeError
        if self.kind is int and isinstance(value, float) and value != int(value):
            raise TypeError
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise OverflowError
        if isinstance(value, str | Path) and b"\0" in os.fsencode(value):
            raise ValueError
        return self.kind(value)

    def expected(self) -> str:
        """The type, as messages name it."""
        name = "a mapping of settings" if dataclasses.is_dataclass(self.kind) else self.kind.__name__
        return f"list[{name}]" if self.is_list else name

    def faults(self, value: Any) -> Iterable[str]:
        """What the bounds and choices have against a value that was read."""
        for item in value if self.is_list and value is not None else [value]:
            fault = self._fault(item)
            if fault:
                yield f"{self.name}: {fault}"

    def _fault(self, value: Any) -> str | None:
        option = self.option
        if value is None:
            return None
        if option.required and not value:
            return f"is missing, for example {self.flag} {option.choices[0]}"
        if option.choices and not option.others:
            return wrong_choice(value, option.choices)
        if option.above is not None and not value > option.above:
            return f"expected a number above {option.above:g}, got {value:g}"
        low, high = option.low, option.high
        if (low is None or value >= low) and (high is None or value <= high):
            return None
        bounds = f"at least {low:g}" if high is None else f"a number from {low:g} to {high:g}"
        return f"expected {bounds}, got {value:g}"


def wrong_choice(value: str, choices: tuple[str, ...]) -> str | None:
    """What is wrong with a value that must be one of some; None if it is."""
    if value in choices:
        return None
    return f"expected one of {', '.join(choices)}, got {shown(value)}{nearest(value, choices)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean x?)` for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def fields_of(kind: type[Any]) -> dict[str, Field]:
    """The settings of a dataclass by name, in their order."""
    hints = typing.get_type_hints(kind)
    found = {}
    for entry in dataclasses.fields(kind):
        hint = hints[entry.name]
        optional = isinstance(hint, types.UnionType)
        inner = typing.get_args(hint)[0] if optional else hint
        is_list = typing.get_origin(inner) is list
        one = typing.get_args(inner)[0] if is_list else inner
        factory = entry.default_factory
        default = entry.default if factory is dataclasses.MISSING else factory()
        found[entry.name] = Field(entry.name, one, is_list, optional, entry.metadata["option"], default)
    return found


def kept_check(kind: type[Any]) -> schema.Check:
    """What kept settings of `kind` must be, as `config_values` writes them; unknown names are passed over."""

    def check_of(field: Field) -> schema.Check:
        low, high = field.option.low, field.option.high
        bounds = (-math.inf if low is None else low, math.inf if high is None else high)
        checks = {
            bool: schema.flag,
            int: schema.number(*bounds, whole=True),
            # JSON has no infinity, and null in its place.
            float: schema.maybe(schema.number(*bounds)),
            str: schema.path_text,
            Path: schema.path_text,
        }
        one = kept_check(field.kind) if dataclasses.is_dataclass(field.kind) else checks[field.kind]
        if field.option.choices and not field.option.others:
            one = schema.one_of(*field.option.choices)
        one = schema.list_of(one) if field.is_list else one
        return schema.maybe(one) if field.optional else one

    return schema.record({}, {name: check_of(field) for name, field in fields_of(kind).items()})


def unknown_names(kind: type[Any], names: Iterable[Any]) -> list[str]:
    """A line for each name that is no setting of `kind`."""
    known = fields_of(kind)
    unknown = [str(name) for name in names if str(name) not in known]
    return [f"{name}: unknown setting{nearest(name, known)}" for name in unknown[: _MOST_FAULTS + 1]]


def read_values(kind: type[Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values as the fields of `kind` have them, and what is wrong with them, one line each.

    What cannot be read is left out; names that `kind` does not know are passed over.
    """
    read: dict[str, Any] = {}
    faults: list[str] = []
    for name, field in fields_of(kind).items():
        if name not in values:
            continue
        value = values[name]
        try:
            if dataclasses.is_dataclass(field.kind):
                read[name], inner = _read_nested(field.kind, value)
                faults += [f"{name}.{fault}" for fault in inner]
            else:
                read[name] = field.read(value)
                faults += field.faults(read[name])
        except (TypeError, ValueError, OverflowError):
            faults.append(f"{name}: expected {field.expected()}, got {shown(value)}")
    return read, faults


def _read_nested(kind: type[Any], value: Any) -> tuple[Any, list[str]]:
    values = dataclasses.asdict(value) if isinstance(value, kind) else value
    if not isinstance(values, Mapping):
        raise TypeError
    read, faults = read_values(kind, values)
    return kind(**read), unknown_names(kind, values) + faults


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Settings that every subcommand has.

    Raises:
        ConfigError: With everything that is wrong with the settings, in one message.
    """

    out: Path | None = option(None, "Where results go.", Group.OUTPUT)  # noqa: RUF009 (makes a field)
    seed: int = option(0, "All randomness follows from this number.", Group.RUN, low=0, high=2**63 - 1)
    devices: str = option(
        "auto",
        "Where to compute: cpu:N is N processes, cuda:0,1 two GPUs.",
        Group.RUN,
        metavar="[auto|cpu|cpu:N|cuda|cuda:0,1]",
    )
    overwrite: bool = option(
        False, "Replace the result at --out; it stays until the new one is whole.", Group.OUTPUT
    )

    def __post_init__(self) -> None:
        fields = fields_of(type(self))
        read, faults = read_values(type(self), vars(self))
        # What cannot be read has its default instead, for the checks of several settings.
        vars(self).update({name: read.get(name, field.default) for name, field in fields.items()})
        reported = {fault.partition(":")[0] for fault in faults}
        faults += [fault for fault in self.conflicts() if fault.partition(":")[0] not in reported]
        if faults:
            raise ConfigError(_PREFIX + _together(faults), hint=_HINT)

    def conflicts(self) -> Iterator[str]:
        """What is wrong beyond the type, bounds and choices of single fields, one line each."""
        if not _DEVICES.fullmatch(self.devices.strip().lower()):
            yield f"devices: expected auto, cpu, cpu:N, cuda or cuda:0,1, got {self.devices!r}"
        if getattr(self, "format", None) == []:
            yield "format: is empty; give png, svg or pdf"
        fields = fields_of(type(self))
        task = getattr(self, "task", None)
        for name, entry in fields.items():
            tasks, other = entry.option.only_for, entry.option.only_with
            if getattr(self, name) == entry.default:
                continue
            if tasks and task in FINETUNE_TASKS and task not in tasks:
                yield f"{name}: only for --task {' or '.join(tasks)}"
            if other and not getattr(self, other):
                yield f"{name}: only with {fields[other].flag}"


# ---- reading and writing ------------------------------------------------------------------------


def load_config(kind: type[Config], file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Settings of a stage: defaults, overridden by a YAML file, overridden by flags.

    Args:
        kind: Dataclass of the stage.
        file: YAML mapping of settings, or None.
        flags: Settings by name; those that are None were not given.

    Raises:
        ConfigError: All faults in one message: unknown keys (with the nearest name), wrong types,
            values out of range.
    """
    values = _read_yaml(file) if file is not None else {}
    values.update({name: value for name, value in flags.items() if value is not None})
    unknown = unknown_names(kind, values)
    faults = [_together(unknown)] if unknown else []
    known = fields_of(kind)
    try:
        config = kind(**{name: value for name, value in values.items() if name in known})
        if not faults:
            return config
    except ConfigError as error:
        faults.append(error.message.removeprefix(_PREFIX))
    source = f" ({file})" if file is not None else ""
    raise ConfigError(f"settings{source}: {'; '.join(faults)}", hint=_HINT)


def _together(faults: Sequence[str]) -> str:
    some = [shortened(fault, _LONGEST_FAULT) for fault in faults[:_MOST_FAULTS]]
    return "; ".join(some + ["and more"] * (len(faults) > _MOST_FAULTS))


def dump_config(config: StageConfig) -> str:
    """The resolved settings as YAML, readable by `load_config`."""
    import yaml

    # ASCII alone: with allow_unicode, PyYAML writes U+0085 so that it reads back as a space.
    return yaml.safe_dump(config_values(config), sort_keys=False)


def commented(kind: type[StageConfig], file: Path | None, flags: Mapping[str, Any]) -> str:
    """All settings of a stage as YAML, each below what `--help` says of it; `load_config` reads it.

    Arguments as of `load_config`, but what a command needs may be missing.

    Raises:
        ConfigError: A setting that is given is none, or takes no such value.
    """
    given = {**(_read_yaml(file) if file is not None else {}), **flags}
    read, faults = read_values(kind, given)
    if faults := [*unknown_names(kind, given), *faults]:
        raise ConfigError(_PREFIX + _together(faults), hint=_HINT)
    fields = fields_of(kind)
    parts = []
    for heading in (*Group, None):
        own = [entry for entry in fields.values() if entry.option.group == heading]
        if own:
            parts.append(f"# ---- {heading or 'In such files and in Python alone'}\n")
            parts += [_commented(entry, read.get(entry.name, entry.default)) for entry in own]
    return "\n".join(parts)


def _commented(entry: Field, value: Any, indent: str = "") -> str:
    """A setting with its value in YAML, below comments."""
    import yaml

    meta = entry.option
    text = meta.help
    if meta.choices:
        text += f" One of: {', '.join(filter(None, [*meta.choices, meta.others]))}."
    if value in (None, []) and meta.unset:
        text += f" Unset: {meta.unset}."
    width = 100 - len(indent)
    lines = [f"{indent}# {line}" for line in textwrap.wrap(text, width, break_on_hyphens=False)]
    if dataclasses.is_dataclass(entry.kind):
        inner = [_commented(each, getattr(value, each.name), "  ") for each in fields_of(entry.kind).values()]
        return "\n".join([*lines, f"{entry.name}:", *inner])
    written = yaml.safe_dump({entry.name: _plain(value)}, default_flow_style=False)
    # What has no value yet is a comment.
    missing = "# " if meta.required and not value else ""
    return "\n".join([*lines, textwrap.indent(f"{missing}{written}", indent)])


def config_values(config: StageConfig) -> dict[str, Any]:
    """The settings as plain values."""
    values: dict[str, Any] = _plain(dataclasses.asdict(config))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses what `safe_load` passes over: a name that is given twice, of which the last one counts, and
        what may stand for gigabytes: a reference to what stands above.
        """

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.check_event(yaml.AliasEvent) or self.depth > _MOST_DEEP:
                fault = "settings take no references (*name)" if self.depth <= _MOST_DEEP else "too deep"
                raise yaml.MarkedYAMLError(problem=fault, problem_mark=self.peek_event().start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            lines: dict[str, int] = {}
            for key, _ in node.value:
                name, line = str(key.value).replace("-", "_"), key.start_mark.line + 1
                if name in lines:
                    raise ConfigError(
                        f"{file}: {name} is given twice, in line {lines[name]} and in line {line}",
                        hint="leave one of them",
                    )
                lines[name] = line
            return super().construct_mapping(node, deep)

    if file.exists() and not file.is_file():
        raise ConfigError(f"{file}: is no file", hint=_EXAMPLE)
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{file}: is longer than {_MOST_BYTES} bytes", hint=_EXAMPLE)
        content = yaml.load(data.decode(), Loader)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error})", hint=_EXAMPLE) from error
    except (yaml.YAMLError, ValueError) as error:  # so do impossible dates, and numbers of other forms
        reason = shortened(" ".join(str(error).split()), _LONGEST_FAULT)
        raise ConfigError(f"{file}: is not valid YAML ({reason})", hint=_EXAMPLE) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ConfigError(f"{file}: expected a mapping of settings, got {found}", hint=_EXAMPLE)
    return {str(key).replace("-", "_"): value for key, value in content.items()}
