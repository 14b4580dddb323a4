"""The pretraining task over real stores: what a batch may and may not tell."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails, succeeds
from tiny_plans import tiny_plan

from tbkin_core.errors import DataError
from tbkin_core.features.regions import RegionFeatures
from tbkin_core.features.store import FeatureStore, RegionBatch, feature_statistics
from tbkin_core.features.writing import write_feature_store
from tbkin_core.graphs.store import GraphStore
from tbkin_core.modeling import TbkinConfig, TbkinForPreTraining, TbkinForVqa
from tbkin_core.modeling.checkpoint import apply_init
from tbkin_core.support.devices import resolve_devices
from tbkin_core.support.randomness import mix
from tbkin_core.tasks.base import Split
from tbkin_core.tasks.captions import caption_texts, join_tables, load_captions, select_captions
from tbkin_core.tasks.inputs import Inputs, model_inputs, to_device
from tbkin_core.tasks.masking import MaskingConfig
from tbkin_core.tasks.pretraining import VALIDATION_EPOCH, PretrainObjective
from tbkin_core.tasks.vqa import VqaTask
from tbkin_core.texts.table import encode_texts
from tbkin_core.texts.tokenizer import build_tokenizer, extend_tokenizer
from tbkin_core.training.run import train
from tbkin_core.training.step import Learner


@pytest.fixture
def parts(trained_workspace: Path) -> tuple[FeatureStore, GraphStore]:
    return FeatureStore(trained_workspace / "coco/features"), GraphStore(trained_workspace / "coco/graphs")


def task_over(
    parts: tuple[FeatureStore, GraphStore],
    masking: MaskingConfig,
    mismatch: float = 0.5,
    weights: list[float] | None = None,
    tells_words: bool = False,
    match_hidden: bool = False,
    validates: bool = False,
) -> PretrainObjective:
    """The task over the training captions, cut into as many datasets as there are weights."""
    features, graphs = parts
    table = load_captions(graphs, ["train"], features)
    count = len(weights or [1])
    return PretrainObjective(
        [(select_captions(table, np.arange(len(table)) % count == part), features) for part in range(count)],
        [(load_captions(graphs, ["val"], features), features)] if validates else [],
        build_tokenizer(caption_texts(graphs, ["train"])),
        masking,
        seed=0,
        mismatch=mismatch,
        ot_weight=0.1,
        max_text_tokens=32,
        max_regions=36,
        batch_size=8,
        weights=weights,
        tells_words=tells_words,
        match_hidden=match_hidden,
    )


def test_masks_do_not_tell_whether_image_and_text_belong_together(
    parts: tuple[FeatureStore, GraphStore],
) -> None:
    # Regions alone, always hidden where chosen: then a zero vector is a mask.
    masking = MaskingConfig(text_side=0.0, mask=1.0, replace=0.0, cross_modal=0.9, image_structure=False)
    task = task_over(parts, masking, match_hidden=True)
    rows = np.arange(len(task.lengths()))
    shares: dict[bool, list[float]] = {True: [], False: []}
    for epoch in range(60):
        batch = task.collate(rows, epoch)
        hidden = (np.asarray(batch["region_features"]) == 0).all(axis=-1) & batch["region_mask"]
        share = hidden.sum(axis=1) / batch["region_mask"].sum(axis=1)
        for matched, value in zip(batch["matched"], share, strict=True):
            shares[bool(matched)].append(float(value))
    means = {matched: np.mean(values) for matched, values in shares.items()}
    error = np.sqrt(sum(np.var(values) / len(values) for values in shares.values()))
    assert means[True] > 0.16  # anchored regions are masked above the base rate
    assert abs(means[True] - means[False]) < 4 * error


def test_half_of_the_captions_are_asked_for_their_match_with_nothing_hidden(
    parts: tuple[FeatureStore, GraphStore],
) -> None:
    masking = MaskingConfig(mask=1.0, replace=0.0)
    task = task_over(parts, masking)
    rows = np.arange(len(task.lengths()))
    whole, _, _ = task.train.table.padded(rows)
    asked, swapped = [], []
    for epoch in range(20):
        batch = task.collate(rows, epoch)
        labels = batch["match_labels"]
        said = (batch["input_ids"] == whole).all(axis=1)
        seen = (batch["visible_regions"] == batch["region_mask"]).all(axis=1)
        seen &= ~((np.asarray(batch["region_features"]) == 0).all(axis=-1) & batch["region_mask"]).any(axis=1)
        told = labels >= 0
        assert (said & seen)[told].all()
        assert (said | seen)[~told].all(), "one side of the others"
        assert not (said & seen)[~told].all()
        assert batch["matched"][~told].all(), "they keep their image"
        np.testing.assert_array_equal(labels[told], batch["matched"][told])
        assert task.targets(batch, epoch)["itm"] == told.sum()
        asked.append(told.mean())
        swapped.append(1 - labels[told].mean())
        places = np.unique(batch["text_places"] // whole.shape[1])
        assert len(places) and not told[places].any()
    error = 1 / np.sqrt(20 * len(rows))
    assert abs(np.mean(asked) - 0.5) < 2 * error and abs(np.mean(swapped) - 0.5) < 4 * error
    # All are asked, or none where there is no other answer.
    assert (task_over(parts, masking, match_hidden=True).collate(rows, 0)["match_labels"] >= 0).all()
    assert (task_over(parts, masking, mismatch=0.0).collate(rows, 0)["match_labels"] < 0).all()


def test_what_is_not_asked_for_its_match_teaches_none(parts: tuple[FeatureStore, GraphStore]) -> None:
    task = task_over(parts, MaskingConfig())
    batch = to_device(task.collate(np.arange(32), 0), torch.device("cpu"))
    model = tiny_model(task).eval()
    task.losses(model, batch, 0)["itm"].backward()
    expected = {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    model.zero_grad()
    asked = batch["match_labels"] >= 0
    output = model(**{name: value[asked] for name, value in model_inputs(batch).items()})
    torch.nn.functional.cross_entropy(output.itm_logits, batch["matched"][asked], reduction="sum").backward()
    for name, grad in expected.items():
        own = model.get_parameter(name).grad
        torch.testing.assert_close(grad, torch.zeros_like(grad) if own is None else own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("match_hidden", [False, True])
def test_validation_asks_every_caption_for_its_match_and_for_what_is_hidden(
    parts: tuple[FeatureStore, GraphStore], match_hidden: bool
) -> None:
    task = task_over(parts, MaskingConfig(), match_hidden=match_hidden, validates=True)
    assert task.validation is not None
    model = tiny_model(task).eval()
    with torch.no_grad():  # it always says yes
        model.itm_head.weight.zero_()
        model.itm_head.bias.copy_(torch.tensor([0.0, 1.0]))
    values = task.evaluate(model, torch.device("cpu"))
    rows = np.arange(len(task.validation.table))
    _, matched = task.validation.partners(rows, rows, mix(0, VALIDATION_EPOCH), 0.5)
    assert values["val_itm_accuracy"] == pytest.approx(100 * matched.mean())
    assert {"val_mlm_accuracy", "val_mlm_without_image_accuracy", "val_mrfr_loss"} <= set(values)


def test_datasets_side_by_side_keep_their_captions_and_regions(
    parts: tuple[FeatureStore, GraphStore],
) -> None:
    features, graphs = parts
    side = task_over(parts, MaskingConfig(), weights=[1.0, 1.0]).train
    counts, half = features.region_counts(side.rows), int((side.store_of == 0).sum())
    fewest, most = int(counts[:half].argmin()), half + int(counts[half:].argmax())
    for rows in (np.arange(len(counts)), np.array([most, fewest])):
        together, alone = side.regions(rows, 36), features.gather(side.rows[rows], 36)
        for name in RegionBatch.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))
    table = load_captions(graphs, ["train"], features)
    even = np.arange(len(table)) % 2 == 0
    joined = join_tables([select_captions(table, even), select_captions(table, ~even)])
    back = np.argsort(np.concatenate([np.flatnonzero(even), np.flatnonzero(~even)]))
    for offsets, values in (("pair_offsets", "pair_prior"), ("cross_offsets", "cross_weight")):
        before, after = (np.split(getattr(it, values), getattr(it, offsets)[1:-1]) for it in (table, joined))
        assert [part.tolist() for part in before] == [after[place].tolist() for place in back]


def test_a_negative_never_has_the_image_of_its_caption(parts: tuple[FeatureStore, GraphStore]) -> None:
    task = task_over(parts, MaskingConfig(), mismatch=1.0, match_hidden=True)
    rows = np.arange(len(task.lengths()))
    for epoch in range(5):
        partner, matched = task.train.partners(rows, rows, epoch, 1.0)
        assert not matched.any()
        assert (task.train.rows[partner] != task.train.rows[rows]).all()
    batch = task.collate(rows, 0)
    assert len(batch["text_labels"]) == 0 and len(batch["feature_labels"]) == 0


def test_a_sample_is_masked_alike_in_every_batch(parts: tuple[FeatureStore, GraphStore]) -> None:
    task = task_over(parts, MaskingConfig())
    together = task.collate(np.arange(8), 3)
    for row in range(8):
        alone = task.collate(np.array([row]), 3)
        length = alone["input_ids"].shape[1]
        assert (alone["input_ids"][0] == together["input_ids"][row, :length]).all()
        regions = alone["region_features"].shape[1]
        one, of_many = (np.asarray(batch["region_features"]) for batch in (alone, together))
        np.testing.assert_array_equal(one[0], of_many[row, :regions])


def test_only_training_captions_are_learnt_from(parts: tuple[FeatureStore, GraphStore]) -> None:
    features, graphs = parts
    splits = [split for shard in graphs.shards for split in shard.splits]
    assert {"train", "val", "test"} <= set(splits)
    assert len(caption_texts(graphs, ["train"])) == splits.count("train")
    table = load_captions(graphs, ["train"], features)
    half = select_captions(table, np.arange(len(table)) % 2 == 0)
    assert half.tokens == table.tokens[::2]
    assert half.pair_offsets[-1] == len(half.pair_word)


def test_statistics_of_some_images_are_theirs(parts: tuple[FeatureStore, GraphStore]) -> None:
    features, _ = parts
    rows = [0, 2, 3, 3]
    mean, scale = feature_statistics([(features, rows)])
    batch = features.gather([0, 2, 3])
    expected = np.asarray(batch.features[batch.mask])
    np.testing.assert_allclose(mean, expected.mean(axis=0), atol=1e-5)
    loose = scale < scale.max() * 0.99  # the others are bounded
    np.testing.assert_allclose(1 / scale[loose], expected.std(axis=0)[loose], rtol=1e-3, atol=1e-5)


def test_weights_say_how_often_each_dataset_is_shown(parts: tuple[FeatureStore, GraphStore]) -> None:
    task = task_over(parts, MaskingConfig(), weights=[2.5, 1.0, 0.25, 0.0])
    sizes = np.bincount(task.train.store_of)
    begin = np.concatenate([[0], np.cumsum(sizes)])
    shown = np.zeros(begin[-1])
    epochs = [task.samples(epoch) for epoch in range(40)]
    rows_of: dict[int, set[int]] = {}
    for samples in epochs:
        assert len(samples) == len(epochs[0]) == len(set(samples.tolist()))
        lengths = task.lengths()[samples]
        rows = task._row_of[samples]
        np.testing.assert_array_equal(lengths, task.train.table.lengths[rows])
        shown += np.bincount(rows, minlength=len(shown))
        for sample, row in zip(samples.tolist(), rows.tolist(), strict=True):
            rows_of.setdefault(row, set()).add(sample)
    share = [shown[begin[part] : begin[part + 1]] / len(epochs) for part in range(4)]
    for part, weight in enumerate([2.5, 1.0, 0.25, 0.0]):
        assert share[part].mean() == pytest.approx(weight, abs=0.5 / sizes[part])
    assert share[0].min() >= 2 and share[0].max() <= 3
    assert (share[1] == 1).all()
    assert share[2].min() > 0, "every epoch shows others"
    # Shown twice in an epoch, a caption is hidden otherwise each time.
    twice = np.array(sorted(rows_of[0])[:2])
    hidden = [
        task.collate(np.array([key]), epoch)["input_ids"].tobytes() for key in twice for epoch in range(9)
    ]
    assert hidden[:9] != hidden[9:]
    with pytest.raises(DataError, match="weights"):
        task_over(parts, MaskingConfig(), weights=[0.0])


# ---- the loop -----------------------------------------------------------------------------------


def tiny_model(task: PretrainObjective, **values: Any) -> TbkinForPreTraining:
    torch.manual_seed(0)
    store = task.train.stores[0]
    config = TbkinConfig(
        vocab_size=task.vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        region_feature_size=store.feature_size, num_object_classes=len(store.object_names) or 1,
        num_attribute_classes=len(store.attribute_names) or 1, **values,
    )  # fmt: skip
    return TbkinForPreTraining(config)


def test_words_are_told_from_what_is_visible_of_the_own_image(
    parts: tuple[FeatureStore, GraphStore],
) -> None:
    task = task_over(parts, MaskingConfig(), tells_words=True)
    rows = np.arange(32)
    batch = task.collate(rows, 0)
    whole, _, _ = task.train.table.padded(rows)
    np.testing.assert_array_equal(batch["caption_ids"], whole, "nothing of it is masked")
    told = batch["caption_words"]
    assert not told[~batch["matched"].astype(bool)].any()
    assert not told[whole < task.first_ordinary].any()
    assert told[batch["matched"].astype(bool)].any(axis=1).all()
    hidden = (np.asarray(batch["region_features"]) == 0).all(axis=-1) & batch["region_mask"]
    assert hidden.any() and not (batch["visible_regions"] & (hidden | ~batch["region_mask"])).any()
    assert task.targets(batch, 0)["words"] == batch["matched"].sum()

    model = tiny_model(task, direct_width=8).eval()  # as without dropout
    arrays = to_device(batch, torch.device("cpu"))
    losses = task.losses(model, arrays, 0)
    losses["words"].backward()
    taught = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert taught == {name for name, _ in model.named_parameters() if name.startswith("direct.")}
    other = arrays | {"region_features": arrays["region_features"].clone()}
    other["region_features"][~arrays["visible_regions"]] = 1e4
    with torch.no_grad():
        again = task.losses(model, other, 0)["words"]
    assert float(again) == pytest.approx(losses["words"].item(), rel=1e-4)
    assert "words" not in task_over(parts, MaskingConfig()).targets(batch, 0)


def words_model(tokenizer: Any, answers: list[str]) -> tuple[TbkinForVqa, dict[str, torch.Tensor]]:
    """A VQA model that begins from a pretrained one which knows words of images, and that one's weights."""
    torch.manual_seed(1)
    values = {
        "vocab_size": tokenizer.get_vocab_size() - 1, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "region_feature_size": 6, "direct_width": 4,
    }  # fmt: skip
    pretrained = TbkinForPreTraining(TbkinConfig(**values))
    weights = pretrained.state_dict()
    values |= {"vocab_size": tokenizer.get_vocab_size(), "direct_words": True}
    given = {"num_answers": len(answers), "id2label": dict(enumerate(answers))}
    model = TbkinForVqa(TbkinConfig(**values, **given)).eval()
    apply_init(model, weights, "runs/pretrain")
    return model, weights


