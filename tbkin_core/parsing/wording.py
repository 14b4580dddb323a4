"""How predicates are worded: as the caption has them, or as FACTUAL's annotators write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tbkin_core.names.lexicon import parser_file, plain_sides

WORDINGS = ("caption", "factual")


@dataclass(frozen=True)
class FactualWording:
    """The wording of FACTUAL's annotators."""

    replaced: Mapping[str, str]  # predicates and prepositions that they replace -> what they write instead

    def predicate(self, words: str) -> str:
        """A predicate as they word it, sides plain: "sit below" is "sit under"."""
        words = plain_sides(words)
        if words in self.replaced:
            return self.replaced[words]
        verb, _, rest = words.partition(" ")
        return f"{verb} {self.replaced[rest]}" if rest in self.replaced else words

    @staticmethod
    def sides(predicate: str) -> str:
        """Plain sides as they spell them."""
        if predicate.endswith("left of"):
            return predicate.removesuffix("left of") + "at the left of"
        if predicate.endswith("right of"):
            return predicate.removesuffix("right of") + "on the right side of"
        return predicate


@cache
def shipped_factual_wording() -> FactualWording:
    """The wording that ships with tbkin."""
    return FactualWording(json.loads(parser_file("wording.json").read_text(encoding="utf-8")))
