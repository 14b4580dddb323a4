"""Questions about photos, made from their captions, as VQA v2 files: plain ones, to measure models with.

    python tests/benchmarks/caption_questions.py DATA OUT [--train-images 2000] [--val-images 400] [--seed 0]

DATA is a dataset of photos with captions in its publisher's layout (Flickr8k, say). A sample of its train
photos is asked about in OUT's train split, one of its val photos (Flickr8k's dev) in val; test photos are
left alone. From the scene graphs of the captions come questions about colours ("what color is the dog?"),
numbers ("how many dogs are there?"), and either end of what happens ("what is the man riding?", "who is
riding the horse?"). A question is asked once of a photo, and only where all of its captions that could answer
it give the same single word; that is its answer, ten times over.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from tbkin_core.datasets import Dataset, open_dataset
from tbkin_core.datasets.records import ImageRecord
from tbkin_core.errors import DataError
from tbkin_core.names.lexicon import lemmatize_noun, lemmatize_verb
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.parsing.sentences import COLLECTIVES, PLACES
from tbkin_core.parsing.text_graph import TextGraph, TextObject


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


COLORS = words("""
    beige black blue brown gold golden gray green maroon orange pink purple red silver tan teal
    turquoise white yellow
""")
SAME_COLOR = {"grey": "gray", "golden": "gold"}
PEOPLE = words("""
    adult artist athlete baby batter bicyclist biker boarder boy bride catcher cheerleader child climber
    cowboy cyclist dancer driver fan father female fisherman friend gentleman girl goalie guy hiker
    individual infant jogger kid lady male man mother motorcyclist musician officer pedestrian people
    performer person pitcher player quarterback rider runner skateboarder skater skier snowboarder
    soldier student surfer swimmer teenager toddler tourist wakeboarder woman worker youth
""")
# These have no singular in use.
PLURALS = words("""
    clothes glasses goggles headphones jeans overalls pajamas pants people police scissors shorts stairs
    sunglasses tights trousers trunks
""")
# Words that name nothing to be seen, and parts whose whole is meant.
EMPTY = (
    PLACES
    | COLLECTIVES
    | words("""
    air another area background camera cream distance each foreground it kind one other photo picture piece
    place someone something that them they thing time two type way which who
