"""VQA accuracy against the official evaluator, boxes, bootstrap intervals."""

from __future__ import annotations

import hashlib
import json
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkin_core.boxes import box_iou_paired, xywh_to_xyxy
from tbkin_core.datasets import open_dataset
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.evaluation.intervals import bootstrap_interval, paired_difference, too_few_images
from tbkin_core.evaluation.vqa import answer_accuracy, normalize_answer, soft_scores, vqa_accuracy
from tbkin_core.tasks.base import Split
from tbkin_core.tasks.rec import Boxes, RecTask

GOLDEN = Path(__file__).parent / "golden" / "vqa_official.json"
CODES = string.ascii_letters + string.digits

# Kept as texts, split once: ten times shorter than lists.
PLAIN_TEXT = """
    yes no red blue white brown black dog cat man woman frisbee wii 2 3 10 1000 1.5 2.50 12:30 7:45pm
    left right
"""
NUMBER_TEXT = """
    none zero one two three four five six seven eight nine ten eleven a an the A An The A. the, One TWO
"""
APOSTROPHE_TEXT = """
    dont don't Dont aint cant couldnt've couldn'tve hes he's hed hed've he'dve Im im i'm Ive Id've i'dve id've
    isnt isn't lets let's maam ma'am oclock o'clock shes she's shed shed've somebody'd somebodyd somebodyd've
    someonell somethingd thats thered've therere theyre twas 'twas wed've weve werent whatre whos wholl whyre
    wont yall y'all y'allll yall'll yall'd've y'alld've y'all'dve youre you'dve ow's'at 'ows'at 'ow'sat
    ows'at dog's dogs' womens women's mightn'tve shouldve shouldnt've notve whens whereve whod've itd neednt
"""
STEM_TEXT = """
    ai am are ca can could did do does had has have he how i is it let might must need not ought sha she
    should somebody someone something that there they was we were what when where who why wo would y'all you
"""
FOREIGN_TEXT = "café naïve 日本 Ístanbul ÉTÉ ½ n/a . “red” l’eau don’t ß 🙂 和"
ENDINGS = ["n't", "'ve", "'s", "'d", "'d've", "'ll", "'re", "'m", "n't've"]


def contracted_words() -> list[str]:
    """Every stem with every ending, as it is written and with one or all of its apostrophes missing."""
    words = []
    for whole in (stem + ending for stem in STEMS for ending in ENDINGS):
        places = [place for place, character in enumerate(whole) if character == "'"]
        words += [whole, *(whole[:place] + whole[place + 1 :] for place in places), whole.replace("'", "")]
    return words


PLAIN, WORDS, APOSTROPHES, STEMS, FOREIGN = (
    text.split() for text in (PLAIN_TEXT, NUMBER_TEXT, APOSTROPHE_TEXT, STEM_TEXT, FOREIGN_TEXT)
)
MARKS = [*";/[]\"{}()=+\\_-><@`,?!.:'&%$#*^~|", "...", "--", "1,000", "10,5", "U.S.", "3.", ".5", "\n", "\t"]
BLANKS = ["", " ", "  ", ", ", "/", "-", ". ", "\n", "\t ", "\r\n", "\u00a0", "\u3000", "\v", " - "]


def random_answer(source: random.Random) -> str:
    """An answer with what the evaluator treats specially; only `random()` is drawn, which never changes."""

    def pick(values: list[str]) -> str:
        return values[int(source.random() * len(values))]

    if source.random() < 0.02:  # answers of which nothing is left, before or after normalisation
        return pick(["", " ", "\n", "the", "A", "?", "an the", ".", "\u00a0"])
    text = ""
    for _ in range(1 + int(source.random() * source.random() * 6)):
        draw = source.random()
        kinds = ((0.4, PLAIN), (0.6, WORDS), (0.85, APOSTROPHES), (0.95, MARKS), (1.0, FOREIGN))
        word = pick(next(values for limit, values in kinds if draw < limit))
        if source.random() < 0.2:
            word = pick([word.upper(), word.capitalize(), pick(MARKS) + word, word + pick(MARKS)])
        text += word + (pick(BLANKS) if source.random() < 0.35 else " ")
    text = text if source.random() < 0.1 else text.strip()
    return "." * 40 + text if source.random() < 0.005 else text