def split_of(tmp_path: Path) -> Split:
    """Of three images that are asked about."""
    source = np.random.default_rng(0)
    images = []
    for number in range(3):
        corners = source.random((4, 2), np.float32) * 50
        boxes = np.concatenate([corners, corners + 20], axis=1)
        images.append(RegionFeatures(number, source.normal(size=(4, 6)).astype(np.float32), boxes, 80, 80))
    store = write_feature_store(tmp_path / "features", {"extractor": "drawn", "feature_size": 6}, images)
    inputs = Inputs(encode_texts(TOKENS, ["two dogs", "a red ball", "a yak"], 8), np.arange(3), store, 36)
    return Split([], inputs, [])


# "yak" is a word that pretraining did not have.
TOKENS = extend_tokenizer(build_tokenizer(["two dogs run", "a red ball on grass"]), ["yak"])[0]


def test_answers_begin_with_the_images_that_their_words_are_said_of(tmp_path: Path) -> None:
    answers = ["2", "red ball", "yes", "zebra", "dogs"]
    model, weights = words_model(TOKENS, answers)
    split = split_of(tmp_path)
    said = VqaTask().begin(model, split, TOKENS, weights)
    assert said.startswith("3 answers")
    table, numbers = weights["direct.vocabulary.weight"], TOKENS.get_vocab()
    two, red, ball, dogs = (table[numbers[word]] for word in ("two", "red", "ball", "dogs"))
    direct, none = model.direct, torch.zeros(4)
    assert direct is not None and direct.met is not None
    rows = direct.answers.weight.detach()
    torch.testing.assert_close(rows[:, 4:], torch.stack([two, (red + ball) / 2, none, none, dogs]))
    assert not rows[:, :4].any(), "questions are not known yet"
    assert torch.equal(direct.regions.weight, weights["direct.regions.weight"])
    assert direct.met.weight.nonzero().tolist() == [[2, 0]], "yes, where words fit on the mean"
    assert direct.vocabulary.bias[-1] < -20 and direct.usual[-1] == 0, "a new word is said of no image"
    # Trained on, it is begun with nothing again but what it does not know.
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    further, _ = words_model(TOKENS, [*answers, "run"])
    apply_init(further, begun, "run", answers)
    assert VqaTask().begin(further, split, TOKENS, begun).startswith("1 answers")
    assert VqaTask().begin(model, split, TOKENS, {}) == ""


