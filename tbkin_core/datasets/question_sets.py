"""Sets of questions in a dataset directory: which files belong together, and their questions with answers.

VQA v1, VQA v2, OK-VQA and A-OKVQA share COCO's pictures, and often a directory; each is a benchmark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePosixPath

from tbkin_core.datasets.annotation_files import AnnotationFiles, format_of
from tbkin_core.datasets.formats import made
from tbkin_core.datasets.formats.base import Holds
from tbkin_core.datasets.reading import AnnotationFile
from tbkin_core.datasets.records import AnswerRow, ImageId, Question, QuestionRow
from tbkin_core.datasets.splits import split_in

# What the names of question and annotation files say beside their set and split.
_FILLERS = frozenset({"question", "questions", "annotation", "annotations", "openended", "multiplechoice"})
_MADE = "made of captions"  # by build-graphs
_Keyed = list[tuple[ImageId, QuestionRow]]
_Family = tuple[str, str]  # directory and what is left of a file's name, see `_family`


class QuestionSets:
    """The questions of a directory, by set and split; files are read when first needed.

    Files of one directory whose names differ by split, number and VQA's usual words alone are a set; so are
    all files with lines of one's own. Where no two files have questions of one split, all are one set, but
    for questions that build-graphs made of captions: these are the set "captions", the last.
    """

    def __init__(self, files: AnnotationFiles) -> None:
        self._all = files
        self._sets: dict[str, list[AnnotationFile]] = {}
        self.is_mixed = False  # whether the one set has files that are named like several
        self._keyed: dict[tuple[str, str], _Keyed] = {}
        self._questions: dict[tuple[str, str], list[Question]] = {}
        asked = {file.split for file in files.holding(Holds.QUESTIONS)}
        for file in files.holding(Holds.ANSWERS):
            if None not in asked and file.split not in asked:
                files.problems.add(file.name, "", "answers questions that no file here asks (not used)")

    def names(self) -> tuple[str, ...]:
        """Names of the sets: VQA v2 first, then those with the most splits."""
        if not self._sets:
            self._sets = self._found()
        return tuple(self._sets)

    def _found(self) -> dict[str, list[AnnotationFile]]:
        files: list[AnnotationFile] = []
        families: dict[_Family, list[AnnotationFile]] = {}
        splits: dict[_Family, set[str]] = {}
        for file in self._all.holding(Holds.QUESTIONS):
            if split := self._main_split(file):
                files.append(file)
                families.setdefault(family := _family(file), []).append(file)
                splits.setdefault(family, set()).add(split)
        asked = {family: splits[family] for family in families if family[1] != _MADE}
        if sum(map(len, asked.values())) == len(set[str]().union(*asked.values())):
            self.is_mixed = len(asked) > 1
            others = {family: families[family] for family in families if family[1] == _MADE}
            rest = [file for file in files if _family(file) in asked]
            families = ({next(iter(asked)): rest} if rest else {}) | others
        sets: dict[str, list[AnnotationFile]] = {}
        for family in sorted(families, key=lambda it: (_rank(it[1]), -len(splits[it]), it)):
            name = _set_name(*family)
            if name in sets:
                name = f"{family[0].lower()}/{name}" if family[0] else families[family][0].name.lower()
            sets[name] = families[family]
        return sets

    def _main_split(self, file: AnnotationFile) -> str:
        """Split that a file is of, without reading it where its name says so; "" of one without questions."""
        return file.split or ",".join(sorted(self._splits_of(file)))

    def splits(self, name: str | None = None) -> tuple[str, ...]:
        """Splits that have questions, of a set or of all."""
        return tuple(dict.fromkeys(split for file in self._files(name) for split in self._splits_of(file)))

    def files(self, split: str, name: str | None = None) -> dict[str, int]:
        """Files that the questions of a split come from, each with how many it has."""
        counts = {file.name: len(self._rows(file, split)) for file in self._files(name)}
        return {file: count for file, count in counts.items() if count}

    def keyed(self, split: str, name: str | None = None) -> _Keyed:
        """Image key and row of each question of a split, each question_id once."""
        if name is None and len(self.names()) == 1:
            (name,) = self.names()
        if name is None:
            return _with_own_ids({each: self.keyed(split, each) for each in self.names()})
        if (name, split) not in self._keyed:  # what is wrong with a row counts once
            self._keyed[name, split] = self._keyed_of(name, split)
        return self._keyed[name, split]

    def questions(self, split: str, name: str | None = None) -> list[Question]:
        """Questions of a split, with their answers where a file has them; their ids are those of `keyed`."""
        if name is None and len(self.names()) == 1:
            (name,) = self.names()
        if name is None:
            found = [item for each in self.names() for item in self.questions(split, each)]
            ids = (row.question_id for _, row in self.keyed(split))
            return [replace(item, question_id=own) for item, own in zip(found, ids, strict=True)]
        if (name, split) not in self._questions:
            self._questions[name, split] = self._answered(name, split)
        return self._questions[name, split]

    def _files(self, name: str | None) -> list[AnnotationFile]:
        names = self.names() if name is None else (name,) if name in self.names() else ()
        return [file for each in names for file in self._sets[each]]

    def _rows(self, file: AnnotationFile, split: str) -> list[QuestionRow]:
        """Questions of a file that are of a split; a file of another split is not read for it."""
        own = self._all.split_of(file)
        if not format_of(file).split_by_row:
            return self._all.read(file).questions if own == split else []
        return [row for row in self._all.read(file).questions if (row.split or own) == split]

    def _splits_of(self, file: AnnotationFile) -> list[str]:
        own = self._all.split_of(file)
        if not format_of(file).split_by_row:
            return [own]
        return list(dict.fromkeys(row.split or own for row in self._all.read(file).questions))

    def _keyed_of(self, name: str, split: str) -> _Keyed:
        rows: _Keyed = []
        seen: dict[int | str, QuestionRow] = {}
        for file in self._files(name):
            of_split = replace(file, split=split)
            for row in self._rows(file, split):
                known = seen.get(row.question_id)
                if known and (known.question, known.image_id) != (row.question, row.image_id):
                    # People number each of their files from 1.
                    row = replace(row, question_id=f"{file.name}:{row.question_id}")
                if row.question_id in seen:
                    subject = f"question {row.question_id}"
                    self._all.problems.add(file.name, subject, "is in another file too (skipped)")
                    continue
                seen[row.question_id] = row
                if (key := self._all.resolve(of_split, row.image_id, row.question_id)) is not None:
                    rows.append((key, row))
        return rows

    def _answered(self, name: str, split: str) -> list[Question]:
        keyed = self.keyed(split, name)
        files = self._answer_files(name, split)
        answers = self._answers_in(files, {row.question_id for _, row in keyed})
        questions: list[Question] = []
        for key, row in keyed:
            question_id, what = row.question_id, ""
            answer = answers.get(question_id) or row.answers
            if answer is None:
                what = "has no annotation (kept without answers)" if files else ""
                answer = AnswerRow(())
            elif _other_image(answer.image_id, row.image_id):
                what = "is annotated for another image than it asks about (answers kept)"
            if what:
                file = files[0].name if files else "questions"
                self._all.problems.add(file, f"question {question_id}", what)
            answered = (answer.answers, answer.question_type, answer.answer_type)
            questions.append(Question(question_id, key, row.question, split, *answered))
        return questions

    def _answer_files(self, name: str, split: str) -> list[AnnotationFile]:
        """Files with answers to a set's questions of a split; where none is named so, those of no other set.

        The ids of VQA v1 and OK-VQA overlap, so that another set's answers would fit some questions.
        """
        files = [file for file in self._all.holding(Holds.ANSWERS) if self._all.split_of(file) == split]
        families = set(map(_family, self._files(name)))
        others = {_family(file) for each in self.names() if each != name for file in self._files(each)}
        for parts in (2, 1):  # by directory and name, else by name alone
            wanted = {family[-parts:] for family in families}
            if own := [file for file in files if _family(file)[-parts:] in wanted]:
                return own
            files = [file for file in files if _family(file) not in others]
        return files

    def _answers_in(
        self, files: Iterable[AnnotationFile], known: set[int | str]
    ) -> dict[int | str, AnswerRow]:
        """Answers of the known questions; the first file that answers one counts."""
        answers: dict[int | str, AnswerRow] = {}
        written = {str(question_id): question_id for question_id in known}
        for file in files:
            for annotated_id, row in self._all.read(file).answers.items():
                # A number in one file may be a text in the other.
                question_id = annotated_id if annotated_id in known else written.get(str(annotated_id))
                if question_id is None:
                    subject = f"question {annotated_id}"
                    self._all.problems.add(file.name, subject, "is in no questions file (skipped)")
                else:
                    answers.setdefault(question_id, row)
        return answers


@lru_cache(1 << 12)
def _family(file: AnnotationFile) -> _Family:
    """What files of one set have in common: directory and name, without splits, numbers and fillers."""
    directory = "/".join(part for part in PurePosixPath(file.directory).parts if not split_in(part))
    if not format_of(file).family_by_name:
        return directory, ""
    if file.format in (made.QUESTIONS.name, made.ANNOTATIONS.name):
        return directory, _MADE
    stem = re.sub(r"(?<=[a-z])(?:19|20)\d\d", "", file.path.stem.lower())
    words = (word for word in re.split(r"[^a-z0-9]+", stem) if word and not word.isdigit())
    return directory, "-".join(word for word in words if not split_in(word) and word not in _FILLERS)


def _set_name(directory: str, rest: str) -> str:
    """ "vqa-v2" of v2_OpenEnded_mscoco_train2014_questions.json; else the rest, or the directory's name."""
    if rest == _MADE:
        return made.QUESTION_SET
    words = "-".join(word for word in rest.split("-") if word != "mscoco")
    if words != rest:
        return f"vqa-{words}" if words else PurePosixPath(directory).name.lower() or "vqa"
    return rest or PurePosixPath(directory).name.lower() or "questions"


def _rank(rest: str) -> int:
    """VQA v2 is what most mean; GQA's "all" holds what "balanced" was drawn from; people's come first."""
    words = rest.split("-")
    if rest == _MADE:
        return 3
    return 0 if words[:2] == ["v2", "mscoco"] else 2 if "all" in words else 1


def _with_own_ids(sets: dict[str, _Keyed]) -> _Keyed:
    """The rows of several sets in order; an id that an earlier set has gets the set's name before it."""
    seen: set[int | str] = set()
    rows: _Keyed = []
    for name, keyed in sets.items():
        for key, row in keyed:
            if row.question_id in seen:
                row = replace(row, question_id=f"{name}:{row.question_id}")
            rows.append((key, row))
        seen.update(row.question_id for _, row in keyed)
    return rows


def _other_image(first: ImageId | None, second: ImageId | None) -> bool:
    """Whether two ids of one question's image differ; names, which can be written in many ways, aside."""
    return isinstance(first, int) and isinstance(second, int) and first != second
