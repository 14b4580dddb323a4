"""From the graphs of a corpus to questions about its images, as files of VQA v2.

The captions of an image answer questions about it (`asking`); what they agree on is kept (`answers`), yes-no
questions are added (`yes_no`), what reads badly goes (`english.is_grammatical`), and of the rest so many are
taken that a question does not tell its answer (`balance`). COCO-QA (Ren, Kiros and Zemel 2015) and VQ2A
(Changpinyo et al. 2022) make questions of single captions; here all captions of an image have their say.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tbkin_core.datasets.formats.made import QUESTIONS_MADE_BY
from tbkin_core.features.regions import ImageId
from tbkin_core.graphs.arrays import ShardArrays
from tbkin_core.graphs.store import GraphStore
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.parsing.text_graph import TextGraph
from tbkin_core.questions.answers import Asked, gathered
from tbkin_core.questions.asking import facts_of
from tbkin_core.questions.balance import Question, selected, worth_a_look
from tbkin_core.questions.english import Nouns, is_grammatical
from tbkin_core.questions.kinds import KINDS, YES_NO
from tbkin_core.questions.things import Things
from tbkin_core.questions.yes_no import Described, YesNo
from tbkin_core.support.console import progress
from tbkin_core.support.files import check_file_place, write_text
from tbkin_core.support.randomness import generator

_ANSWER_TYPES = {YES_NO: "yes/no", "count": "number"}


@dataclass(frozen=True)
class QuestionRecipe:
    """How questions are made.

    Attributes:
        per_image: At most so many about an image.
        kinds: Those of `KINDS` that are asked.
        balanced: Whether a question must not tell its answer, see `balance`.
        seed: Of the choice among them.
    """

    per_image: int = 10
    kinds: Sequence[str] = KINDS
    balanced: bool = True
    seed: int = 0


@dataclass(frozen=True)
class CaptionedImage:
    """An image, its split and the graphs of its captions; a store's are read when they are asked for."""

    image_id: ImageId
    split: str
    graphs: Sequence[TextGraph]


class _StoredGraphs(Sequence[TextGraph]):
    """Graphs of a store's shards, (shard, row) each: a million of them need not be in memory together."""

    def __init__(self) -> None:
        self.places: list[tuple[ShardArrays, int]] = []

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        shard, row = self.places[place]
        return shard.text_graph(row)


def captioned_images(store: GraphStore, captions: int, splits: Mapping[ImageId, str]) -> list[CaptionedImage]:
    """The images of the first captions of a store, in their order; captions without an image are left out.

    Args:
        store: Where the graphs lie.
        captions: How many of them count; phrases of parts of images follow.
        splits: Of the images, by id.
    """
    found: dict[ImageId, _StoredGraphs] = {}
    for shard in store.shards:
        for row, image in enumerate(shard.image[: max(captions, 0)].tolist()):
            if image >= 0:
                found.setdefault(shard.image_ids[image], _StoredGraphs()).places.append((shard, row))
        captions -= len(shard)
    return [CaptionedImage(image_id, splits[image_id], graphs) for image_id, graphs in found.items()]


def make_questions(images: Sequence[CaptionedImage], recipe: QuestionRecipe) -> list[Question]:
    """Questions about images, split by split; all chance follows from the recipe's seed.

    What is usual, and how nouns are used, the captions of the train split tell where there is one: no other
    split has a say in what is asked there.
    """
    train = [image for image in images if image.split == "train"] or images
    nouns = Nouns(graph for image in train for graph in _distinct(image))
    yes_no = YesNo((_described(image, nouns) for image in train), nouns) if YES_NO in recipe.kinds else None
    questions: list[Question] = []
    for image in progress(images, "questions", unit="image"):
        one = _described(image, nouns)
        asked = [it for it in gathered(one.facts, one.captions) if it.kind in recipe.kinds]
        if yes_no is not None:
            asked += yes_no.asked(one, generator(recipe.seed, image.image_id))
        questions += [Question(image.image_id, image.split, it) for it in _without_contradiction(asked)]
    if recipe.balanced:
        questions = worth_a_look(questions)
    kept: list[Question] = []
    of_split: dict[str, list[Question]] = {}
    for item in _grammatical(questions):
        of_split.setdefault(item.split, []).append(item)
    for split, those in of_split.items():
        kept += selected(those, recipe.per_image, generator(recipe.seed, split), recipe.balanced)
    return kept