def test_words_that_an_image_fits_are_told_from_its_chances(tmp_path: Path) -> None:
    model, weights = words_model(TOKENS, ["yes", "no"])
    split = split_of(tmp_path)
    VqaTask().begin(model, split, TOKENS, weights)
    direct = model.direct
    assert direct is not None
    batch = to_device(split.inputs.batch(np.arange(3)), torch.device("cpu"))
    with torch.no_grad():
        vectors = model.tbkin.region_embeddings.standardised(batch["region_features"])
        area = batch["region_geometry"][..., 4]
        image = direct.of_image((vectors * area[..., None]).sum(1) / area.sum(1, keepdim=True))
        chances = direct.chances(image)
        torch.testing.assert_close(chances.exp().sum(1), torch.ones(3))
        vocabulary = sorted(TOKENS.get_vocab().items(), key=lambda entry: entry[1])[:-1]
        words = torch.tensor([any(map(str.isalnum, token)) and "[" not in token for token, _ in vocabulary])
        expected = torch.where(words, chances.mean(0)[:-1], 0.0)
        torch.testing.assert_close(direct.usual[:-1], expected)
        assert not direct.usual[[TOKENS.token_to_id(token) for token in ("[CLS]", "[SEP]", "?")]].any()
        found = direct.meetings(image, batch["input_ids"], batch["attention_mask"].bool())
        for row in range(3):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
            known = [chances[row, it] - direct.usual[it] for it in ids if direct.usual[it] < 0]
            assert 0 < len(known) < len(ids)
            told = [sum(known) / len(known), min(known), max(known), sum(known)]
            torch.testing.assert_close(found[row], torch.stack(told))
        dark = model(**{**batch, "region_mask": torch.zeros_like(batch["region_mask"])}).vqa_logits
        other = {**batch, "region_mask": torch.zeros_like(batch["region_mask"])}
        other["region_features"] = other["region_features"] + 5
        torch.testing.assert_close(model(**other).vqa_logits, dark)
        nothing = direct.meetings(image, torch.full((3, 2), len(direct.usual) - 1), torch.ones(3, 2).bool())
        assert not nothing.any()