def random_files(count: int, seed: int) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """(questions, annotations, results) in the layout of VQA v2; free of the code that is tested."""
    source = random.Random(seed)
    questions, annotations, results = [], [], []
    for index in range(count):
        pool = [random_answer(source) for _ in range(1 + int(source.random() * 4))]
        # Near misses: the same answers after normalisation, if normalisation takes place.
        if source.random() < 0.5:
            plain = pool[0].lower().replace(",", "").strip(" .?!")
            pool += [pool[0].upper(), pool[0] + ".", "the " + pool[0], plain]
        unanimous = source.random() < 0.15
        people = 10 if source.random() < 0.95 else 4 + int(source.random() * 9)
        # Early ones often, late ones by one or two people: all of 0, 0.3, 0.6, 0.9 and 1 occur.
        skewed = [int(source.random() * source.random() * len(pool)) for _ in range(people)]
        answers = [pool[0 if unanimous else place] for place in skewed]
        pool += [random_answer(source)]
        kind = ["yes/no", "number", "other"][int(source.random() * 3)]
        start = ["what is the", "how many", "is this", "none of the above"][int(source.random() * 4)]
        questions.append({"question_id": index, "image_id": index // 3, "question": "?"})
        annotations.append(
            {
                "question_id": index,
                "image_id": index // 3,
                "question_type": start,
                "answer_type": kind,
                "answers": [
                    {"answer": answer, "answer_id": place + 1, "answer_confidence": "yes"}
                    for place, answer in enumerate(answers)
                ],
            }
        )
        results.append({"question_id": index, "answer": pool[int(source.random() * len(pool))]})
    return {"questions": questions}, {"annotations": annotations}, results


def test_vqa_accuracy_equals_the_official_evaluator_on_10000_random_questions() -> None:
    """The numbers in `golden/vqa_official.json` come from GT-Vision-Lab/VQA.

    Its `vqaEval.py` at commit a013f00, unchanged, ran on Python 2.7.18 over `random_files(count, seed)`, with
    n=17, so that nothing was rounded; "distinct" holds the accuracies that occurred, in percent to
    12 decimals, and each character of "per_question" is the place of a question's among them. On Python 3 it
    gives the same for these cases.
    """
    golden = json.loads(GOLDEN.read_text())
    questions, annotations, results = random_files(golden["count"], golden["seed"])
    cases = json.dumps([annotations, results], sort_keys=True).encode()
    assert hashlib.sha256(cases).hexdigest() == golden["cases_sha256"], "other cases than the golden ones"
    accuracy = vqa_accuracy(questions, annotations, results)
    official = [golden["distinct"][CODES.index(code)] for code in golden["per_question"]]
    assert len(official) == len(accuracy.per_question) == 10_000
    differing = [
        index
        for index, (ours, theirs) in enumerate(zip(accuracy.per_question.values(), official, strict=True))
        if abs(ours - theirs) > 1e-9
    ]
    assert not differing, (results[differing[0]], annotations["annotations"][differing[0]]["answers"])
    assert accuracy.overall == pytest.approx(golden["overall"], abs=1e-9)
    for name in ("per_answer_type", "per_question_type"):
        assert getattr(accuracy, name) == pytest.approx(golden[name], abs=1e-9)


def test_normalisation_equals_the_official_evaluator() -> None:
    golden = json.loads(GOLDEN.read_text())
    source = random.Random(golden["seed"])
    texts = [*contracted_words(), *(random_answer(source) for _ in range(golden["count"]))]
    lines = "\0".join(map(normalize_answer, texts))
    assert hashlib.sha256(lines.encode()).hexdigest() == golden["normalized_sha256"]


def ten(*answers: str) -> list[str]:
    return [answers[index % len(answers)] for index in range(10)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  dog.", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("dont walk", "don't walk"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("2.5", "2.5"),
        (" a cat\n", "cat"),
        ("12:30", "12:30"),
        ("", ""),
    ],
)
def test_normalize_answer(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_agreeing_answers_are_compared_unprocessed_as_the_official_evaluator_does() -> None:
    assert answer_accuracy("two", ten("two")) == 1
    assert answer_accuracy("2", ten("two")) == 0
    assert answer_accuracy("2", [*ten("two")[:9], "three"]) == 1
    assert soft_scores(ten("night_stand")) == {"night_stand": 1.0}


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_ten_answers_give_the_official_steps(matches: int, expected: float) -> None:
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert answer_accuracy("red", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["Red."], 1.0),
        (["red", "red"], 1.0),
        (["red", "blue"], 0.5),
        (["red", "blue", "green"], 1 / 3),
        (["red"] * 4, 1.0),
        (["red"] + ["blue"] * 4, 4 / 15),
    ],
)
def test_fewer_answers(answers: list[str], expected: float) -> None:
    assert answer_accuracy("red", answers) == pytest.approx(expected)
    assert soft_scores(answers)["red"] == pytest.approx(expected)