def _distinct(image: CaptionedImage) -> list[TextGraph]:
    """The graphs of an image's captions; one that is there twice is no second witness."""
    return list({graph.tokens: graph for graph in image.graphs}.values())


def _described(image: CaptionedImage, nouns: Nouns) -> Described:
    graphs = _distinct(image)
    things = Things(graphs)
    return Described(things, facts_of(graphs, things, nouns), len(graphs))


def _without_contradiction(asked: Iterable[Asked]) -> list[Asked]:
    """Each text once; none that is answered in two ways."""
    by_text: dict[str, list[Asked]] = {}
    for item in asked:
        by_text.setdefault(item.text, []).append(item)
    return [
        max(items, key=lambda item: item.support)
        for items in by_text.values()
        if len({item.answer for item in items}) == 1
    ]


def _grammatical(questions: Sequence[Question]) -> list[Question]:
    """Those that the parser reads as they are meant."""
    texts = list(dict.fromkeys(item.asked.text for item in questions))
    docs = progress(CaptionParser.pipeline().pipe(texts, batch_size=256), "grammar", total=len(texts))
    good = {
        text for text, doc in zip(texts, docs, strict=True) if is_grammatical(word.tag_ for word in doc[:-1])
    }
    return [item for item in questions if item.asked.text in good]


# ---- files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuestionFiles:
    """The files of a corpus' questions.

    Attributes:
        paths: Two a split: questions, annotations.
        counts: Questions of each split and kind.
        images: Images of each split that are asked about.
    """

    paths: list[Path]
    counts: dict[str, dict[str, int]]
    images: dict[str, int]


def question_paths(directory: Path, split: str) -> tuple[Path, Path]:
    """Where a split's questions and annotations go."""
    return (
        directory / f"v2_OpenEnded_captions_{split}_questions.json",
        directory / f"v2_captions_{split}_annotations.json",
    )


def check_question_places(directory: Path, splits: Iterable[str]) -> None:
    """Refuse to write where something else would be lost.

    Raises:
        ConfigError: A file there that this did not write.
        DataError: The directory cannot be made or written to.
    """
    for split in splits:
        for path in question_paths(directory, split):
            check_file_place(path, "questions", _is_own)


def write_questions(directory: Path, questions: Sequence[Question], recipe: QuestionRecipe) -> QuestionFiles:
    """Write the questions of each split as VQA v2's two files, whole files at a time.

    Ten answers each: as many of ten people give an answer as captions in proportion.
    """
    paths: list[Path] = []
    counts: dict[str, dict[str, int]] = {}
    images: dict[str, int] = {}
    info = {
        "made_by": QUESTIONS_MADE_BY,
        "description": "made from captions by the rules of tbkin; nobody has checked them",
        "questions_per_image": recipe.per_image,
        "kinds": list(recipe.kinds),
        "balanced": recipe.balanced,
        "seed": recipe.seed,
    }
    numbers = dict.fromkeys(item.split for item in questions)
    first = 1
    for split in numbers:
        of_split = [item for item in questions if item.split == split]
        asked, answered = question_paths(directory, split)
        answered.unlink(missing_ok=True)  # old answers would not fit new questions
        head = {"info": info, "data_type": "captions", "data_subtype": split}
        rows = list(enumerate(of_split, first))
        entries = [
            {"image_id": item.image_id, "question": item.asked.text, "question_id": number}
            for number, item in rows
        ]
        write_text(asked, json.dumps({**head, "task_type": "Open-Ended", "questions": entries}))
        annotations = [_annotation(number, item) for number, item in rows]
        write_text(answered, json.dumps({**head, "annotations": annotations}))
        first += len(of_split)
        paths += [asked, answered]
        counts[split] = dict(Counter(item.asked.kind for item in of_split))
        images[split] = len({item.image_id for item in of_split})
    for path in directory.glob("v2_*captions_*.json"):
        if path not in paths and path.is_file() and _is_own(path.read_bytes()[:4096]):
            path.unlink()  # of a split that has no questions any more
    return QuestionFiles(paths, counts, images)


def _is_own(start: bytes) -> bool:
    return QUESTIONS_MADE_BY.encode() in start


def _annotation(number: int, item: Question) -> dict[str, Any]:
    given = item.asked.given()
    return {
        "question_id": number,
        "image_id": item.image_id,
        "question_type": item.asked.kind,
        "answer_type": _ANSWER_TYPES.get(item.asked.kind, "other"),
        "multiple_choice_answer": item.asked.answer,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place}
            for place, answer in enumerate(given, 1)
        ],
    }
