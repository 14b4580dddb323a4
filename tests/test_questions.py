"""Questions that are made of captions: their English, their answers, their balance, and the command."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import fails, succeeds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tbkin_core.datasets import open_dataset
from tbkin_core.names.lexicon import lemmatize_verb
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.questions.answers import Asked
from tbkin_core.questions.balance import Question, selected
from tbkin_core.questions.english import are_apart, is_grammatical, participle, same_thing, with_article
from tbkin_core.questions.kinds import KINDS
from tbkin_core.questions.make import CaptionedImage, QuestionRecipe, make_questions
from tbkin_core.questions.things import Things
from tbkin_core.questions.yes_no import Silence

# ---- English ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "form"),
    [
        ("ride", "riding"), ("run", "running"), ("sit", "sitting"), ("lie", "lying"), ("play", "playing"),
        ("see", "seeing"), ("swim", "swimming"), ("look", "looking"), ("jump", "jumping"), ("fix", "fixing"),
        ("plunge", "plunging"), ("tie", "tying"), ("panic", "panicking"), ("climb", "climbing"),
    ],
)  # fmt: skip
def test_participles(verb: str, form: str) -> None:
    assert participle(verb) == form


def test_participles_are_those_that_captions_have(shared_data: Path) -> None:
    text = (shared_data / "flickr8k/Flickr8k_text/Flickr8k.token.txt").read_text(encoding="utf-8").lower()
    words = Counter(word for word in text.split() if word.endswith("ing") and word.isalpha())
    verbs = {word: lemmatize_verb(word) for word in words if lemmatize_verb(word) != word}
    right = sum(words[word] for word, verb in verbs.items() if participle(verb) == word)
    # "laying on the grass" is corrected on purpose.
    assert right / sum(words[word] for word in verbs if word != "laying") > 0.995


@pytest.mark.parametrize(
    "name",
    [
        "an apple", "a dog", "a unicycle", "an umbrella", "a uniform", "an hour", "an orange ball",
        "a one way sign", "a european car", "an x-ray", "an inflatable boat", "a ewe",
    ],
)  # fmt: skip
def test_articles(name: str) -> None:
    article, _, noun = name.partition(" ")
    assert with_article(noun) == f"{article} {noun}"


def test_what_may_be_one_thing() -> None:
    assert same_thing("boy", "child")
    assert same_thing("ball", "tennis ball")
    assert not same_thing("man", "woman")
    assert are_apart("cat", ["dog", "man"])
    assert not are_apart("food", ["pizza"])
    # A skateboarder may be a man; a woman is none.
    assert not are_apart("man", ["skateboarder"])
    assert are_apart("man", ["woman", "dog"])


@pytest.mark.parametrize(
    ("question", "good"),
    [
        ("what is the man riding?", True),
        ("who is riding the horse?", True),
        ("what color is the woman's hat?", True),
        ("is there a dog in the picture?", True),
        ("are the dogs playing in snow?", True),
        ("how many dogs are there?", True),
        ("where is the girl?", True),
        ("is there together in the picture?", False),
        ("what are the woman wearing?", False),
        ("what color are the boy's hat?", False),
        ("where is the?", False),
        ("who is riding the horse the?", False),
    ],
)
def test_the_parser_tells_good_english(question: str, good: bool) -> None:
    doc = CaptionParser.pipeline()(question)
    assert is_grammatical(word.tag_ for word in doc[:-1]) is good


# ---- things -------------------------------------------------------------------------------------


def _things(*captions: str) -> Things:
    return Things(list(CaptionParser().parse(captions)))


def test_nouns_of_one_thing_are_joined() -> None:
    things = _things("A boy runs on the grass .", "A young child running .", "The kid is wearing a hat .")
    (person,) = (it for it in things.all if it.is_person)
    assert person.sure
    assert person.captions == {0, 1, 2}


def test_what_a_caption_tells_apart_is_not_one_thing() -> None:
    things = _things("A man and a boy are fishing .", "A man is fishing .", "A child with a rod .")
    by_noun = {noun: it for it in things.all for noun in it.nouns}
    assert by_noun["man"] is not by_noun["boy"]
    assert by_noun["child"] is by_noun["boy"]
    things = _things("A boy and a child are playing .", "A boy runs .")
    assert len([it for it in things.all if it.is_person]) == 2


@pytest.mark.parametrize(
    "captions",
    [
        ("A black dog chases a white dog .", "A dog runs ."),
        ("A dog runs .", "Two dogs run ."),
        ("Two dogs run .", "Three dogs are running ."),
    ],
)
def test_one_of_several_is_not_the_dog(captions: tuple[str, ...]) -> None:
    assert not any(it.sure for it in _things(*captions).all if it.noun == "dog")


# ---- answers ------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_ten_people_answer_as_captions_do(counts: list[int]) -> None:
    counts.sort(reverse=True)
    item = Asked("?", "color", tuple((str(place), count) for place, count in enumerate(counts)))
    given_by = Counter(item.given())
    assert given_by.total() == 10
    for place, count in enumerate(counts):
        assert abs(given_by[str(place)] - 10 * count / sum(counts)) < 1


def _made(*images: tuple[str, ...], recipe: QuestionRecipe | None = None) -> list[dict[str, str]]:
    """Text and usual answer of the questions about each image, by default of all that can be asked."""
    parser = CaptionParser()
    captioned = [
        CaptionedImage(place, "train", list(parser.parse(texts))) for place, texts in enumerate(images)
    ]
    asked: list[dict[str, str]] = [{} for _ in images]
    for item in make_questions(captioned, recipe or QuestionRecipe(per_image=1000, balanced=False)):
        assert item.asked.text not in asked[item.image_id]
        asked[item.image_id][item.asked.text] = item.asked.answer
    return asked


BEACH = (
    "A black dog is chasing a ball on the beach .",
    "A dog runs on the sand .",
    "Two men are watching a black dog .",
    "A dog is on a beach .",
)
ROAD = (
    "A man in a red shirt is riding a bike .",
    "A man riding a bicycle .",
    "A man wearing a red shirt rides a white bike .",
    "Two dogs are sleeping on the road .",
)
FIELD = (
    "A woman and two dogs run through a field .",
    "A woman with two dogs is walking in a field .",
    "Two dogs and a lady wearing a hat .",
)


def test_captions_answer_what_they_agree_on() -> None:
    beach, road, field = _made(BEACH, ROAD, FIELD)
    expected = {
        "what color is the dog?": "black",
        "what is the dog chasing?": "ball",
        "is the dog black?": "yes",
        "is there a dog in the picture?": "yes",
        "who is watching the dog?": None,  # one caption alone names the men
    }
    assert {text: beach.get(text) for text in expected} == expected
    assert beach["where is the dog?"] in ("beach", "sand")
    assert road["what is the man riding?"] in ("bike", "bicycle")
    assert road["what color is the man's shirt?"] == "red"
    assert road["what is the man wearing?"] == "shirt"
    assert road["is the man riding a bike?"] == "yes"
    assert field["how many dogs are there?"] == "2"
    assert "how many people are there?" not in beach  # some captions speak of men, others of none


def test_captions_that_contradict_answer_nothing() -> None:
    (asked,) = _made(
        (
            "A man in a red shirt is sitting on a bench .",
            "A man in a blue shirt is standing next to a bench .",
            "A man with three dogs .",
            "A man with two dogs .",
        )
    )
    for text in ("what color is the man's shirt?", "how many dogs are there?", "what is the man doing?"):
        assert text not in asked
    assert not any(text.startswith(("is the man sitting", "is the man standing")) for text in asked)


def test_no_is_said_only_of_what_cannot_be() -> None:
    """What other images have is asked of one that has it not; a thing that may be meant is not denied."""
    dogs = [("A black dog runs on the grass .", "A black dog is running .")] * 6
    dogs += [("A white dog runs on the grass .", "A white dog is running .")] * 6
    boys = [("A skateboarder jumps over a rail .", "A skateboarder is jumping .")] * 6
    men = [("A man with a guitar .", "A man is holding a guitar .")] * 6
    recipe = QuestionRecipe(per_image=1000, balanced=False, kinds=["yes-no"])
    asked = _made(*dogs, *boys, *men, recipe=recipe)
    assert {one["is the dog white?"] for one in asked[:6] if "is the dog white?" in one} == {"no"}
    assert {one["is the dog white?"] for one in asked[6:12]} == {"yes"}
    assert any(one.get("is there a guitar in the picture?") == "no" for one in asked[:18])
    # The skateboarder may be a man.
    assert all("is there a man in the picture?" not in one for one in asked[12:18])
    assert all(one["is there a man in the picture?"] == "yes" for one in asked[18:])


def test_what_captions_often_leave_out_is_not_denied() -> None:
    """A bike is named by all captions wherever one names it, a cap by one alone."""
    dog = "A dog runs on the grass ."
    bikes = [("A dog next to a bike .", "A dog with a bike .", "A dog near a bike .")] * 8
    caps = [(dog, "A dog with a cap .", dog)] * 8
    asked = _made(*bikes, *caps, recipe=QuestionRecipe(per_image=1000, balanced=False, kinds=["yes-no"]))
    assert any(one.get("is there a bike in the picture?") == "no" for one in asked[8:])
    assert all("is there a cap in the picture?" not in one for one in asked[:8])


@pytest.mark.parametrize(("present", "regular", "captions"), [(0.3, 0.5, 5), (0.1, 0.8, 3), (0.5, 0.3, 5)])
def test_silence_is_estimated_from_captions_alone(present: float, regular: float, captions: int) -> None:
    """In a corpus drawn from the model, the doubt is the share of silent images that have the thing."""
    random = np.random.default_rng(0)
    there = random.random(200_000) < present
    named = (random.random((200_000, captions)) < regular).sum(1) * there
    silence = Silence()
    for count in named[named > 0].tolist():
        silence.note("hat", count, captions)
    doubt = silence.doubt("hat", float((named > 0).mean()), captions)
    assert math.isclose(doubt, there[named == 0].mean(), rel_tol=0.05, abs_tol=0.002)


# ---- balance ------------------------------------------------------------------------------------

QUESTIONS = st.lists(
    st.builds(
        lambda image, split, text, answer, support: Question(
            image,
            split,
            Asked(f"{text}?", "yes-no", (("yes" if answer % 2 else "no", support),))
            if text < 3
            else Asked(f"{text}?", "color", ((str(answer), support),)),
        ),
        st.integers(0, 12),
        st.sampled_from(["train", "val"]),
        st.integers(0, 6),
        st.integers(0, 4),
        st.integers(1, 5),
    ),
    max_size=120,
)


@given(QUESTIONS, st.integers(1, 6), st.integers(0, 3))
def test_questions_do_not_tell_their_answers(questions: list[Question], most: int, seed: int) -> None:
    kept = selected(questions, most, np.random.default_rng(seed))
    of_image = Counter(item.image_id for item in kept)
    assert max(of_image.values(), default=0) <= most
    by_split = defaultdict[tuple[str, str], Counter[str]](Counter)
    for item in kept:
        by_split[item.split, item.asked.text][item.asked.answer] += 1
    assert all(len(counts) > 1 for counts in by_split.values())
    for (_, text), counts in by_split.items():
        if int(text[0]) < 3:
            assert counts["yes"] == counts["no"]
        else:
            assert 2 * max(counts.values()) <= counts.total()
    assert len(selected(questions, 1000, np.random.default_rng(seed), balanced=False)) == len(questions)


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photos of three splits and captions in Flickr8k's own layout."""
    root = tmp_path / "flickr"
    for name in ("Flicker8k_Dataset", "Flickr8k_text"):
        (root / name).mkdir(parents=True)
    scenes = {"train": [BEACH, ROAD, FIELD] * 4, "dev": [ROAD, FIELD], "test": [BEACH, ROAD, FIELD] * 2}
    lines: list[str] = []
    for split, images in scenes.items():
        names = [f"{split}{place}.jpg" for place in range(len(images))]
        (root / f"Flickr8k_text/Flickr_8k.{split}Images.txt").write_text("\n".join(names))
        for name, captions in zip(names, images, strict=True):
            Image.new("RGB", (32, 32)).save(root / "Flicker8k_Dataset" / name)
            lines += [f"{name}#{number}\t{text}" for number, text in enumerate(captions)]
    (root / "Flickr8k_text/Flickr8k.token.txt").write_text("\n".join(lines))
    return root