ANSWERS = st.lists(
    st.sampled_from(["two", "2", "the dog", "dog.", "red", "dont", "a", "night_stand"]), min_size=1
)


@given(ANSWERS, st.randoms(use_true_random=False))
def test_the_order_of_the_answers_does_not_matter(answers: list[str], source: random.Random) -> None:
    shuffled = source.sample(answers, len(answers))
    assert soft_scores(shuffled) == soft_scores(answers)


@given(ANSWERS)
def test_soft_scores_are_the_accuracies_of_their_keys(answers: list[str]) -> None:
    scores = soft_scores(answers)
    assert all(answer_accuracy(answer, answers) == score for answer, score in scores.items())
    assert all(0 < score <= 1 for score in scores.values())
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


@given(st.text(max_size=30), st.integers(1, 12))
def test_an_answer_that_all_gave_is_right(answer: str, count: int) -> None:
    assert answer_accuracy(answer, [answer] * count) == pytest.approx(1)


@given(st.text(alphabet="aB3.,'/ -te0nh?", max_size=20))
def test_normalisation_is_idempotent(text: str) -> None:
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


def test_vqa_accuracy_accepts_lists_and_own_annotations_without_types() -> None:
    questions = [{"question_id": "a"}, {"question_id": "b"}, {"question_id": "other split"}]
    annotations = [
        {"question_id": "a", "answers": [{"answer": "yes"}]},
        {"question_id": "b", "answers": [{"answer": "no"}], "answer_type": "yes/no"},
    ]
    accuracy = vqa_accuracy(
        questions, annotations, [{"question_id": "b", "answer": "No"}, {"question_id": "a", "answer": "no"}]
    )
    assert accuracy.overall == 50
    assert accuracy.per_question == {"a": 0, "b": 100}
    assert accuracy.per_answer_type == {"yes/no": 100}
    assert accuracy.per_question_type == {}


