"""Co-occurrence priors of a corpus: P(attribute | object) and P(relation, object | subject)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tbkin_core.errors import DataError
from tbkin_core.support.files import read_json, write_json


class Priors:
    """Counts of objects, their attributes and their relations; adding two corpora adds counts."""

    def __init__(self) -> None:
        self.objects: Counter[str] = Counter()
        self.attributes: Counter[tuple[str, str]] = Counter()
        self.relations: Counter[tuple[str, str, str]] = Counter()

    def merge(self, other: Priors) -> None:
        """Add the counts of another corpus."""
        self.objects.update(other.objects)
        self.attributes.update(other.attributes)
        self.relations.update(other.relations)

    def attribute(self, name: str, attribute: str) -> float:
        """P(attribute | object): the share of an object's mentions that carry the attribute, at most 1."""
        return min(self.attributes[name, attribute] / max(self.objects[name], 1), 1.0)

    def relation(self, subject: str, predicate: str, name: str) -> float:
        """P(relation, object | subject): the share of a subject's mentions in this relation, at most 1."""
        return min(self.relations[subject, predicate, name] / max(self.objects[subject], 1), 1.0)

    def save(self, path: Path) -> None:
        """Write as JSON, sorted, so that equal counts give equal files."""
        content = {
            "objects": dict(sorted(self.objects.items())),
            "attributes": [[*key, count] for key, count in sorted(self.attributes.items())],
            "relations": [[*key, count] for key, count in sorted(self.relations.items())],
        }
        write_json(path, content, indent=None)

    @classmethod
    def load(cls, path: Path) -> Priors:
        """Read what `save` wrote.

        Raises:
            DataError: Missing or broken.
        """
        content: Any = read_json(path)
        priors = cls()
        try:
            priors.objects.update(content["objects"])
            priors.attributes.update({(name, own): count for name, own, count in content["attributes"]})
            priors.relations.update({(one, how, other): n for one, how, other, n in content["relations"]})
            counters = (priors.objects, priors.attributes, priors.relations)
            if not all(type(count) is int for counter in counters for count in counter.values()):
                raise ValueError("counts must be whole numbers")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: is not a file of priors ({error!r})", hint="run `tbkin build-graphs DATA` again"
            ) from error
        return priors
