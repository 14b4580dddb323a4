"""Retrieval: ranks and chance, the head with its towers, what is learnt, the commands, the search."""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails, succeeds
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tbkin_core.datasets import open_dataset
from tbkin_core.evaluation.linear import mean_vectors
from tbkin_core.evaluation.linear_towers import fit_linear_towers
from tbkin_core.evaluation.ranking import (
    RECALLS,
    Relevance,
    Shortlist,
    chances,
    median_by_chance,
    nearest,
    ranks,
)
from tbkin_core.features.store import FeatureStore
from tbkin_core.modeling import TbkinConfig, TbkinForPreTraining, TbkinForRetrieval
from tbkin_core.modeling.checkpoint import apply_init, load_init, load_model
from tbkin_core.modeling.losses import contrastive_loss
from tbkin_core.modeling.models import Alignment
from tbkin_core.support.places import held
from tbkin_core.tasks.base import Split
from tbkin_core.tasks.inputs import InputSource, to_device
from tbkin_core.tasks.pairs import TOWERS, PairEncoder, tower_vectors
from tbkin_core.tasks.retrieval import WEIGHTS, RetrievalObjective, RetrievalTask

COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
SHAPES = ("circle", "square", "triangle")


# ---- ranks --------------------------------------------------------------------------------------


