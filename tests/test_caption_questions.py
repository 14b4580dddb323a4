"""Questions that the benchmark makes of captions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from tbkin_core.datasets import open_dataset
from tbkin_core.errors import DataError

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from caption_questions import make_questions

CAPTIONS = {
    "beach": (
        "train",
        "A black dog is chasing a ball on the beach .",
        "A dog runs on the sand .",
        "Two men are watching a black dog .",
        "A dog is on a beach .",
    ),
    "road": (
        "train",
        "A man in a red shirt is riding a bike .",
        "A man riding a bicycle .",
        "A man wearing a blue shirt rides a white bike .",
        "Two dogs are sleeping on the road .",
    ),
    "field": (
        "train",
        "A woman and two dogs run through a field .",
        "A woman with two dogs is walking in a field .",
    ),
    "pool": ("val", "Three children are playing in a grey pool .", "Three children playing with a toy ."),
    "bench": ("test", "A woman is sitting on a green bench .", "A woman sits on a bench ."),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photos and captions in Flickr8k's own layout."""
    root = tmp_path / "flickr"
    for name in ("Flicker8k_Dataset", "Flickr8k_text"):
        (root / name).mkdir(parents=True)
    lines = []
    for name, (_, *captions) in CAPTIONS.items():
        Image.new("RGB", (32, 32)).save(root / "Flicker8k_Dataset" / f"{name}.jpg")
        lines += [f"{name}.jpg#{number}\t{text}" for number, text in enumerate(captions)]
    (root / "Flickr8k_text/Flickr8k.token.txt").write_text("\n".join(lines))
    for split, word in {"train": "train", "val": "dev", "test": "test"}.items():
        names = [f"{name}.jpg\n" for name, (own, *_) in CAPTIONS.items() if own == split]
        (root / f"Flickr8k_text/Flickr_8k.{word}Images.txt").write_text("".join(names))
    return root


def test_questions_are_asked_once_and_where_no_caption_contradicts(data: Path, tmp_path: Path) -> None:
    made = make_questions(data, tmp_path / "vqa", {"train": 9, "val": 9})
    answers = {(it.image_id, it.text): it.answer for split in made.values() for it in split}
    assert len(answers) == sum(map(len, made.values()))
    expected = {
        ("beach", "what color is the dog?"): "black",
        ("beach", "how many dogs are there?"): "1",
        ("beach", "what is the dog chasing?"): "ball",
        ("beach", "what is chasing the ball?"): "dog",
        ("beach", "who is watching the dog?"): "men",
        ("road", "what is the man wearing?"): "shirt",
        ("road", "what color is the bike?"): "white",
        ("road", "how many dogs are there?"): "2",
        ("field", "how many dogs are there?"): "2",
        ("pool", "what color is the pool?"): "gray",
        ("pool", "what are the children doing?"): "playing",
        ("pool", "who is playing with the toy?"): "children",
    }
    assert {key: answers.get(key) for key in expected} == expected
    # Two shirts of two colours; a bike is a bicycle, which nobody here knows.
    assert ("road", "what color is the shirt?") not in answers
    assert ("road", "what is the man riding?") not in answers
    assert all(answer.isalnum() for answer in answers.values())
    assert "bench" not in {image for image, _ in answers}, "a test photo"


def test_the_files_are_vqa_data_with_the_photos(data: Path, tmp_path: Path) -> None:
    made = make_questions(data, tmp_path / "vqa", {"train": 2, "val": 1}, seed=1)
    again = make_questions(data, tmp_path / "again", {"train": 2, "val": 1}, seed=1)
    assert made == again
    dataset = open_dataset(tmp_path / "vqa")
    for split, count in (("train", 2), ("val", 1)):
        read = dataset.questions(split)
        assert [(it.image_id, it.question, it.answers[0]) for it in read] == [it[:3] for it in made[split]]
        assert all(len(set(it.answers)) == 1 and len(it.answers) == 10 for it in read)
        assert len({it.image_id for it in read}) == count
        assert all((dataset.image(it.image_id).path or Path()).is_file() for it in read)
    assert len({it.question_id for it in dataset.questions()}) == sum(map(len, made.values()))
    assert dataset.problems == []


def test_a_split_without_photos_is_an_error(data: Path, tmp_path: Path) -> None:
    (data / "Flicker8k_Dataset/pool.jpg").unlink()
    with pytest.raises(DataError, match="no photo of val has captions"):
        make_questions(data, tmp_path / "vqa", {"train": 2, "val": 1})