def _run(*arguments: str) -> str:
    return succeeds(*arguments, cwd=Path.cwd()).out


def _json(*arguments: str) -> dict[str, Any]:
    return json.loads(_run(*arguments, "--json"))


def _fails(code: int, *arguments: str) -> str:
    return fails(*arguments, cwd=Path.cwd(), code=code)


def _files(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((data / "questions").iterdir())}


def test_the_files_are_a_question_set(data: Path) -> None:
    result = _json("build-graphs", str(data), "--questions")
    dataset = open_dataset(data)
    assert dataset.question_sets() == ("captions",)
    counts = result["questions"]
    assert set(counts) == {"train", "val", "test"}
    for split in counts:
        questions = dataset.questions(split)
        assert Counter(item.question_type for item in questions) == counts[split]
        assert set(counts[split]) <= set(KINDS)
        assert all(len(item.answers) == 10 for item in questions)
        assert len({item.image_id for item in questions}) == result["images_asked_about"][split]
        assert {item.answer_type for item in questions if item.question_type == "yes-no"} <= {"yes/no"}
    assert not dataset.problems
    ids = [item.question_id for split in counts for item in dataset.questions(split)]
    assert len(ids) == len(set(ids))


def test_questions_follow_from_captions_and_seed(data: Path) -> None:
    _run("build-graphs", str(data), "--questions")
    made = _files(data)
    again = _run("build-graphs", str(data), "--questions", "--workers", "2")
    assert "Questions made" in again
    assert _files(data) == made
    _run("build-graphs", str(data), "--questions", "--seed", "1", "--questions-per-image", "3")
    assert _files(data) != made
    dataset = open_dataset(data)
    assert max(Counter(item.image_id for item in dataset.questions("train")).values()) <= 3
    _run("build-graphs", str(data), "--questions", "--question-kinds", "count", "--unbalanced")
    assert {item.question_type for item in open_dataset(data).questions("train")} == {"count"}


