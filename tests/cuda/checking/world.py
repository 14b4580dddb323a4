"""The check's own data: drawn regions, questions, expressions, and captions with a drawn structure.

Letters: N captions, K regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from model_speed import REGIONS, TOKENS, drawn_features

from tbkin_core.datasets.records import Expression, Question
from tbkin_core.features.store import FeatureStore
from tbkin_core.modeling import TbkinConfig, TbkinForPreTraining, TbkinForRec, TbkinForVqa
from tbkin_core.modeling.configuration import SIZES
from tbkin_core.support.shards import ragged_offsets
from tbkin_core.tasks.captions import CaptionTable
from tbkin_core.tasks.inputs import InputSource
from tbkin_core.tasks.masking import MaskingConfig
from tbkin_core.tasks.pretraining import PretrainObjective
from tbkin_core.tasks.rec import RecObjective, RecTask
from tbkin_core.tasks.vqa import VqaObjective, VqaTask
from tbkin_core.texts.tokenizer import SPECIAL_TOKENS, tokenizer_of
from tbkin_core.training.plan import TrainingPlan

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = TOKENS - 2  # of a text; the rest are [CLS] and [SEP]
OBJECTS_PER_CAPTION, EDGES_PER_OBJECT = 4, 2


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a world is."""

    images: int
    texts_per_image: int
    feature_size: int
    vocabulary: int
    answers: int
    fewest_regions: int = REGIONS  # of an image; the most are 36
    fewest_words: int = WORDS  # of a text; the most are 18


@dataclass(frozen=True, slots=True)
class World:
    """A feature store, and texts about its images."""

    shape: Shape
    store: FeatureStore
    tokenizer: Tokenizer
    texts: list[str]
    image_ids: list[Any]  # of each text


def make_world(place: Path, shape: Shape) -> World:
    """Draw a world, its features into the directory `place`; the same there is taken up again."""
    ids = list(range(1, shape.images + 1))
    if place.exists():
        store = FeatureStore(place)
    else:
        store = drawn_features(place, ids, shape.feature_size, shape.fewest_regions)
    words = [f"w{number}" for number in range(shape.vocabulary - len(SPECIAL_TOKENS))]
    chance = np.random.default_rng(1)
    count = shape.images * shape.texts_per_image
    drawn = chance.integers(0, len(words), (count, WORDS))
    lengths = chance.integers(shape.fewest_words, WORDS + 1, count)
    texts = [
        " ".join(words[number] for number in row[:length])
        for row, length in zip(drawn.tolist(), lengths.tolist(), strict=True)
    ]
    image_ids = np.tile(ids, shape.texts_per_image).tolist()
    return World(shape, store, tokenizer_of([*SPECIAL_TOKENS, *words]), texts, image_ids)


# ---- what is learnt -----------------------------------------------------------------------------


def vqa_objective(world: World) -> VqaObjective:
    """Questions with two answers each, some of them with their image hidden."""
    chance = np.random.default_rng(2)
    names = [f"answer {number}" for number in range(world.shape.answers)]
    pairs = chance.integers(0, len(names), (len(world.texts), 2)).tolist()
    questions = [
        Question(number, image_id, text, "train", (*[names[first]] * 6, *[names[second]] * 4))
        for number, (image_id, text, (first, second)) in enumerate(
            zip(world.image_ids, world.texts, pairs, strict=True)
        )
    ]
    split = VqaTask().build_split(questions, _source(world))
    return VqaObjective(split, None, names, kl_epochs=1, batch_size=64, image_dropout=0.1)


def rec_objective(world: World) -> RecObjective:
    """Expressions, each with a target near one of the regions."""
    chance = np.random.default_rng(3)
    expressions = []
    for number, (image_id, text) in enumerate(zip(world.image_ids, world.texts, strict=True)):
        boxes = world.store[image_id].boxes
        x1, y1, x2, y2 = boxes[chance.integers(len(boxes))] + chance.uniform(-2, 2, 4)
        target = (float(x1), float(y1), float(x2 - x1), float(y2 - y1))
        expressions.append(Expression(number, number, image_id, text, "train", target, 640, 640))
    return RecObjective(RecTask().build_split(expressions, _source(world)), None, batch_size=64)


def pretraining_objective(world: World, interference: bool = False) -> PretrainObjective:
    """Captions with masking by structure, matching and optimal transport."""
    return PretrainObjective(
        [(_captions(world), world.store)],
        [],
        world.tokenizer,
        MaskingConfig(interference=interference),
        seed=0,
        mismatch=0.5,
        ot_weight=0.1,
        max_text_tokens=TOKENS,
        max_regions=REGIONS,
        batch_size=64,
    )