def test_masked_words_are_read_with_and_without_the_image(parts: tuple[FeatureStore, GraphStore]) -> None:
    """A model that knows each word, but only where it sees a region."""
    task = task_over(parts, MaskingConfig())
    task.validation, table = task.train, task.train.table
    model = tiny_model(task)
    read, begin = model.forward, 0

    def forward(**inputs: Any) -> Any:
        nonlocal begin
        output, seen = read(**inputs), bool(inputs["region_mask"].any())
        if not len(inputs["text_places"]):  # asked for its match
            return output
        size = len(inputs["input_ids"])
        words = torch.from_numpy(table.padded(np.arange(begin, begin + size))[0]).flatten()
        right = words[inputs["text_places"]]
        output.mlm_logits = torch.nn.functional.one_hot(right if seen else right - 1, task.vocabulary)
        begin += 0 if seen else size  # without the image it is read last
        return output

    model.forward = forward  # type: ignore[method-assign]
    values = task.evaluate(model, torch.device("cpu"))
    assert begin == len(table)
    assert values["val_mlm_accuracy"] == 100
    assert values["val_mlm_without_image_accuracy"] == 0


def trained_on(
    task: PretrainObjective, out: Path, largest: int | None = None, **settings: Any
) -> tuple[TbkinForPreTraining, list[int]]:
    """A tiny model after two epochs, and the sizes of its batches; more than `largest` are too many."""
    sizes: list[int] = []
    losses = task.losses

    def limited(model: Any, batch: Any, epoch: int) -> Any:
        size = len(batch["input_ids"])
        if largest is not None and size > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(size)
        return losses(model, batch, epoch)

    model = tiny_model(task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "losses", limited)
        train(
            task,
            model,
            tiny_plan(**settings),  # fp32: equal to the last digits, whatever is taken at once
            out,
            resolve_devices("cpu"),
            lambda best: None,
        )
    return model, sizes


