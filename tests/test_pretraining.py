"""The pretraining task over real stores: what a batch may and may not tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import trained, trained_workspace, world

from tbkin_core.batches import build_tokenizer
from tbkin_core.features.store import FeatureStore, feature_statistics
from tbkin_core.graphs.store import GraphStore
from tbkin_core.masking import MaskingConfig
from tbkin_core.pretraining import PretrainTask, caption_texts, load_captions, select_captions

__all__ = ["trained", "trained_workspace", "world"]  # fixtures


@pytest.fixture
def parts(trained_workspace: Path) -> tuple[FeatureStore, GraphStore]:
    return FeatureStore(trained_workspace / "coco/features"), GraphStore(trained_workspace / "coco/graphs")


def task_over(
    parts: tuple[FeatureStore, GraphStore], masking: MaskingConfig, mismatch: float = 0.5
) -> PretrainTask:
    features, graphs = parts
    table = load_captions(graphs, ["train"], features)
    return PretrainTask(
        [(table, features)],
        [],
        build_tokenizer(caption_texts(graphs, ["train"])),
        masking,
        seed=0,
        mismatch=mismatch,
        ot_weight=0.1,
        max_text_tokens=32,
        max_regions=36,
        batch_size=8,
    )


def test_masks_do_not_tell_whether_image_and_text_belong_together(
    parts: tuple[FeatureStore, GraphStore],
) -> None:
    # Regions alone, always hidden where chosen: then a zero vector is a mask.
    masking = MaskingConfig(text_side=0.0, mask=1.0, replace=0.0, cross_modal=0.9, image_structure=False)
    task = task_over(parts, masking)
    rows = np.arange(len(task.lengths()))
    shares: dict[bool, list[float]] = {True: [], False: []}
    for epoch in range(60):
        batch = task.collate(rows, epoch)
        hidden = (batch["region_features"] == 0).all(axis=-1) & batch["region_mask"]
        share = hidden.sum(axis=1) / batch["region_mask"].sum(axis=1)
        for matched, value in zip(batch["matched"], share, strict=True):
            shares[bool(matched)].append(float(value))
    means = {matched: np.mean(values) for matched, values in shares.items()}
    error = np.sqrt(sum(np.var(values) / len(values) for values in shares.values()))
    assert means[True] > 0.16  # anchored regions are masked above the base rate
    assert abs(means[True] - means[False]) < 4 * error


def test_a_negative_never_has_the_image_of_its_caption(parts: tuple[FeatureStore, GraphStore]) -> None:
    task = task_over(parts, MaskingConfig(), mismatch=1.0)
    rows = np.arange(len(task.lengths()))
    for epoch in range(5):
        partner, matched = task.train.partners(rows, epoch, 1.0)
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
        assert (alone["region_features"][0] == together["region_features"][row, :regions]).all()


def test_only_training_captions_are_learnt_from(parts: tuple[FeatureStore, GraphStore]) -> None:
    features, graphs = parts
    splits = [split for _, metadata in graphs.shards for split in metadata["splits"]]
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
    expected = batch.features[batch.mask]
    np.testing.assert_allclose(mean, expected.mean(axis=0), atol=1e-5)
    loose = scale < scale.max() * 0.99  # the others are bounded
    np.testing.assert_allclose(1 / scale[loose], expected.std(axis=0)[loose], rtol=1e-3, atol=1e-5)