@st.composite
def ranked_pairs(draw: Any) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Queries and answers of whole numbers, so that there are ties, and which are right for which."""
    queries, answers = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = [generator.integers(-2, 3, (count, 3)).astype(np.float32) for count in (queries, answers)]
    right = generator.random((queries, answers)) < 0.3
    right[np.arange(queries), generator.integers(0, answers, queries)] = True
    return *vectors, right, generator.permutation(answers)


def pairs_of(right: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    query, answer = np.nonzero(right)
    return query, answer


@given(ranked_pairs())
def test_a_rank_counts_every_wrong_answer_that_is_no_less_similar(
    case: tuple[NDArray, NDArray, NDArray, NDArray],
) -> None:
    queries, answers, right, _ = case
    found = ranks(queries, answers, pairs_of(right))
    for query, similar in enumerate(queries @ answers.T):
        best = max(similar[right[query]])
        expected = 1 + sum(value >= best for value in similar[~right[query]])
        assert found[query] == expected


@given(ranked_pairs(), st.integers(1, 9))
def test_a_shortlist_decides_among_its_own_and_goes_before_the_rest(
    case: tuple[NDArray, NDArray, NDArray, NDArray], most: int
) -> None:
    queries, answers, right, order = case
    places, _ = nearest(queries, answers, most)
    # In an order that has nothing to do with the similarities.
    places = np.stack([sorted(row, key=order.tolist().index) for row in places])
    zeros = np.zeros(places.shape, np.float32)
    falling = zeros - np.arange(places.shape[1], dtype=np.float32)
    found = ranks(queries, answers, pairs_of(right), Shortlist(places, falling, zeros))
    alone = ranks(queries, answers, pairs_of(right))
    for query, listed in enumerate(places):
        hits = np.flatnonzero(right[query][listed])
        if len(hits):
            assert found[query] == 1 + hits[0]
        else:
            assert found[query] == max(alone[query], len(listed) + 1)


@given(ranked_pairs(), st.sampled_from([0.0, 0.5]))
def test_a_shortlist_of_all_ranks_as_its_scores_do(
    case: tuple[NDArray, NDArray, NDArray, NDArray], weight: float
) -> None:
    """Equal scores count against a model here as they do without a shortlist."""
    queries, answers, right, order = case
    places, similar = nearest(queries, answers, len(answers))
    logits = order[places].astype(np.float32) % 2
    shortlist = Shortlist(places, similar, logits).ordered(weight)
    assert (np.diff(shortlist.scores, axis=1) <= 0).all()
    found = ranks(queries, answers, pairs_of(right), shortlist)
    for query, similar in enumerate(queries @ answers.T):
        scores = similar + np.float32(weight) * (order % 2)
        expected = 1 + sum(value >= max(scores[right[query]]) for value in scores[~right[query]])
        assert found[query] == expected


@given(ranked_pairs(), st.integers(1, 12))
def test_the_nearest_are_those_of_a_full_sort(
    case: tuple[NDArray, NDArray, NDArray, NDArray], most: int
) -> None:
    queries, answers, _, _ = case
    places, scores = nearest(queries, answers, most)
    full = -np.sort(-(queries @ answers.T), axis=1)[:, :most]
    np.testing.assert_allclose(scores, full)
    np.testing.assert_allclose(np.take_along_axis(queries @ answers.T, places, axis=1), full)


@pytest.mark.parametrize(("answers", "right"), [(6, 1), (6, 2), (7, 5), (3, 3)])
def test_chance_is_the_mean_over_all_orders(answers: int, right: int) -> None:
    first = [
        min(place for place, answer in enumerate(order, 1) if answer < right)
        for order in itertools.permutations(range(answers))
    ]
    found = chances(np.array([right]), answers)
    for most in RECALLS:
        assert found[f"R@{most}"][0] == pytest.approx(100 * np.mean([rank <= most for rank in first]))
    assert median_by_chance(np.array([right]), answers) == sorted(first)[(len(first) - 1) // 2]


def test_words_that_are_said_of_several_images_are_true_of_all_of_them() -> None:
    texts = ["A dog runs", "a cat", "a dog  RUNS", "two dogs", "a cat"]
    found = Relevance.of(texts, np.array([0, 0, 1, 1, 0]))
    pairs = sorted(zip(found.texts.tolist(), found.images.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 1), (4, 0)]
    assert found.shared == 2


# ---- the loss and the head ----------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 3))
def test_the_contrast_is_the_cross_entropy_of_either_choice(seed: int, images: int, texts: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(images).repeat_interleave(texts)
    scores = torch.randn(len(own), images, generator=generator, dtype=torch.float32, requires_grad=True)
    positives = own[:, None] == torch.arange(images)
    positives |= torch.rand(positives.shape, generator=generator) < 0.2
    loss = contrastive_loss(scores, positives, own)
    expected = torch.tensor(0.0)
    for text, image in enumerate(own.tolist()):
        for line, wrong in (
            (scores[text], ~positives[text]),
            (scores[:, image], ~positives[:, image]),
        ):
            logits = torch.cat([scores[text, image][None], line[wrong]])
            expected += torch.nn.functional.cross_entropy(logits[None], torch.tensor([0]))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-4)
    loss.backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


@pytest.fixture(scope="module")
def head() -> TbkinForRetrieval:
    torch.manual_seed(3)
    config = TbkinConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        region_feature_size=6, tower_width=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return TbkinForRetrieval(config).eval()


def batch_of(texts: int, images: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words, regions = torch.arange(5)[None] < torch.tensor([[5], [3]] * texts)[:texts], torch.ones(images, 4)
    regions[0, 2:] = 0
    return {
        "input_ids": torch.randint(1, 40, (texts, 5), generator=generator) * words,
        "attention_mask": words,
        "region_features": torch.randn(images, 4, 6, generator=generator),
        "region_geometry": torch.rand(images, 4, 5, generator=generator),
        "region_mask": regions.bool(),
    }


@torch.no_grad()
def test_a_tower_reads_one_side_alone_and_no_padding(head: TbkinForRetrieval) -> None:
    batch = batch_of(4, 4)
    names = ("region_features", "region_geometry", "region_mask")
    texts = head.embed_texts(batch["input_ids"], batch["attention_mask"])
    images = head.embed_images(*(batch[name] for name in names))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(4))
    batch["input_ids"][~batch["attention_mask"]] = 7
    batch["region_features"][~batch["region_mask"]] = 9.0
    torch.testing.assert_close(head.embed_texts(batch["input_ids"], batch["attention_mask"]), texts)
    torch.testing.assert_close(head.embed_images(*(batch[name] for name in names)), images)
    alone = head.embed_images(*(batch[name][:1, :2] for name in names))
    torch.testing.assert_close(alone[0], images[0])


@torch.no_grad()
def test_a_match_reads_both_sides_and_no_padding(head: TbkinForRetrieval) -> None:
    batch = batch_of(4, 4)
    logits = head(**batch).itm_logits
    other = head(**{**batch, "input_ids": batch["input_ids"].flip(0)}).itm_logits
    assert not torch.allclose(logits, other, atol=1e-4)
    padded = {**batch, "region_features": batch["region_features"].clone()}
    padded["region_features"][~batch["region_mask"]] = 9.0
    torch.testing.assert_close(head(**padded).itm_logits, logits)
    vectors = {name: batch[name] for name in ("region_features", "region_geometry")}
    kept = head.tbkin.embed_regions(*vectors.values())[1]
    rest = {name: value for name, value in batch.items() if name not in vectors}
    torch.testing.assert_close(head(**rest, regions=kept).itm_logits, logits)


@torch.no_grad()
def test_training_matches_a_text_with_its_image_and_with_others_than_those_it_is_true_of(
    head: TbkinForRetrieval,
) -> None:
    own = torch.tensor([0, 0, 1, 2])
    positives = own[:, None] == torch.arange(3)
    positives[1, 2] = True  # the same words are said of the last image
    chosen = torch.tensor([1, 2])
    for seed in range(20):
        torch.manual_seed(seed)
        output = head(**batch_of(4, 3), positives=positives, own=own, chosen=chosen)
        assert output.matched.tolist() == [True, True, False, False, False, False]
    assert output.itm_logits.shape == (6, 2) and output.similarities.shape == (4, 3)


@torch.no_grad()
def test_where_nothing_is_wrong_no_match_is_called_so(head: TbkinForRetrieval) -> None:
    batch = batch_of(2, 1)
    own, chosen = torch.tensor([0, 0]), torch.tensor([0])
    output = head(**batch, positives=torch.ones(2, 1, dtype=torch.bool), own=own, chosen=chosen)
    assert output.matched.all()
    assert float(contrastive_loss(output.similarities, torch.ones(2, 1, dtype=torch.bool), own)) == 0


@pytest.mark.parametrize("even", [False, True])
def test_words_weigh_about_alike_where_a_text_is_met_by_regions(even: bool) -> None:
    torch.manual_seed(0)
    alignment = Alignment(TbkinConfig(hidden_size=8, num_attention_heads=2, even_words=even))
    with torch.no_grad():
        alignment.weight.weight.mul_(100)
        alignment.scale.fill_(1.0)
    text, regions = torch.randn(4, 6, 8, requires_grad=True), torch.randn(4, 3, 8)
    mask = torch.arange(6)[None] < torch.tensor([6, 5, 4, 3])[:, None]
    met = torch.nn.functional.normalize(alignment.words(text), dim=-1)
    seen = torch.nn.functional.normalize(alignment.regions(regions), dim=-1)
    best = (met @ seen.transpose(1, 2)).amax(-1)
    free = alignment.weight(text)[..., 0]
    weight = (free.tanh() if even else free).masked_fill(~mask, -torch.inf).softmax(-1)
    found = alignment(text, mask, regions, torch.ones(4, 3, dtype=torch.bool))
    torch.testing.assert_close(found, (weight * best).sum(-1))
    ratio = weight.amax(1) / weight.masked_fill(~mask, 1.0).amin(1)
    assert bool((ratio <= math.e**2 + 1e-4).all()) == even


def test_what_pretraining_learns_of_matching_is_where_retrieval_begins(trained: Path) -> None:
    weights, values = load_init(str(trained / "runs/pretrain"))
    assert values["aligned_matching"] and values["even_words"]
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
             "region_feature_size", "max_position_embeddings")  # fmt: skip
    model = TbkinForRetrieval(TbkinConfig(**{name: values[name] for name in sizes}))
    apply_init(model, weights, "runs/pretrain")
    for name in ("alignment.words.weight", "alignment.scale", "itm_head.weight"):
        assert torch.equal(model.state_dict()[name], weights[name]), name
    # A model of an earlier version, or of ROSITA, matches by [CLS] alone.
    plain = TbkinForPreTraining(TbkinConfig(**{name: values[name] for name in sizes}))
    assert not any(name.startswith("alignment") for name in plain.state_dict())


# ---- a small world of drawn things --------------------------------------------------------------


def draw(file: Path, colour: str, shape: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    picture = Image.fromarray(generator.integers(90, 110, (64, 64, 3), dtype=np.uint8))
    left, top = generator.integers(2, 28, 2).tolist()
    box = (left, top, left + 30, top + 30)
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(left, top + 30), (left + 30, top + 30), (left + 15, top)], fill=colour)
    picture.save(file)


def drawn_world(place: Path, copies: int = 4) -> None:
    """Pictures of one thing each with two captions; the last copy of each is the validation split."""
    lines = []
    (place / "images").mkdir(parents=True)
    for number, (colour, shape) in enumerate(itertools.product(COLOURS, SHAPES)):
        for copy in range(copies):
            name = f"p{number:02d}{copy}.png"
            draw(place / "images" / name, colour, shape, 100 * number + copy)
            split = "val" if copy == copies - 1 else "train"
            for text in (f"a {colour} {shape}", f"there is a {shape} and it is {colour}"):
                lines.append(json.dumps({"image": f"images/{name}", "caption": text, "split": split}))
    (place / "captions.jsonl").write_text("\n".join(lines) + "\n")


EXTRACT = ["extract-features", "things", "--extractor", "builtin", "--workers", "0"]
LINE = ["finetune", "--task", "retrieval", "--data", "things", "--init", "none", "--devices", "cpu"]
LINE += ["--epochs", "12", "--batch-size", "8"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with drawn things, their features and a retrieval model."""
    place = tmp_path_factory.mktemp("retrieval")
    drawn_world(place / "things")
    succeeds(*EXTRACT, cwd=place)
    succeeds(*LINE, "--predict", "val", cwd=place)
    return place


