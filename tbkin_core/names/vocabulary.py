"""The object and attribute names of Visual Genome that bottom-up attention made the usual ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from tbkin_core.names.similarity import shipped_synonyms


def tidy(name: str) -> str:
    """Lower case, single blanks, none for underscores: "Traffic_Light" is "traffic light"."""
    return " ".join(name.casefold().replace("_", " ").split())


@dataclass(frozen=True)
class Vocabulary:
    """Names in their order, and what else they are called."""

    names: tuple[str, ...]
    spellings: dict[str, str]  # each spelling of a name to that name

    def number(self, name: str) -> int:
        """Place of a name as `match` finds it; -1 where this vocabulary does not have it."""
        return self._numbers.get(self._matched(tidy(name)), -1)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def match(self, names: Iterable[str]) -> tuple[str, ...]:
        """Each name as this vocabulary has it; one that it does not have stays as it is, tidied.

        A name matches by its spelling, else by its singular without blanks, else by the one synonym that the
        lexical similarity and this vocabulary share.
        """
        return tuple(self._matched(tidy(name)) for name in names)

    def _matched(self, name: str) -> str:
        if name in self.spellings or not name:
            return self.spellings.get(name, name)
        table, _ = shipped_synonyms()
        key = table.key(name)
        if key in self._keys:
            return self._keys[key]
        found = {self._keys[sense] for sense in table.profile(name).whole.senses if sense in self._keys}
        return found.pop() if len(found) == 1 else name

    @functools.cached_property
    def _keys(self) -> dict[str, str]:
        table, _ = shipped_synonyms()
        keys: dict[str, str] = {}
        for spelling, name in self.spellings.items():
            keys.setdefault(table.key(spelling), name)
        return keys


@functools.cache
def visual_genome_names(kind: str) -> Vocabulary:
    """The 1,600 "objects" or the 400 "attributes"."""
    data = resources.files("tbkin_core.resources").joinpath("visual_genome_names.json").read_text("utf-8")
    rows = [[row] if isinstance(row, str) else row for row in json.loads(data)[kind]]
    spellings: dict[str, str] = {row[0]: row[0] for row in rows}
    for row in rows:
        for spelling in row:
            spellings.setdefault(spelling, row[0])
    return Vocabulary(tuple(row[0] for row in rows), spellings)