def test_out_of_memory_takes_fewer_at_once_and_the_same_batch(
    parts: tuple[FeatureStore, GraphStore], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = task_over(parts, MaskingConfig())
    logger = logging.getLogger("tbkin")
    with caplog.at_level("WARNING", logger="tbkin"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "handlers", [caplog.handler])
        patch.setattr(logger, "propagate", False)
        halved, sizes = trained_on(task, tmp_path / "halved", largest=3)
    assert max(sizes) == 2
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "out of memory with 8 samples at once",
        "out of memory with 4 samples at once",
    ]
    asked, _ = trained_on(task, tmp_path / "asked", micro_batch_size=2)
    for (name, one), other in zip(halved.named_parameters(), asked.parameters(), strict=True):
        assert torch.equal(one, other), name
    whole, sizes = trained_on(task, tmp_path / "whole")
    assert max(sizes) == 8
    for (name, one), other in zip(halved.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(one, other[1], atol=2e-4, rtol=1e-3, msg=name)
    with pytest.raises(DataError, match=r"not finite .* captions of images \d+, \d+"):
        trained_on(task, tmp_path / "infinite", learning_rate=1e30)
    with pytest.raises(DataError, match="out of memory with 1 samples"):
        trained_on(task, tmp_path / "none", largest=0)


def test_features_kept_on_a_device_teach_the_same_and_make_room_first(
    parts: tuple[FeatureStore, GraphStore], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, cpu = task_over(parts, MaskingConfig()), torch.device("cpu")
    read, _ = trained_on(task, tmp_path / "read")
    needed = 2 * (len(task.vectors) + 1) * task.vectors.width
    assert task.vectors.keep_on(cpu, most=needed - 1) == 0
    assert task.vectors.keep_on(cpu, most=needed) == needed
    batch = to_device(task.collate(np.arange(4), 0), cpu)
    assert batch["region_features"].dtype == torch.float16
    kept, _ = trained_on(task, tmp_path / "kept")
    for (name, one), other in zip(kept.named_parameters(), read.parameters(), strict=True):
        assert torch.equal(one, other), name
    logger = logging.getLogger("tbkin")
    with caplog.at_level("WARNING", logger="tbkin"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "handlers", [caplog.handler])
        patch.setattr(logger, "propagate", False)
        trained_on(task, tmp_path / "full", largest=7)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "no longer kept" in messages[0] and "with 8 samples" in messages[1]
    assert not task.vectors.release(), "they are gone already"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_that_is_not_finite_moves_nothing(
    parts: tuple[FeatureStore, GraphStore], precision: str
) -> None:
    task = task_over(parts, MaskingConfig())
    model, plan = tiny_model(task), tiny_plan(precision=precision)
    learner = Learner(task, model, plan, torch.device("cpu"))
    learner.train()
    window = learner.fetched(learner.window(np.arange(8), 0))
    for number in range(2):
        learner.step(window, number, 0, 1e-3)

    def state() -> list[torch.Tensor]:
        moments = [value for held in learner.optimizer.state.values() for value in held.values()]
        return [value.clone() for value in (*model.state_dict().values(), *moments)]

    before = state()
    broken = {**window.batches[0], "feature_labels": window.batches[0]["feature_labels"] * math.nan}
    with pytest.raises(DataError, match="not finite"):
        learner.step(replace(window, batches=[broken]), 2, 0, 1e-3)
    assert all(map(torch.equal, before, state()))
    learner.step(window, 3, 0, 1e-3)
    assert not all(map(torch.equal, before, state()))


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_encoder_learns_at_its_share_of_the_rate(
    parts: tuple[FeatureStore, GraphStore], share: float
) -> None:
    task = task_over(parts, MaskingConfig())
    model, plan = tiny_model(task), tiny_plan(encoder_rate=share, weight_decay=0.0)
    learner = Learner(task, model, plan, torch.device("cpu"))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    window = learner.fetched(learner.window(np.arange(8), 0))
    rate = 1e-3
    learner.step(window, 0, 0, rate)
    moved = {name: float((it.detach() - before[name]).abs().max()) for name, it in model.named_parameters()}
    encoder = {name for name in moved if name.startswith("tbkin.")}
    # Adam's first step is by the rate, whatever the gradient.
    assert max(moved[name] for name in encoder) == pytest.approx(share * rate, rel=0.01)
    assert max(moved[name] for name in moved if name not in encoder) == pytest.approx(rate, rel=0.01)
    assert learner.optimizer.param_groups[0]["lr"] == rate, "which is noted"


def test_out_of_memory_in_the_optimizer_ends_the_run_in_words(
    parts: tuple[FeatureStore, GraphStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some weights may have moved by then: taking the step again would move them twice."""
    task = task_over(parts, MaskingConfig())
    learner = Learner(task, tiny_model(task), tiny_plan(), torch.device("cpu"))
    window = learner.fetched(learner.window(np.arange(8), 0))

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(learner.optimizer, "step", full)
    with pytest.raises(DataError, match="out of memory in the optimizer's step 7") as caught:
        learner.step(window, 7, 0, 1e-3)
    assert "keep_features" in (caught.value.hint or "")


def test_values_of_every_objective_reach_tensorboard(
    parts: tuple[FeatureStore, GraphStore], tmp_path: Path
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    task = task_over(parts, MaskingConfig())
    trained_on(task, tmp_path, tensorboard=True)
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    steps = 2 * -(-len(task.lengths()) // 8)
    assert {f"step/{name}" for name in ("mlm", "mrfr", "object", "itm")} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("step/mlm")] == list(range(steps))
    assert [event.step for event in found.Scalars("epoch/loss_mlm")] == [1, 2]


def test_a_run_goes_on_with_the_threads_that_it_began_with(
    parts: tuple[FeatureStore, GraphStore], tmp_path: Path
) -> None:
    """Another number of threads adds the gradients of layer norms in another order."""
    task = task_over(parts, MaskingConfig())
    before = torch.get_num_threads()
    collate, calls = task.collate, 0

    def stopping(rows: Any, epoch: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return collate(rows, epoch)

    try:
        torch.set_num_threads(2)
        whole, _ = trained_on(task, tmp_path / "whole")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(task, "collate", stopping)
            trained_on(task, tmp_path / "cut", save_minutes=0.0)
        torch.set_num_threads(1)
        rest, _ = trained_on(task, tmp_path / "cut")
        assert torch.get_num_threads() == 1, "for this run alone"
    finally:
        torch.set_num_threads(before)
    for (name, one), other in zip(whole.named_parameters(), rest.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_finished_run_does_not_speak_of_captions_that_have_changed(trained_workspace: Path) -> None:
    line = ("pretrain", "coco", "--epochs", "1", "--devices", "cpu")
    assert "had finished already" in succeeds(*line, cwd=trained_workspace).out
    for split in ("val", "train"):
        file = trained_workspace / f"coco/annotations/captions_{split}.json"
        whole = file.read_text()
        content = json.loads(whole)
        content["annotations"][0]["caption"] = "a purple dog on a green horse"
        file.write_text(json.dumps(content))
        succeeds("build-graphs", "coco", "--workers", "0", cwd=trained_workspace)
        says = ("have changed since this run began (captions of coco)", "--overwrite")
        fails(*line, cwd=trained_workspace, code=1, says=says)
        file.write_text(whole)
    succeeds("build-graphs", "coco", "--workers", "0", cwd=trained_workspace)
    assert "had finished already" in succeeds(*line, cwd=trained_workspace).out


def test_the_store_with_most_regions_says_how_many_are_read(trained_workspace: Path) -> None:
    shutil.copytree(trained_workspace / "coco", trained_workspace / "few")
    extract = ("extract-features", "few", "--overwrite", "--max-regions", "8", "--workers", "0")
    succeeds(*extract, cwd=trained_workspace)
    succeeds("build-graphs", "few", "--overwrite", "--workers", "0", cwd=trained_workspace)
    for order in (("few", "coco"), ("coco", "few")):
        line = ("pretrain", *order, "--epochs", "0", "--out", f"{order[0]}-first", "--devices", "cpu")
        succeeds(*line, cwd=trained_workspace)
        config = json.loads((trained_workspace / f"{order[0]}-first/config.json").read_text())
        assert config["max_regions"] == config["extractor"]["max_regions"] == 36


def test_captions_without_features_are_counted_and_a_dataset_is_named_once(trained_workspace: Path) -> None:
    line = ("pretrain", "coco", "--epochs", "0", "--devices", "cpu", "--out", "some", "--json")
    whole = json.loads(succeeds(*line, cwd=trained_workspace).out)
    assert not any("left out, they have" in note for note in whole["problems"])
    pictures = sorted((trained_workspace / "coco/train").glob("*.jpg"))
    for picture in pictures[:3]:
        picture.unlink()
    for command in ("extract-features", "build-graphs"):
        succeeds(command, "coco", "--overwrite", "--workers", "0", cwd=trained_workspace)
    fewer = json.loads(succeeds(*line, "--overwrite", cwd=trained_workspace).out)
    (note,) = (note for note in fewer["problems"] if "left out, they have" in note)
    assert fewer["captions"] < whole["captions"] and note.startswith("coco: ")
    (trained_workspace / "again").symlink_to("coco", target_is_directory=True)
    says = ("data: again is coco again", "name each dataset once")
    fails("pretrain", "coco", "again", cwd=trained_workspace, code=2, says=says)
    for picture in (trained_workspace / "coco/train").glob("*.jpg"):
        picture.unlink()
    for command in ("extract-features", "build-graphs"):
        succeeds(command, "coco", "--overwrite", "--workers", "0", cwd=trained_workspace)
    fails(
        *line,
        "--overwrite",
        cwd=trained_workspace,
        code=1,
        says=("holds features of no image of the captions",),
    )