OBJECTIVES: dict[str, Callable[[World], Any]] = {
    "pretraining": pretraining_objective,
    "vqa": vqa_objective,
    "rec": rec_objective,
}
_MODELS = {"pretraining": TbkinForPreTraining, "vqa": TbkinForVqa, "rec": TbkinForRec}


def _source(world: World) -> InputSource:
    return InputSource(world.store, world.tokenizer, TOKENS, REGIONS)


def _captions(world: World) -> CaptionTable:
    """Four objects a caption, each with a word, an attribute and two regions, and related to the next."""
    chance = np.random.default_rng(4)
    tokens = [tuple(text.split()) for text in world.texts]
    lengths = np.array([len(words) for words in tokens])
    count = len(tokens)
    objects = np.arange(OBJECTS_PER_CAPTION)
    # Places of own words, of attributes, and of relations, which are words of both their ends.
    pairs = [(number, 3 * number, 0) for number in objects]
    pairs += [(number, 3 * number + 1, 1) for number in objects]
    pairs += [(end, 3 * number + 2, 2) for number in objects[:-1] for end in (number, number + 1)]
    pair_object, word, kind = (np.tile(column, (count, 1)) for column in zip(*pairs, strict=True))
    inside = word < lengths[:, None]  # a short text has fewer
    prior = np.where(kind == 0, 1.0, chance.random(word.shape))
    rows = np.array([world.store.row(image_id) for image_id in world.image_ids])
    regions = world.store.region_counts(rows)  # (N,)
    edges = OBJECTS_PER_CAPTION * EDGES_PER_OBJECT
    region = (chance.random((count, edges)) * regions[:, None]).astype(np.int16)
    return CaptionTable(
        tokens,
        list(world.image_ids),
        ragged_offsets(inside.sum(axis=1)),
        pair_object[inside].astype(np.int16),
        word[inside].astype(np.int16),
        kind[inside].astype(np.int8),
        prior[inside].astype(np.float32),
        ragged_offsets(np.full(count, edges)),
        np.tile(np.repeat(objects, EDGES_PER_OBJECT), count).astype(np.int16),
        region.ravel(),
        chance.random(count * edges, np.float32),
    )


# ---- models and plans ---------------------------------------------------------------------------


def make_model(world: World, name: str, size: str, dropout: float = 0.1, spread: float = 1.0) -> Any:
    """A model with random weights for the objective of a name.

    Args:
        spread: Factor on the weights of queries and keys, so that attention prefers some keys.
    """
    import torch

    shape: dict[str, Any] = dict(SIZES[size])
    config = TbkinConfig(
        vocab_size=world.tokenizer.get_vocab_size(),
        **shape,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=128,
        initializer_range=0.02 * math.sqrt(768 / shape["hidden_size"]),
        region_feature_size=world.store.feature_size,
        num_object_classes=len(world.store.object_names),
        num_attribute_classes=len(world.store.attribute_names),
        num_answers=world.shape.answers,
        id2label={number: f"answer {number}" for number in range(world.shape.answers)},
    )
    torch.manual_seed(0)
    model: Any = _MODELS[name](config)
    with torch.no_grad():
        # Of numbers uniform in [0, 1), as a run would measure them.
        model.tbkin.region_embeddings.feature_mean.fill_(0.5)
        model.tbkin.region_embeddings.feature_scale.fill_(math.sqrt(12))
        for layer in model.tbkin.encoder.layers:
            layer.query.weight.mul_(spread)
            layer.key.weight.mul_(spread)
    return model


def make_plan(**values: Any) -> TrainingPlan:
    """A plan with these values in place of the usual ones."""
    usual: dict[str, Any] = {
        "size": "tiny", "epochs": 2, "batch_size": 8, "learning_rate": 1e-4, "warmup": 0.1,
        "schedule": "linear", "decay_epochs": [], "weight_decay": 0.01, "grad_clip": 1.0, "dropout": 0.1,
        "precision": "fp32", "max_minutes": math.inf, "max_text_tokens": TOKENS, "max_regions": REGIONS,
        "save_minutes": 1e9, "seed": 0, "resume": True, "tensorboard": False,
    }  # fmt: skip
    chosen = {**usual, **values}
    return TrainingPlan(**{"micro_batch_size": chosen["batch_size"], **chosen})


def plan_fields(*names: str) -> list[str]:
    """Those of some fields that a plan has."""
    known = {entry.name for entry in fields(TrainingPlan)}
    return [name for name in names if name in known]