""")
)
NO_ACTIONS = frozenset({"be", "do", "have", "include", "contain", "involve", "seem", "use"})
# What is so for longer than it is done.
STATES = NO_ACTIONS | {"carry", "cover", "face", "hold", "surround", "take", "try", "wear"}
WHEREABOUTS = words("above behind beside in inside near on under") | {"in front of", "next to", "on top of"}
MOST_COUNTED = 10
LEAST_COUNTED = 3  # captions that count a thing, for it to be one that can be counted
LEAST_ALONE = 3  # captions that must speak of one thing alone: one or two may leave others out
Key = tuple[str, ...]  # a kind and lemmas: what makes a question the same one in two captions of an image


class Question(NamedTuple):
    """A question and its answer."""

    image_id: Any
    text: str
    answer: str
    kind: str  # "color", "count", "action", "object" or "subject"


class Forms:
    """Forms of words as the captions have them: nothing is inflected by rules.

    Attributes:
        participles: Verb to its form in -ing.
        plurals: Noun to its plural, where captions count the noun.
    """

    def __init__(self, graphs: Iterable[TextGraph]) -> None:
        participles = defaultdict[str, Counter[str]](Counter)
        plurals = defaultdict[str, Counter[str]](Counter)
        counted = Counter[str]()
        for graph in graphs:
            for token in map(str.lower, graph.tokens):
                if token.endswith("ing") and (verb := lemmatize_verb(token)) != token:
                    participles[verb][token] += 1
            for thing in graph.objects:
                word, noun = noun_of(graph, thing)
                plurals[noun][word] += bool(noun) and noun != word
            numbered = {it.object for it in graph.attributes if number(it.name)}
            counted.update({noun_of(graph, graph.objects[place])[1] for place in numbered})
        self.participles = {verb: max(forms, key=forms.__getitem__) for verb, forms in participles.items()}
        several = [
            noun for noun, forms in plurals.items() if forms.total() and counted[noun] >= LEAST_COUNTED
        ]
        self.plurals = {noun: max(plurals[noun], key=plurals[noun].__getitem__) for noun in several}

    def happening(self, predicate: str) -> str:
        """ "sit on" as "sitting on", "" of what is no action."""
        verb, _, rest = predicate.partition(" ")
        form = "" if verb in NO_ACTIONS else self.participles.get(verb, "")
        return f"{form} {rest}".strip() if form and rest != "of" else ""


def number(name: str) -> int:
    """The number that an attribute says, 0 for none."""
    return int(name) if name.isascii() and name.isdecimal() and 1 < int(name) <= MOST_COUNTED else 0


def noun_of(graph: TextGraph, thing: TextObject) -> tuple[str, str]:
    """The word that names a thing, and its singular, "" where one word does not name it."""
    word = graph.tokens[thing.head].lower()
    noun = lemmatize_noun(word)
    fits = noun.isascii() and noun.isalpha() and len(noun) > 1 and noun not in EMPTY
    return word, noun if fits else ""


def found_in(graph: TextGraph, forms: Forms) -> Iterator[tuple[Key, str, str]]:
    """Of one caption: what can be asked, in words, and the answer; "" where it has one that is no word."""
    named = [noun_of(graph, thing) for thing in graph.objects]
    names, nouns = [name for name, _ in named], [noun for _, noun in named]
    plural = [name != noun or name in PLURALS for name, noun in zip(names, nouns, strict=True)]
    be = ["are" if several else "is" for several in plural]
    numbers = {it.object: number(it.name) for it in graph.attributes if number(it.name)}
    for attribute in graph.attributes:
        place, color = attribute.object, attribute.name.lower()
        if color in COLORS | SAME_COLOR.keys() and nouns[place] and nouns[place] not in PEOPLE:
            text = f"what color {be[place]} the {names[place]}?"
            yield ("color", nouns[place]), text, SAME_COLOR.get(color, color)
    totals = dict[str, list[int]]()
    for place, noun in enumerate(nouns):
        if noun in forms.plurals:
            totals.setdefault(noun, []).append(numbers.get(place, 0 if plural[place] else 1))
    for noun, counts in totals.items():
        answer = str(sum(counts)) if all(counts) else ""
        yield ("count", noun), f"how many {forms.plurals[noun]} are there?", answer
    for relation in graph.relations:
        first, second, predicate = relation.subject, relation.object, relation.predicate
        if not nouns[first] or not nouns[second] or nouns[first] == nouns[second]:
            continue
        action = forms.happening(predicate)
        if action and predicate.split()[0] not in STATES:
            text = f"what {be[first]} the {names[first]} doing?"
            yield ("action", nouns[first]), text, action.split()[0]
        if action:
            text = f"what {be[first]} the {names[first]} {action}?"
            yield ("object", nouns[first], action), text, names[second]
        if action or predicate in WHEREABOUTS:
            asking = "who" if nouns[first] in PEOPLE else "what"
            text = f"{asking} is {action or predicate} the {names[second]}?"
            yield ("subject", action or predicate, nouns[second]), text, names[first]


def questions_about(image_id: Any, graphs: Sequence[TextGraph], forms: Forms) -> list[Question]:
    """The questions that the captions of an image answer, each once and without contradiction."""
    answers, texts = defaultdict[Key, list[str]](list), dict[Key, str]()
    for graph in graphs:
        for key, text, answer in found_in(graph, forms):
            answers[key].append(answer)
            texts.setdefault(key, text)
    questions = []
    for key, given in answers.items():
        answer = Counter(given).most_common(1)[0][0]
        alone = answer != "1" or len(given) >= LEAST_ALONE
        if answer and alone and len({lemmatize_noun(each) for each in given}) == 1:
            questions.append(Question(image_id, texts[key], answer, key[0]))
    return questions


def sampled(data: Dataset, split: str, count: int, seed: int) -> list[tuple[ImageRecord, list[str]]]:
    """Photos of a split with their captions, as many as asked for or all that there are."""
    captions = defaultdict[Any, list[str]](list)
    for caption in data.captions(split):
        captions[caption.image_id].append(caption.text)
    images = [it for it in data.images(split) if it.path and it.split == split and it.image_id in captions]
    if not images:
        raise DataError(f"{data.path}: no photo of {split} has captions")
    images.sort(key=lambda it: str(it.image_id))
    drawn = np.random.default_rng((seed, len(split))).permutation(len(images))[:count]
    return [(images[place], captions[images[place].image_id]) for place in sorted(drawn)]


def write_split(out: Path, split: str, questions: Sequence[Question], first_id: int) -> None:
    """The two VQA v2 files of a split."""
    asked, answered = [], []
    for question_id, item in enumerate(questions, first_id):
        ids = {"question_id": question_id, "image_id": item.image_id}
        kind = {"question_type": item.kind, "answer_type": "number" if item.kind == "count" else "other"}
        answers = [{"answer": item.answer, "answer_id": place} for place in range(1, 11)]
        asked.append({**ids, "question": item.text})
        answered.append({**ids, **kind, "multiple_choice_answer": item.answer, "answers": answers})
    for name, content in (
        (f"v2_OpenEnded_captions_{split}_questions.json", {"questions": asked}),
        (f"v2_captions_{split}_annotations.json", {"annotations": answered}),
    ):
        (out / name).write_text(json.dumps(content), encoding="utf-8")


def make_questions(data: Path, out: Path, images: dict[str, int], seed: int = 0) -> dict[str, list[Question]]:
    """Write the questions about so many images of each split, and links to these; returns the questions."""
    dataset = open_dataset(data)
    chosen = {split: sampled(dataset, split, count, seed) for split, count in images.items()}
    texts = [text for photos in chosen.values() for _, captions in photos for text in captions]
    graphs = dict(zip(texts, CaptionParser().parse(texts), strict=True))
    forms = Forms(graphs.values())
    (out / "images").mkdir(parents=True, exist_ok=True)
    made = dict[str, list[Question]]()
    for split, photos in chosen.items():
        first_id = 1 + sum(map(len, made.values()))
        made[split] = []
        for record, captions in photos:
            made[split] += questions_about(record.image_id, [graphs[text] for text in captions], forms)
            link = out / "images" / record.path.name
            if not link.is_symlink():
                link.symlink_to(record.path)
        write_split(out, split, made[split], first_id)
    return made


def main(
    data: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Argument()],
    train_images: Annotated[int, typer.Option()] = 2000,
    val_images: Annotated[int, typer.Option()] = 400,
    seed: Annotated[int, typer.Option(help="Of the sample of images.")] = 0,
) -> None:
    """Make and count."""
    made = make_questions(data, out, {"train": train_images, "val": val_images}, seed)
    for split, questions in made.items():
        images = len({item.image_id for item in questions})
        counts = Counter(item.kind for item in questions).most_common()
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts)
        print(f"{split}: {len(questions)} questions about {images} images ({kinds})")


if __name__ == "__main__":
    typer.run(main)