def test_an_empty_answer_counts_as_the_official_evaluator_counts_it(tmp_path: Path) -> None:
    given_answers: dict[int, list[Any]] = {
        1: ["red"] * 3 + ["blue"] * 6 + [" "],
        2: ["two"] * 9 + [""],  # not all agree, so that both are 2
        3: [""] * 10,
        4: [""],
        5: ["", "yes", None],
    }
    annotations = [
        {"question_id": number, "image_id": 1, "answers": [{"answer": it} for it in answers]}
        for number, answers in given_answers.items()
    ]
    questions = [{"question_id": number, "image_id": 1, "question": "what?"} for number in given_answers]
    (tmp_path / "v2_train_questions.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "v2_train_annotations.json").write_text(json.dumps({"annotations": annotations}))
    dataset = open_dataset(tmp_path)
    read = {item.question_id: item.answers for item in dataset.questions()}
    for number, answer in ((1, "red"), (1, "blue"), (2, "2"), (3, "red"), (3, "")):
        results = [{"question_id": number, "answer": answer}]
        official = vqa_accuracy(questions, [annotations[number - 1]], results).overall / 100
        assert answer_accuracy(answer, read[number]) == pytest.approx(official)
    assert answer_accuracy("red", read[1]) == pytest.approx(0.9) and answer_accuracy("2", read[2]) == 1
    assert (read[4], read[5]) == ((), ("", "yes"))
    what = "v2_train_annotations.json: question 4 and 1 more: has an answer without text (left out)"
    assert dataset.problems == [what]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "1 questions are not in results, such as 7"),
        ([{"question_id": 7, "answer": "x"}, {"question_id": 8, "answer": "x"}], "such as 8"),
        ([{"question_id": 7, "answer": "x"}] * 2, "expected one each"),
        ([{"question_id": 7}], "no answer in"),
        ([{"question_id": 7, "answer": 3}], "answers must be text"),
        ({"7": "x"}, "expected a list"),
    ],
)
def test_unfit_results_are_explained(results: Any, message: str) -> None:
    annotations = [{"question_id": 7, "answers": [{"answer": "x"}, {"answer": "y"}]}]
    with pytest.raises(DataError, match=message):
        vqa_accuracy([{"question_id": 7}], annotations, results)


def test_a_question_without_answers_is_an_error() -> None:
    with pytest.raises(DataError, match=r"question 7: .*got 0 answers"):
        vqa_accuracy(
            [{"question_id": 7}],
            [{"question_id": 7, "answers": []}],
            [{"question_id": 7, "answer": "x"}],
        )


def test_a_box_is_right_above_half_alone() -> None:
    target = xywh_to_xyxy([[10, 10, 20, 10]] * 3)
    half = [10, 10, 20, 20]  # exactly half of the target
    assert box_iou_paired([half], target[:1])[0] == 0.5
    boxes = np.array([half, [10, 10, 30, 20], [40, 40, 50, 50]], np.float32)
    split = Split([None] * 3, None, target)  # type: ignore[arg-type, list-item]
    predicted = Boxes(boxes, np.zeros(3, np.int64), np.ones(3, np.float32))
    assert RecTask().scores(split, predicted).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "box", [[5, 5, 5, 9], [9, 9, 5, 5], [np.nan, 0, 10, 10], [0, 0, np.inf, np.inf], [-9, -9, 0, 0]]
)
def test_degenerate_boxes_overlap_nothing(box: list[float]) -> None:
    assert box_iou_paired([box], [[0, 0, 10, 10]])[0] == 0
    assert box_iou_paired([box], [box])[0] in (0, 1)


BOXES = st.lists(
    st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(1, 50)] * 2).map(
        lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
    ),
    min_size=1,
    max_size=8,
)


@given(BOXES, st.integers(-100, 100), st.sampled_from([0.5, 2.0, 4.0]))
def test_iou_is_symmetric_bounded_and_free_of_place_and_scale(
    boxes: list[tuple[int, ...]], shift: int, scale: float
) -> None:
    first, second = np.array(boxes, float), np.array(boxes[::-1], float)
    overlap = box_iou_paired(first, second)
    assert np.all((overlap >= 0) & (overlap <= 1))
    np.testing.assert_allclose(overlap, box_iou_paired(second, first))
    np.testing.assert_allclose(overlap, box_iou_paired(first * scale + shift, second * scale + shift))
    np.testing.assert_allclose(box_iou_paired(first, first), 1)