@pytest.fixture
def searched_copy(searched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched, tmp_path / "workspace"))


def results_of(place: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((place / "runs/finetune/retrieval/run.json").read_text())["results"]
    return results


def test_a_model_finds_what_it_has_learnt_the_words_of(searched: Path) -> None:
    rows = {(row["model"], row["part"]): row for row in results_of(searched)["report"]}
    ways = ("image to text", "text to image")
    assert {way for _, way in rows} == set(ways)
    assert {model for model, _ in rows} == {
        "random", "linear towers", "towers alone", "this model"
    }  # fmt: skip
    for way in ways:
        own, chance = rows["this model", way], rows["random", way]
        assert own["accuracy"] > 3 * chance["accuracy"]
        assert own["accuracy"] <= own["also"]["R@5"]["value"] <= own["also"]["R@10"]["value"]
        assert own["also"]["median"]["value"] < chance["also"]["median"]["value"]
        assert own["accuracy_low"] <= own["accuracy"] <= own["accuracy_high"]
    assert any("train: 108 of 108 captions are said of several images" in line
               for line in results_of(searched)["problems"])  # fmt: skip
    assert rows["this model", "image to text"]["n"] == 18
    assert rows["this model", "text to image"]["n"] == 36
    both = np.mean([rows["this model", way]["accuracy"] for way in ways])
    assert results_of(searched)["accuracy"]["val"] == pytest.approx(both)


def test_the_table_says_both_ways_in_80_columns(searched: Path) -> None:
    outcome = succeeds(*LINE, cwd=searched)
    assert "Image to text" in outcome.out and "Text to image" in outcome.out
    lines = [line for line in outcome.out.splitlines() if "towers alone" in line]
    assert len(lines) == 2
    assert all(len(line) <= 80 for line in outcome.out.splitlines() if set(line) & set("┃━│"))


def test_results_and_rankings_agree(searched: Path) -> None:
    run = searched / "runs/finetune/retrieval"
    results = json.loads((run / "results-val.json").read_text())["results"]
    rankings = json.loads((run / "predictions-val.json").read_text())
    texts, images = rankings[: len(results)], rankings[len(results) :]
    assert len(texts) == 36 and len(images) == 18
    for result, ranking in zip(results, texts, strict=True):
        assert ranking["image_id"] == result["image_id"]
        assert ranking["images"][0] == result["found"]
        assert sorted(ranking["images"]) == sorted(entry["image_id"] for entry in images)
    hits = np.mean([result["score"] for result in results])
    (own,) = (row for row in results_of(searched)["report"]
              if (row["model"], row["part"]) == ("this model", "text to image"))  # fmt: skip
    assert own["accuracy"] == pytest.approx(100 * hits)
    for entry in images:
        assert len(entry["texts"]) == 36 and len(set(entry["texts"])) == 36


def test_a_sweep_measures_the_mean_of_both_ways(searched: Path) -> None:
    line = "threshold-sweep --task retrieval --thresholds 0,0.3 --json"
    rows = json.loads(succeeds(*line.split(), cwd=searched).out)["rows"]
    assert rows[0]["accuracy"] == pytest.approx(results_of(searched)["accuracy"]["val"], abs=1e-3)
    assert rows[0]["kept_fraction"] == 1 and rows[1]["kept_fraction"] < 1


def test_thresholds_are_trained_with(searched_copy: Path) -> None:
    line = "finetune --task retrieval --data things --epochs 1 --threshold 0.3 --devices cpu"
    succeeds(*line.split(), cwd=searched_copy)
    run = searched_copy / "runs/finetune/retrieval-relative-0.3/run.json"
    assert json.loads(run.read_text())["results"]["accuracy"]["val"] >= 0


def test_two_processes_train_together(searched_copy: Path) -> None:
    line = "finetune --task retrieval --data things --epochs 2 --batch-size 8 --devices cpu:2 --init none"
    succeeds(*line.split(), "--out", "two", cwd=searched_copy)
    results = json.loads((searched_copy / "two/run.json").read_text())["results"]
    assert results["computed_on"]["processes"] == 2
    assert results["accuracy"]["val"] >= 0


def test_results_are_drawn_on_a_sheet(searched: Path) -> None:
    outcome = succeeds("visualize", "--from", "runs/finetune/retrieval/results-val.json", cwd=searched)
    assert "36 answers" in outcome.out


# ---- searching a directory ----------------------------------------------------------------------


def search(place: Path, *arguments: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(succeeds("visualize", *arguments, "--json", cwd=place).out)
    return values


def test_a_sentence_finds_its_pictures_in_a_directory_that_has_no_features(
    searched_copy: Path, tmp_path: Path
) -> None:
    photos = searched_copy / "photos"
    photos.mkdir()
    for number, (colour, shape) in enumerate(itertools.product(COLOURS, SHAPES)):
        draw(photos / f"{colour}-{shape}.png", colour, shape, 7000 + number)
    (photos / "broken.png").write_bytes(b"no picture")
    found = search(searched_copy, "photos", "a red circle")
    assert found["searched"] == 18 and len(found["matches"]) == 12
    assert any("broken.png" in line for line in found["problems"])
    scores = [match["score"] for match in found["matches"]]
    assert scores == sorted(scores, reverse=True)
    names = [Path(match["image"]).stem for match in found["matches"]]
    assert "red" in names[0] or "circle" in names[0]
    with Image.open(searched_copy / found["figure"]) as sheet:
        assert min(sheet.size) > 300
    for match in found["matches"]:
        x1, y1, x2, y2 = match["region"]
        assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64 and 0 < match["attention"] <= 1
    # Nothing was written among the pictures, and the next search makes nothing anew but what has come since.
    assert sorted(path.name for path in photos.iterdir() if path.is_dir()) == []
    # One that comes first by its name, though last into the store.
    draw(photos / "000.png", "red", "circle", 1)
    again = search(searched_copy, "photos", "a red circle", "--top", "19")
    assert again["searched"] == 19
    assert told(again) == told_anew(searched_copy, photos)
    (photos / "000.png").unlink()
    assert search(searched_copy, "photos", "a red circle")["matches"] == found["matches"]
    # All of it named in another way: nothing is made anew.
    there = sorted((searched_copy / "runs/visualize/features").iterdir())
    other = search(searched_copy, "things/../photos", "a red circle")
    assert told(other) == told(found)
    assert sorted((searched_copy / "runs/visualize/features").iterdir()) == there


Told = list[tuple[str, float, list[float]]]


def told(found: dict[str, Any]) -> Told:
    """Of each match its name, score and region."""
    return [
        (Path(match["image"]).name, round(match["score"], 4), match["region"]) for match in found["matches"]
    ]


def told_anew(workspace: Path, photos: Path) -> Told:
    """What a search tells of a copy of a directory, which has never been searched."""
    copy = workspace / f"copy-{len(list(workspace.iterdir()))}"
    shutil.copytree(photos, copy)
    return told(search(workspace, copy.name, "a red circle", "--top", "200"))


def test_a_picture_that_is_another_one_now_is_looked_at_anew(searched_copy: Path) -> None:
    photos = searched_copy / "photos"
    (photos / "sub").mkdir(parents=True)
    for number, (colour, shape) in enumerate(itertools.product(COLOURS, SHAPES)):
        draw(photos / f"{number}.png", colour, shape, 7000 + number)
    draw(photos / "sub/IMG_7.png", "white", "square", 1)
    search(searched_copy, "photos", "a red circle")
    # Others under the same names, of the same size and of another one; and a name that shares a number.
    (photos / "3.png").write_bytes((photos / "0.png").read_bytes())
    with Image.open(photos / "5.png") as picture:
        picture.resize((96, 64)).save(photos / "4.png")
    (photos / "7.png").rename(photos / "sub/7.png")
    found = search(searched_copy, "photos", "a red circle", "--top", "200")
    assert len(found["matches"]) == found["searched"] == 19
    assert told(found) == told_anew(searched_copy, photos)
    score = {name: value for name, value, _ in told(found)}
    assert score["3.png"] == score["0.png"]
    listed = {Path(match["image"]).name: match["size"] for match in found["matches"]}
    assert listed["4.png"] == [96, 64]


def test_more_than_a_shortlist_is_ranked_where_it_is_asked_for(searched_copy: Path) -> None:
    found = search(searched_copy, "things", "a blue square", "--top", "60")
    assert len({match["image"] for match in found["matches"]}) == 60
    scores = [match["score"] for match in found["matches"]]
    assert scores == sorted(scores, reverse=True)


def test_what_was_made_before_serves_where_nothing_can_be_written(searched_copy: Path) -> None:
    photos = searched_copy / "photos"
    photos.mkdir()
    for number, (colour, shape) in enumerate(itertools.product(COLOURS, SHAPES)):
        draw(photos / f"{number}.png", colour, shape, 7000 + number)
    found = search(searched_copy, "photos", "a red circle")
    (store,) = (searched_copy / "runs/visualize/features").iterdir()
    draw(photos / "late.png", "red", "circle", 1)
    with held(store):
        again = search(searched_copy, "photos", "a red circle")
    assert again["searched"] == 18 and again["matches"] == found["matches"]
    assert any("1 of the 19 pictures" in line for line in again["problems"])
    assert search(searched_copy, "photos", "a red circle")["searched"] == 19


@pytest.mark.parametrize("remains", [0, 100, -1])
def test_regions_that_are_damaged_are_made_again(searched_copy: Path, remains: int) -> None:
    photos = searched_copy / "photos"
    photos.mkdir()
    for number, (colour, shape) in enumerate(itertools.product(COLOURS[:2], SHAPES)):
        draw(photos / f"{number}.png", colour, shape, 7000 + number)
    found = search(searched_copy, "photos", "a red circle")
    shard = next((searched_copy / "runs/visualize/features").rglob("shard-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-20] ^= 0xFF
    shard.write_bytes(content[: remains if remains >= 0 else len(content)])
    assert search(searched_copy, "photos", "a red circle")["matches"] == found["matches"]


def test_pictures_newer_than_their_features_are_told(searched_copy: Path) -> None:
    later = (searched_copy / "things/features/store.json").stat().st_mtime + 60
    picture = next((searched_copy / "things").rglob("*.png"))
    os.utime(picture, (later, later))
    found = search(searched_copy, "things", "a blue square")
    assert any("are newer than" in line and picture.name in line for line in found["problems"])


def test_a_sheet_replaces_none_of_another_model(searched_copy: Path) -> None:
    own = searched_copy / "runs/finetune/retrieval"
    shutil.copytree(own, searched_copy / "other")
    lines = [[], ["--checkpoint", "other"], ["--layer", "0"], []]
    figures = [search(searched_copy, "things", "a blue square", *line)["figure"] for line in lines]
    assert len(set(figures)) == 3 and figures[0] == figures[3]


def test_a_search_says_the_next_line_as_a_shell_takes_it(searched_copy: Path) -> None:
    sentence = "a 'blue' square & `x` $HOME"
    output = succeeds("visualize", "things", sentence, cwd=searched_copy).out
    line = next(part for part in output.splitlines() if "tbkin visualize" in part)
    assert shlex.split(line[line.index("tbkin visualize") :])[-1] == sentence


def test_the_features_of_a_dataset_are_used(searched_copy: Path) -> None:
    found = search(searched_copy, "things", "a blue square", "--top", "4")
    assert found["searched"] == 72
    assert (searched_copy / "things/features" / TOWERS).exists()
    assert not (searched_copy / "runs/visualize/features").exists()
    # Extraction takes the file for its own, and changes nothing.
    succeeds(*EXTRACT, cwd=searched_copy)
    assert search(searched_copy, "things", "a blue square", "--top", "4") == {
        **found, "seconds": pytest.approx(found["seconds"], abs=60)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["empty", "a red circle"], 1, "no"),
        (["things", "img.png", "a red circle"], 2, "which is searched by itself"),
        (["things", "a red circle", "--html"], 2, "a directory gets a sheet"),
        (["things", "a red circle", "--threshold", "0.3"], 2, "has no effect on a search"),
        (["things", "a red circle", "--data", "things"], 2, "has no effect on a search"),
        (["things", "xqzw kvvj"], 1, "none of its words is known"),
        (["things", ""], 2, "question: is empty"),
    ],
)
def test_what_cannot_be_searched_is_told_in_one_line(
    searched_copy: Path, arguments: Sequence[str], code: int, says: str
) -> None:
    (searched_copy / "empty").mkdir()
    draw(searched_copy / "img.png", "red", "circle", 1)
    message = fails("visualize", *arguments, cwd=searched_copy, code=code, says=says)
    assert len(message.strip().splitlines()) <= 2


def test_a_directory_takes_a_retrieval_model(trained: Path) -> None:
    line = ["visualize", "coco/val", "a red star", "--checkpoint", "runs/finetune/rec"]
    fails(*line, cwd=trained, code=2, says="is a checkpoint for rec")


# ---- vectors that are kept ----------------------------------------------------------------------


def test_kept_vectors_are_those_of_the_model_and_the_images(searched_copy: Path) -> None:
    model, _ = load_model(searched_copy / "runs/finetune/retrieval", "retrieval")
    store, device = FeatureStore(searched_copy / "things/features"), torch.device("cpu")
    fresh = tower_vectors(model, None, store, device)
    assert not (store.path / TOWERS).exists()
    first = tower_vectors(model, 1, store, device)
    np.testing.assert_allclose(first, fresh, atol=2e-3)
    np.testing.assert_array_equal(tower_vectors(model, 1, store, device), first)
    with torch.no_grad():
        model.image_tower.regions.weight.neg_()
    other = tower_vectors(model, 2, store, device)
    assert np.abs(other - first).max() > 0.1
    # A damaged file is made anew.
    file = store.path / TOWERS
    content = bytearray(file.read_bytes())
    content[-3] ^= 0xFF
    file.write_bytes(content)
    np.testing.assert_array_equal(tower_vectors(model, 2, store, device), other)


# ---- data ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(searched: Path) -> tuple[Any, Any]:
    """The trained model and its tokenizer."""
    return load_model(searched / "runs/finetune/retrieval", "retrieval")


@pytest.fixture(scope="module")
def split(searched: Path, model: tuple[Any, Any]) -> Split[Any]:
    _, tokenizer = model
    store = FeatureStore(searched / "things/features")
    captions = RetrievalTask().split_samples(open_dataset(searched / "things"), "train", None)
    return RetrievalTask().build_split(captions, InputSource(store, tokenizer, 16, 36))


def test_a_batch_holds_images_with_their_captions_and_what_is_true_of_both(split: Split[Any]) -> None:
    objective = RetrievalObjective(split, None, 8)
    assert len(objective.lengths()) == len(set(split.image_ids)) == 54
    batches = [objective.collate(np.arange(8), epoch) for epoch in range(3)]
    own, positives = batches[0]["own"], batches[0]["positives"]
    assert positives.shape == (16, 8) and positives[np.arange(16), own].all()
    images = split.inputs.rows[objective.rows[:8]]
    said = [
        {split.samples[row].text for row in np.flatnonzero(split.inputs.rows == image)} for image in images
    ]
    for text, image in itertools.product(range(16), range(8)):
        # Copies of a picture have the same captions.
        assert positives[text, image] == (said[own[text]] == said[image])
    chosen = [set(batch["own"][batch["chosen"]].tolist()) for batch in batches]
    assert set.union(*chosen) == set(range(8)), "every image is matched in some epoch"


def test_the_encoder_counts_as_much_as_is_best_on_validation(
    split: Split[Any], model: tuple[Any, Any]
) -> None:
    objective = RetrievalObjective(split, split, 8)
    found = objective.task.predict(model[0], split.inputs, torch.device("cpu"), 64)
    # An encoder that speaks against every right image.
    right = np.zeros((len(split), len(found.images)), np.bool_)
    right[split.targets.texts, split.targets.images] = True
    against = np.take_along_axis(right, found.by_text.places, axis=1)
    told = replace(
        found, by_text=replace(found.by_text, logits=np.where(against, -100, 0).astype(np.float32))
    )
    objective.task.predict = lambda *_: told  # type: ignore[method-assign]
    accuracy = objective.accuracy(None, split.inputs, torch.device("cpu"))
    reached = {weight: 100 * objective.task.scores(split, told.ordered(weight)).mean() for weight in WEIGHTS}
    assert len(set(reached.values())) > 1
    assert accuracy == pytest.approx(max(reached.values()))
    assert objective.match_weight == 0
    telling = replace(found, by_text=replace(found.by_text, logits=-told.by_text.logits))
    objective.task.predict = lambda *_: telling  # type: ignore[method-assign]
    assert objective.accuracy(None, split.inputs, torch.device("cpu")) >= accuracy
    assert objective.kept_values() == {"match_weight": objective.match_weight}


def test_linear_towers_find_what_words_and_means_tell(split: Split[Any]) -> None:
    texts = [item.text for item in split.samples]
    towers = fit_linear_towers(texts, split.inputs)
    assert towers is not None
    order = np.random.default_rng(0).permutation(len(texts))
    mixed = fit_linear_towers([texts[row] for row in order], split.inputs.part(order))
    assert mixed is not None and mixed.values == towers.values
    np.testing.assert_allclose(np.abs(mixed.texts(texts[:5])), np.abs(towers.texts(texts[:5])), atol=1e-3)


def test_towers_begin_as_linear_ones_to_which_the_encoder_adds_nothing(
    split: Split[Any], model: tuple[Any, Any]
) -> None:
    known, tokenizer = model
    task = RetrievalTask()
    fresh = TbkinForRetrieval(known.config).eval()
    for name in ("feature_mean", "feature_scale"):
        getattr(fresh.tbkin.region_embeddings, name).copy_(getattr(known.tbkin.region_embeddings, name))
    assert "begin as linear ones" in task.begin(fresh, split, tokenizer, {})
    towers = fit_linear_towers([item.text for item in split.samples], split.inputs)
    assert towers is not None
    pairs = PairEncoder(fresh, split.inputs, np.unique(split.inputs.rows), torch.device("cpu"), 16)
    # Each word of these texts is one piece, and none of the first of them is said twice in a text.
    own = [row for row, item in enumerate(split.samples) if item.text.startswith("a ")]
    np.testing.assert_allclose(
        pairs.texts[own] @ pairs.images.T,
        towers.texts([split.samples[row].text for row in own])
        @ towers.vectors(mean_vectors(split.inputs, np.unique(split.inputs.rows))).T,
        atol=2e-3,
    )


def test_the_usual_protocol_has_five_captions_an_image() -> None:
    from tbkin_core.datasets.records import Caption
    from tbkin_core.tasks import retrieval

    samples = [Caption(n, n // 7, f"text {n}", "val") for n in range(7 * (retrieval.IMAGES + 3))]
    kept = RetrievalTask().evaluated(samples)
    assert len(kept) == 5 * retrieval.IMAGES
    assert [item.text_id for item in kept[:6]] == [0, 1, 2, 3, 4, 7]


def test_captions_that_cannot_be_learnt_are_told(tmp_path: Path) -> None:
    place = tmp_path / "data"
    (place / "images").mkdir(parents=True)
    draw(place / "images/one.png", "red", "circle", 0)
    (place / "captions.jsonl").write_text('{"caption": "a text of no image"}\n')
    succeeds("extract-features", "data", "--workers", "0", cwd=tmp_path)
    line = ["finetune", "--task", "retrieval", "--data", "data", "--epochs", "1", "--devices", "cpu"]
    fails(*line, cwd=tmp_path, code=1, says="no captions of images")
    one = json.dumps({"image": "images/one.png", "caption": "a red circle"})
    (place / "captions.jsonl").write_text(f"{one}\n")
    fails(*line, cwd=tmp_path, code=1, says="one image alone cannot be divided")
    fails(*line, "--dataset", "mine", cwd=tmp_path, code=2, says="captions are one set")


@pytest.mark.parametrize("official", [False, True])
def test_validation_on_captions_that_were_pretrained_on_is_told(tmp_path: Path, official: bool) -> None:
    drawn_world(tmp_path / "things", copies=2)
    file = tmp_path / "things/captions.jsonl"
    if not official:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in rows))
    succeeds(*EXTRACT, cwd=tmp_path)
    succeeds("build-graphs", "things", cwd=tmp_path)
    succeeds("pretrain", "things", "--epochs", "1", "--devices", "cpu", cwd=tmp_path)
    for init in ("auto", "none"):
        line = f"finetune --task retrieval --data things --epochs 1 --devices cpu --init {init} --json"
        told = "val flatters" in succeeds(*line.split(), cwd=tmp_path).out
        assert told == (init == "auto" and not official)


def test_inputs_of_a_part_are_those_of_its_samples(split: Split[Any]) -> None:
    rows = np.array([5, 2, 9])
    part, whole = split.inputs.part(rows).batch(np.arange(3)), split.inputs.batch(rows)
    for name, value in to_device(whole, torch.device("cpu")).items():
        assert torch.equal(to_device(part, torch.device("cpu"))[name], value), name