def test_no_split_has_a_say_in_another(data: Path) -> None:
    """What val's captions say changes nothing in what train's are asked, nor do test's."""
    _run("build-graphs", str(data), "--questions")
    made = _files(data)
    tokens = data / "Flickr8k_text/Flickr8k.token.txt"
    lines = tokens.read_text().splitlines()
    tokens.write_text(
        "\n".join(line.replace(" dog", " cat") if line[:3] in ("dev", "tes") else line for line in lines)
    )
    _run("build-graphs", str(data), "--questions", "--overwrite")
    name = "v2_OpenEnded_captions_{}_questions.json"
    assert _files(data)[name.format("train")] == made[name.format("train")]
    assert _files(data)[name.format("test")] != made[name.format("test")]


def test_the_same_caption_twice_is_one_witness() -> None:
    once, twice = _made(
        ("A dog is jumping .", "A cat ."), ("A dog is jumping .", "A dog is jumping .", "A cat .")
    )
    assert once == twice


def test_image_ids_like_file_names_make_no_images(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    captions = []
    for number, color in enumerate(("red", "blue"), 1):
        Image.new("RGB", (8, 8)).save(own / f"x.{number}.png")
        captions.append({"image": f"x.{number}.png", "text": f"a {color} ball"})
    (own / "c.jsonl").write_text("\n".join(map(json.dumps, captions)))
    before = open_dataset(own).images()
    _run("build-graphs", str(own), "--questions")
    assert open_dataset(own).images() == before
    assert len(open_dataset(own).questions("all")) > 1


def test_what_people_asked_comes_before_what_is_made(data: Path) -> None:
    rows = [{"image": f"train{place}.jpg", "question": "is it day?", "answer": "yes"} for place in range(3)]
    (data / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _run("build-graphs", str(data), "--questions")
    dataset = open_dataset(data)
    first, last = dataset.question_sets()
    assert last == "captions"
    assert sum(len(dataset.questions(split, first)) for split in dataset.question_splits(first)) == 3
    assert not dataset.mixes_questions()


def test_nothing_of_others_is_overwritten(data: Path) -> None:
    place = data / "questions"
    place.mkdir()
    mine = place / "v2_OpenEnded_captions_train_questions.json"
    mine.write_text('{"questions": []}')
    message = _fails(2, "build-graphs", str(data), "--questions")
    assert "no earlier result" in message
    assert not (data / "graphs").exists()
    assert mine.read_text() == '{"questions": []}'


def test_without_captions_nothing_is_asked(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "own/a.png")
    (tmp_path / "own/mine.jsonl").write_text(
        '{"image": "a.png", "question": "what is it?", "answer": "a dog"}'
    )
    message = _fails(1, "build-graphs", str(tmp_path / "own"), "--questions")
    assert "--questions are made of captions of whole images" in message
    assert "only with --questions" in _fails(2, "build-graphs", str(tmp_path / "own"), "--unbalanced")


def test_descriptions_of_regions_are_no_captions(data: Path) -> None:
    """One "dog" beside another may be two dogs."""
    _run("build-graphs", str(data), "--questions")
    made = _files(data)
    regions = [
        {"region_id": number, "image_id": 1, "phrase": "a dog", "x": 0, "y": 0, "width": 9, "height": 9}
        for number in range(3)
    ]
    for place in (data, data.parent / "vg"):
        place.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(place / "1.jpg")
        (place / "image_data.json").write_text('[{"image_id": 1, "width": 32, "height": 32}]')
        (place / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": regions}]))
    _run("build-graphs", str(data), "--questions", "--overwrite")
    assert _files(data) == made
    assert "are of parts" in _fails(1, "build-graphs", str(data.parent / "vg"), "--questions")


@pytest.mark.parametrize("split", [None, "fold1", "test"])
def test_of_few_captions_one_is_told_what_to_do(tmp_path: Path, split: str | None) -> None:
    own = tmp_path / "own"
    own.mkdir()
    Image.new("RGB", (8, 8)).save(own / "a.png")
    caption = {"image": "a.png", "text": "a red ball on the grass", "split": split}
    (own / "c.jsonl").write_text(json.dumps({name: value for name, value in caption.items() if value}))
    result = _json("build-graphs", str(own), "--questions")
    assert any("--unbalanced" in problem for problem in result["problems"])
    result = _json("build-graphs", str(own), "--questions", "--unbalanced")
    dataset = open_dataset(own)
    assert dataset.question_sets() == ("captions",)
    assert dataset.question_splits("captions") == tuple(result["questions"]) == (split or "all",)
    (asked,) = (it for it in dataset.questions(split or "all") if it.question == "what color is the ball?")
    assert asked.answers == ("red",) * 10