@pytest.mark.parametrize(
    ("boxes", "others"),
    [
        ([[0, 0, 1, 1]] * 3, [[0, 0, 1, 1]] * 2),
        ([[0, 0, 1]], [[0, 0, 1]]),
        ([0, 0, 1, 1], [0, 0, 1, 1]),
    ],
)
def test_unfit_boxes_are_explained(boxes: Any, others: Any) -> None:
    with pytest.raises(DataError):
        box_iou_paired(boxes, others)


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    source = np.random.default_rng(0)
    trials = 300
    covered = 0
    for trial in range(trials):
        values = source.random(120) < 0.7
        low, high = bootstrap_interval(values, samples=400, seed=trial)
        covered += low <= 0.7 <= high
    assert 0.91 <= covered / trials <= 0.98


def test_questions_about_one_image_widen_the_interval() -> None:
    source = np.random.default_rng(0)
    images = np.repeat(np.arange(60), 10)
    values = np.repeat(source.random(60), 10)
    low, high = bootstrap_interval(values)
    low_by_image, high_by_image = bootstrap_interval(values, images)
    assert (high_by_image - low_by_image) > 2 * (high - low)
    of_images = bootstrap_interval(values[::10])
    assert bootstrap_interval(values, [f"image {image:02}" for image in images]) == pytest.approx(of_images)


def test_bootstrap_is_reproducible_and_bounded_in_memory() -> None:
    values = np.random.default_rng(0).random(50_000)
    interval = bootstrap_interval(values, samples=100, seed=3)
    assert interval == bootstrap_interval(values, samples=100, seed=3)
    assert interval != bootstrap_interval(values, samples=100, seed=4)
    assert interval[0] < values.mean() < interval[1]


def test_one_value_is_its_own_interval() -> None:
    assert bootstrap_interval([3.0]) == (3, 3)
    assert bootstrap_interval([1.0, 2.0], ["image", "image"]) == (1.5, 1.5)


def test_paired_difference_sees_a_real_difference_and_no_other() -> None:
    source = np.random.default_rng(1)
    base = source.random(400)
    same = paired_difference(base, base)
    assert same == (0, 0, 0, 1)
    better = paired_difference(base + 0.02 + 0.05 * source.standard_normal(400), base)
    assert better.difference == pytest.approx(0.02, abs=0.01)
    assert 0 < better.low < better.difference < better.high
    assert better.p_value < 0.01
    noise = [
        paired_difference(source.random(60), source.random(60), samples=200, seed=trial).p_value
        for trial in range(100)
    ]
    assert 0.3 < np.mean(noise) < 0.7


@pytest.mark.parametrize(("images", "least"), [(1, 1.0), (2, 0.5), (5, 0.0625), (40, 0.0)])
def test_few_images_prove_nothing(images: int, least: float) -> None:
    """Each image gains the same, so that no resample strays: still, luck alone gives one sign that often."""
    groups = np.arange(400) % images
    found = paired_difference(np.ones(400), np.zeros(400), groups, samples=500)
    assert found.p_value == max(least, 1 / 501)
    notes = too_few_images("val", groups)
    assert bool(notes) == (images < 10)
    assert not notes or f"val: only {images} image" in notes[0]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 3)), min_size=1, max_size=20))
def test_paired_difference_is_antisymmetric(rows: list[tuple[float, float, int]]) -> None:
    first, second, groups = zip(*rows, strict=True)
    forward = paired_difference(first, second, groups, samples=50)
    backward = paired_difference(second, first, groups, samples=50)
    assert forward.difference == pytest.approx(-backward.difference)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    assert forward.p_value == backward.p_value


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (([],), {}, DataError),
        (([1.0, np.nan],), {}, DataError),
        (([1.0, 2.0], [1]), {}, DataError),
        (([1.0],), {"confidence": 95}, ConfigError),
        (([1.0],), {"samples": 0}, ConfigError),
    ],
)
def test_unfit_bootstrap_input_is_explained(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        bootstrap_interval(*arguments, **options)
