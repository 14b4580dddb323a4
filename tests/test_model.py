"""The model: sizes, saving, padding, the question-only baseline, and weights of BERT."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tbkin_core.errors import CheckpointError, ConfigError
from tbkin_core.modeling import (
    Selection,
    TbkinConfig,
    TbkinForPreTraining,
    TbkinForRec,
    TbkinForVqa,
    TbkinModel,
)
from tbkin_core.modeling.checkpoint import apply_init, bert_weights, import_rosita, load_init
from tbkin_core.modeling.configuration import SIZES
from tbkin_core.modeling.models import AttendedMean
from tbkin_core.texts.tokenizer import load_tokenizer

VOCABULARY, FEATURES, WIDTH = 40, 6, 16
MODELS = (TbkinForPreTraining, TbkinForVqa, TbkinForRec)


def tiny_config(**changes: Any) -> TbkinConfig:
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "region_feature_size": FEATURES,
        "num_object_classes": 7,
        "num_attribute_classes": 5,
        "num_answers": 4,
        "initializer_range": 0.3,
    }
    return TbkinConfig(**{**values, **changes})


def tiny(kind: type[Any], seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return kind(tiny_config(**changes)).eval()


def random_inputs(text: list[int], regions: list[int], seed: int = 0) -> dict[str, Tensor]:
    """A batch of samples with so many tokens and regions each; padding holds noise, not zeros."""
    generator = torch.Generator().manual_seed(seed)
    batch, tokens, boxes = len(text), max(text), max(regions)
    return {
        "input_ids": torch.randint(0, VOCABULARY, (batch, tokens), generator=generator),
        "attention_mask": torch.arange(tokens)[None] < torch.tensor(text)[:, None],
        "region_features": torch.randn((batch, boxes, FEATURES), generator=generator),
        "region_geometry": torch.rand((batch, boxes, 5), generator=generator),
        "region_mask": torch.arange(boxes)[None] < torch.tensor(regions)[:, None],
    }


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_base_has_as_many_parameters_as_rosita() -> None:
    with torch.device("meta"):
        base: dict[str, Any] = {**SIZES["base"]}
        config = TbkinConfig(**base, num_answers=3129)
        vqa, rec, pretraining = TbkinForVqa(config), TbkinForRec(config), TbkinForPreTraining(config)
    assert parameters(vqa) == 117_055_545
    assert parameters(rec) == 111_657_989
    # ROSITA's pretraining model carries the VQA head too.
    assert parameters(pretraining) + parameters(vqa) - parameters(vqa.tbkin) == 121_384_773


@pytest.mark.parametrize("size", sorted(SIZES))
def test_sizes_are_consistent(size: str) -> None:
    values = SIZES[size]
    assert values["hidden_size"] % values["num_attention_heads"] == 0
    assert values["intermediate_size"] == 4 * values["hidden_size"]


@pytest.mark.parametrize("kind", MODELS)
def test_saving_and_loading_changes_nothing(kind: type[Any], tmp_path: Path) -> None:
    model = tiny(kind, threshold=0.2, threshold_layers=[1], threshold_scope="cross-modal")
    inputs = random_inputs([5, 3], [4, 2])
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)  # what is not loaded would differ
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.tbkin.selection == Selection("relative", 0.2, (1,), "cross-modal")
    with torch.no_grad():
        before, after = model(**inputs), loaded.eval()(**inputs)
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_word_embeddings_stay_tied_after_loading(tmp_path: Path) -> None:
    model = tiny(TbkinForPreTraining)
    model.save_pretrained(tmp_path)
    for candidate in (model, TbkinForPreTraining.from_pretrained(tmp_path)):
        words = candidate.tbkin.text_embeddings.word_embeddings.weight
        assert candidate.mlm_decoder.weight is words
        with torch.no_grad():
            words.add_(1.0)
        assert torch.equal(candidate.mlm_decoder.weight, words)


def test_a_value_out_of_range_in_the_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        TbkinForVqa(tiny_config(threshold=1.5))


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(2, 6), st.integers(1, 5)), min_size=2, max_size=3),
    selection=st.sampled_from(
        [
            Selection(),
            Selection("relative", 0.3),
            Selection("probability", 0.1),
            Selection("score", 0.1, scope="cross-modal"),
            Selection("topk", 2, layers=(0,)),
        ]
    ),
    seed=st.integers(0, 1000),
)
def test_a_batch_equals_its_samples(
    sizes: list[tuple[int, int]], selection: Selection, kind: type[Any], seed: int
) -> None:
    text, regions = [size[0] for size in sizes], [size[1] for size in sizes]
    model, inputs = tiny(kind), random_inputs(text, regions, seed)
    model.tbkin.selection = selection
    with torch.no_grad():
        together = model(**inputs)
        for row, (tokens, boxes) in enumerate(sizes):
            alone = model(
                input_ids=inputs["input_ids"][row : row + 1, :tokens],
                attention_mask=inputs["attention_mask"][row : row + 1, :tokens],
                region_features=inputs["region_features"][row : row + 1, :boxes],
                region_geometry=inputs["region_geometry"][row : row + 1, :boxes],
                region_mask=inputs["region_mask"][row : row + 1, :boxes],
            )
            for name, value in alone.items():
                found = together[name][row]
                found = found[:tokens] if name in ("text_states", "mlm_logits") else found
                if name not in ("text_states", "mlm_logits", "pooled", "vqa_logits", "itm_logits"):
                    found = found[:boxes]
                torch.testing.assert_close(found, value[0], atol=1e-5, rtol=1e-4, msg=name)


def test_padded_regions_are_never_the_answer_of_rec() -> None:
    inputs = random_inputs([4, 4], [5, 2])
    with torch.no_grad():
        scores = tiny(TbkinForRec)(**inputs).rec_scores
    assert torch.equal(torch.isfinite(scores), inputs["region_mask"])


def test_a_blind_model_sees_no_image() -> None:
    inputs = random_inputs([5, 3], [4, 2])
    other = {
        **inputs,
        "region_features": inputs["region_features"] + 1,
        "region_geometry": inputs["region_geometry"].flip(1),
        "region_mask": ~inputs["region_mask"],
    }
    with torch.no_grad():
        blind, seeing = tiny(TbkinForVqa, use_regions=False), tiny(TbkinForVqa)
        assert torch.equal(blind(**inputs).vqa_logits, blind(**other).vqa_logits)
        assert not torch.allclose(seeing(**inputs).vqa_logits, seeing(**other).vqa_logits)


def with_direct_path(seed: int = 0) -> TbkinForVqa:
    """A model whose direct path has learnt something."""
    model: TbkinForVqa = tiny(TbkinForVqa, direct_width=8).eval()
    assert model.direct is not None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nn.init.normal_(model.direct.answers.weight)
    return model


def test_a_direct_path_begins_with_nothing_and_adds_to_what_the_encoder_says() -> None:
    inputs = random_inputs([5, 3], [4, 2])
    beside, published = tiny(TbkinForVqa, direct_width=8).eval(), tiny(TbkinForVqa).eval()
    assert published.direct is None
    published.load_state_dict(beside.state_dict(), strict=False)
    expected = published(**inputs).vqa_logits
    torch.testing.assert_close(beside(**inputs).vqa_logits, expected)
    learnt = with_direct_path()
    published.load_state_dict(learnt.state_dict(), strict=False)
    difference = learnt(**inputs).vqa_logits - published(**inputs).vqa_logits
    assert difference.abs().max() > 0.1
    # The order of words says nothing there, nor that of regions, nor what is padded.
    turned = {**inputs, "input_ids": inputs["input_ids"].clone()}
    turned["input_ids"][0, 1:3] = inputs["input_ids"][0, 1:3].flip(0)
    again = learnt(**turned).vqa_logits - published(**turned).vqa_logits
    torch.testing.assert_close(again, difference, atol=1e-5, rtol=1e-5)
    padded = {**inputs, "region_features": inputs["region_features"].clone()}
    padded["region_features"][~inputs["region_mask"].bool()] = 100.0
    again = learnt(**padded).vqa_logits - published(**padded).vqa_logits
    torch.testing.assert_close(again, difference, atol=1e-5, rtol=1e-5)


def test_a_direct_path_sees_no_image_where_the_model_does_not() -> None:
    inputs = random_inputs([5, 3], [4, 2])
    other = {**inputs, "region_features": torch.randn_like(inputs["region_features"])}
    model = with_direct_path()
    model.config.use_regions = False
    torch.testing.assert_close(model(**inputs).vqa_logits, model(**other).vqa_logits)
    model.config.use_regions = True
    for some in (inputs, other):
        some["region_mask"] = torch.zeros_like(inputs["region_mask"])
    torch.testing.assert_close(model(**inputs).vqa_logits, model(**other).vqa_logits)


def test_some_samples_learn_on_the_direct_path_alone_in_training() -> None:
    inputs = random_inputs([5, 3], [4, 2])
    given = {"direct_width": 8, "encoder_dropout_prob": 1.0, "hidden_dropout_prob": 0.0}
    model: TbkinForVqa = tiny(TbkinForVqa, attention_probs_dropout_prob=0.0, **given).train()
    assert model.direct is not None
    nn.init.normal_(model.direct.answers.weight)
    before = model(**inputs).vqa_logits
    for parameter in model.answer_decoder.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(model(**inputs).vqa_logits, before)
    model.config.encoder_dropout_prob = 0.5
    torch.manual_seed(0)
    many = {name: value.repeat(100, *[1] * (value.dim() - 1)) for name, value in inputs.items()}
    apart = (model(**many).vqa_logits - before.repeat(100, 1)).abs().amax(dim=1)
    alike = (apart < 1e-5).float().mean()
    assert 0.3 < alike < 0.7
    model.eval()
    assert not torch.allclose(model(**inputs).vqa_logits, before)


SELECTIONS = [
    Selection(),
    Selection("relative", 0.6),
    Selection("relative", 0.6, layers=(0,)),
    Selection("relative", 1.0),  # may leave a row without any region
    Selection("probability", 0.15, scope="text-to-image"),
    Selection("topk", 2, scope="image-to-text"),
    Selection("entmax15", 1.0, scope="cross-modal"),
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda chosen: f"{chosen.name} {chosen.where}")
@pytest.mark.parametrize("rows", [1, 3])
def test_looked_at_is_the_mean_over_regions_by_their_attention_and_weight(
    selection: Selection, rows: int
) -> None:
    if selection.rule == "entmax15":
        pytest.importorskip("entmax")
    inputs, model = random_inputs([5, 3], [4, 2]), tiny(TbkinModel)
    model.selection = selection
    generator = torch.Generator().manual_seed(1)
    values = torch.randn((2, 4, 7), generator=generator)
    weight = torch.rand((2, 4), generator=generator) * inputs["region_mask"]
    with torch.no_grad():
        output = model(**inputs, output_attentions=True, attend=AttendedMean(values, weight, rows))
        same = model(**inputs)
    torch.testing.assert_close(output.pooled, same.pooled)
    assert same.attended is None and output.attended.shape == (2, rows, 7)
    attention = output.attentions[-1].weights.mean(1)[:, :rows, 5:]  # (B, R, K)
    share = attention * weight[:, None]
    share = share / share.sum(-1, keepdim=True).clamp_min(1e-20)  # 0 where no region is left
    torch.testing.assert_close(output.attended, share @ values, atol=1e-5, rtol=1e-5)
    if selection == Selection("relative", 1.0) and rows == 3:
        assert (output.attended == 0).all(-1).any(), "of some the threshold leaves nothing"


def test_without_any_region_nothing_is_looked_at() -> None:
    inputs, model = random_inputs([5, 3], [4, 2]), tiny(TbkinModel)
    inputs["region_mask"] = torch.zeros_like(inputs["region_mask"])
    values = torch.randn(2, 4, 7)
    with torch.no_grad():
        attended = model(**inputs, attend=AttendedMean(values, torch.zeros(2, 4), 1)).attended
    assert torch.equal(attended, torch.zeros_like(attended))


def test_a_threshold_cuts_what_an_answer_sees_beside_the_encoder() -> None:
    inputs = random_inputs([5, 5], [4, 4])
    model: TbkinForVqa = tiny(TbkinForVqa, direct_width=8, direct_attends=True)
    assert model.direct is not None and model.direct.share is not None
    nn.init.normal_(model.direct.answers.weight)
    for parameter in model.answer_decoder.parameters():  # the encoder's own answer says nothing
        nn.init.zeros_(parameter)

    def logits(share: float, selection: Selection) -> Tensor:
        nn.init.constant_(model.direct.share, share)  # type: ignore[union-attr, arg-type]
        model.tbkin.selection = selection
        with torch.no_grad():
            return model(**inputs).vqa_logits

    dense, cut = Selection(), Selection("relative", 0.9)
    torch.testing.assert_close(logits(-40.0, dense), logits(-40.0, cut))  # all of it from the mean
    assert (logits(40.0, dense) - logits(40.0, cut)).abs().max() > 0.01
    # What attention looks at is taught where to attend.
    model.tbkin.selection = dense
    model(**inputs).vqa_logits[:, 0].sum().backward()
    query = model.tbkin.encoder.layers[-1].query.weight.grad
    assert query is not None and query.abs().max() > 0


def test_masked_words_are_also_told_from_where_they_look() -> None:
    inputs = random_inputs([5, 3], [4, 2])
    given = {"direct_width": 8, "direct_attends": True}
    model: TbkinForPreTraining = tiny(TbkinForPreTraining, **given)
    without: TbkinForPreTraining = tiny(TbkinForPreTraining, direct_width=8)
    without.load_state_dict(model.state_dict())
    visible = inputs["region_mask"].clone()
    visible[:, 0] = False
    places = torch.tensor([1, 3, 6])
    with torch.no_grad():
        told = model(**inputs, visible_regions=visible).mlm_logits
        here = model(**inputs, visible_regions=visible, text_places=places).mlm_logits
        torch.testing.assert_close(here, told.flatten(0, 1)[places])
        usual = without(**inputs, visible_regions=visible).mlm_logits
        assert (told - usual).abs().max() > 0.1
        # Of a region that something is hidden of no more is told than the encoder reads of it.
        hidden_alone = {**inputs, "region_mask": inputs["region_mask"] & ~visible}
        plain = without(**hidden_alone, visible_regions=visible).mlm_logits
        torch.testing.assert_close(model(**hidden_alone, visible_regions=visible).mlm_logits, plain)
        assert (model(**hidden_alone).mlm_logits - plain).abs().max() > 0.01
        inputs["region_mask"] = torch.zeros_like(inputs["region_mask"])
        torch.testing.assert_close(model(**inputs).mlm_logits, without(**inputs).mlm_logits)


@pytest.mark.parametrize("kind", [TbkinForPreTraining, TbkinForVqa])
def test_images_without_regions_have_gradients_that_half_precision_holds(kind: type[Any]) -> None:
    inputs, model = random_inputs([5, 3], [4, 2]), tiny(kind, direct_width=8, direct_attends=True).train()
    inputs["region_mask"][0] = False
    if model.task == "vqa":
        nn.init.normal_(model.direct.answers.weight)
    with torch.autocast("cpu", dtype=torch.float16):
        output = model(**inputs)
    logits = output.vqa_logits if model.task == "vqa" else output.mlm_logits
    (logits.float().square().mean() * 1024).backward()
    gradients = {name: it.grad for name, it in model.direct.named_parameters() if it.grad is not None}
    assert {"regions.weight", "region_norm.weight"} <= {*gradients}
    for name, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.abs().max() < 1e5, name


def test_weights_that_a_checkpoint_lacks_begin_as_those_of_a_new_model(tmp_path: Path) -> None:
    given = {"direct_width": 8, "direct_attends": True, "direct_words": True}
    tiny(TbkinForPreTraining, **given).save_pretrained(tmp_path)
    model = TbkinForVqa.from_pretrained(tmp_path)
    assert model.direct is not None and model.direct.share is not None and model.direct.met is not None
    for weight in (model.direct.share, model.direct.answers.weight, model.direct.met.weight):
        assert (weight == 0).all()
    nn.init.constant_(model.direct.share, 0.7)
    nn.init.normal_(model.direct.answers.weight)
    model.save_pretrained(tmp_path / "vqa")
    again = TbkinForVqa.from_pretrained(tmp_path / "vqa")
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


def test_feature_dropout_takes_the_same_numbers_of_all_regions_in_training_alone() -> None:
    embeddings = tiny(TbkinForVqa, feature_dropout_prob=0.5).tbkin.region_embeddings
    features = torch.rand(3, 4, embeddings.feature_mean.shape[0]) + 1
    embeddings.train()
    kept = embeddings.standardised(features) != 0
    assert 0.2 < kept.float().mean() < 0.8
    assert (kept == kept[:, :1]).all() and not (kept == kept[:1]).all()
    embeddings.eval()
    torch.testing.assert_close(embeddings.standardised(features), features)


def test_pretraining_heads_at_targets_equal_those_at_every_position() -> None:
    model, inputs = tiny(TbkinForPreTraining), random_inputs([5, 3], [4, 2])
    text_targets = inputs["attention_mask"] & (torch.arange(5) % 2 == 0)
    region_targets = inputs["region_mask"] & (torch.arange(4) != 1)
    with torch.no_grad():
        everywhere = model(**inputs)
        places = (targets.flatten().nonzero()[:, 0] for targets in (text_targets, region_targets))
        chosen = model(text_places=next(places), region_places=next(places), **inputs)
    torch.testing.assert_close(chosen.mlm_logits, everywhere.mlm_logits[text_targets])
    for name in ("region_feature_pred", "object_logits", "attribute_logits"):
        torch.testing.assert_close(chosen[name], everywhere[name][region_targets])


def test_the_order_of_regions_does_not_matter() -> None:
    model, inputs = tiny(TbkinForVqa), random_inputs([5], [4])
    order = torch.tensor([2, 0, 3, 1])
    turned = {name: value[:, order] if name.startswith("region") else value for name, value in inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(
            model(**turned).vqa_logits, model(**inputs).vqa_logits, atol=1e-5, rtol=1e-4
        )


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    inputs = random_inputs([5, 3], [4, 2])
    found = []
    for checkpointing in (False, True):
        model = tiny(TbkinForVqa, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, threshold=0.2)
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.tbkin.encoder.gradient_checkpointing
        model.train()
        model(**inputs).vqa_logits.square().sum().backward()
        found.append({name: value.grad for name, value in model.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def random_bert(**changes: Any) -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=changes.pop("vocab_size", VOCABULARY),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.3,
        **changes,
    )
    bert = BertModel(config).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return bert


def test_the_text_side_computes_what_bert_computes(tmp_path: Path) -> None:
    bert = random_bert()
    bert.save_pretrained(tmp_path)
    weights, _ = load_init(str(tmp_path))
    model = tiny(TbkinForVqa)
    assert apply_init(model, weights, "bert") == len(bert.state_dict())
    inputs = random_inputs([6, 4], [3, 3])
    inputs["region_mask"] = torch.zeros_like(inputs["region_mask"])
    with torch.no_grad():
        expected = bert(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"].long())
        found = model.tbkin(**inputs)
    valid = inputs["attention_mask"]
    torch.testing.assert_close(
        found.text_states[valid], expected.last_hidden_state[valid], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(found.pooled, expected.pooler_output, atol=1e-5, rtol=1e-5)


def test_a_longer_vocabulary_keeps_its_new_rows() -> None:
    bert = random_bert(vocab_size=VOCABULARY - 10)
    model = tiny(TbkinForPreTraining)
    before = model.tbkin.text_embeddings.word_embeddings.weight.clone()
    apply_init(model, bert_weights(bert.state_dict()), "bert")
    words = model.tbkin.text_embeddings.word_embeddings.weight
    assert torch.equal(words[:-10], bert.embeddings.word_embeddings.weight)
    assert torch.equal(words[-10:], before[-10:])


def test_weights_of_another_width_are_refused() -> None:
    with pytest.raises(CheckpointError, match="instead of"):
        apply_init(tiny(TbkinForVqa, hidden_size=24), bert_weights(random_bert().state_dict()), "bert")


def test_the_auto_classes_of_transformers_know_the_models(tmp_path: Path) -> None:
    import transformers

    for kind, auto in (
        (TbkinForVqa, transformers.AutoModelForVisualQuestionAnswering),
        (TbkinForPreTraining, transformers.AutoModelForPreTraining),
        (TbkinForPreTraining, transformers.AutoModel),
    ):
        model = tiny(kind)
        model.save_pretrained(tmp_path)
        found = auto.from_pretrained(tmp_path)
        assert isinstance(found, TbkinModel if auto is transformers.AutoModel else kind)
        base = getattr(found, "tbkin", found)
        for name, value in model.tbkin.state_dict().items():
            assert torch.equal(base.state_dict()[name], value), name
    assert isinstance(transformers.AutoConfig.from_pretrained(tmp_path), TbkinConfig)


# ---- checkpoints of ROSITA ----------------------------------------------------------------------

ROSITA_NAMES = {
    "tbkin.text_embeddings.": "text_embeddings.",
    "tbkin.region_embeddings.feature_projection.": "visual_embeddings.dense_imgfeat.",
    "tbkin.region_embeddings.geometry_projection.": "visual_embeddings.dense_bboxfeat.",
    "tbkin.region_embeddings.layer_norm.": "visual_embeddings.layer_norm.",
    "tbkin.encoder.": "backbone.",
    "tbkin.pooler.": "pooler.dense.",
    "mlm_head.": "text_mlm_head.",
    "mlm_decoder.weight": "text_mlm_head.decode.weight",
    "mlm_decoder.bias": "text_mlm_head.bias",
    "region_head.": "imgfeat_head.",
    "region_feature_decoder.": "imgfeat_head.dense_feat.",
    "object_decoder.": "imgfeat_head.dense_obj.",
    "attribute_decoder.": "imgfeat_head.dense_attr.",
    "itm_head.": "mm_itm_head.dense.",
    "answer_head.dense.": "mm_qa_head.dense0.",
    "answer_head.layer_norm.": "mm_qa_head.layer_norm.",
    "answer_decoder.": "mm_qa_head.dense1.",
    "rec_head.": "mm_refs_head.",
    "score_decoder.": "mm_refs_head.dense_rank.",
    "delta_decoder.": "mm_refs_head.dense_reg.",
}
ROSITA_LAYER_NAMES = {
    ".query.": ".mhatt.dense_q.", ".key.": ".mhatt.dense_k.", ".value.": ".mhatt.dense_v.",
    ".attention_output.": ".mhatt.dense_merge.", ".attention_norm.": ".layer_norm0.",
    ".intermediate.": ".ffn.dense0.", ".output.": ".ffn.dense1.", ".output_norm.": ".layer_norm1.",
}  # fmt: skip
HEADS = {"pretraining": TbkinForPreTraining, "vqa": TbkinForVqa, "rec": TbkinForRec}


def rosita_file(model: Any, path: Path) -> Path:
    """A model's weights as ROSITA publishes its own: a dict of state dicts, and an optimizer's state."""
    content: dict[str, Any] = {"epoch": 40, "net_optim": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
    for name, value in model.state_dict().items():
        start = max((each for each in ROSITA_NAMES if name.startswith(each)), key=len, default=None)
        if start is None:
            continue  # the statistics of region features, which are ours alone
        theirs = ROSITA_NAMES[start] + name.removeprefix(start)
        if theirs.startswith("backbone."):
            for ours, other in ROSITA_LAYER_NAMES.items():
                theirs = theirs.replace(ours, other)
        part, _, rest = theirs.partition(".")
        content.setdefault(part, {})[rest] = value
    torch.save(content, path)
    return path


@pytest.mark.parametrize("head", HEADS)
def test_a_checkpoint_of_rosita_computes_what_it_did(tmp_path: Path, head: str) -> None:
    model = tiny(HEADS[head])
    file = rosita_file(model, tmp_path / "rosita.pkl")
    heads = model.config.num_attention_heads
    found = import_rosita(file, head, attention_heads=heads)
    inputs = random_inputs([5, 3], [4, 2])
    with torch.no_grad():
        expected, got = model(**inputs), found(**inputs)
    assert set(expected) == set(got)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=0, rtol=0)
    others = {part for other, part in (("vqa", "mm_qa_head"), ("rec", "mm_refs_head")) if other != head}
    for other, part in (("vqa", "mm_qa_head"), ("rec", "mm_refs_head")):
        if part in others:
            with pytest.raises(CheckpointError, match=part):
                import_rosita(file, other)


def test_training_begins_from_a_checkpoint_of_rosita(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def unreachable(name: str) -> None:
        raise OSError(f"{name} cannot be reached")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    model = tiny(TbkinForVqa)
    file = rosita_file(model, tmp_path / "rosita-vqa.pkl")
    weights, values = load_init(str(file))
    assert values["hidden_size"] == model.config.hidden_size
    assert values["num_hidden_layers"] == model.config.num_hidden_layers
    begun = tiny(TbkinForVqa, seed=5)
    answers = begun.answer_decoder.weight.clone()
    apply_init(begun, weights, str(file))
    for name, value in model.tbkin.state_dict().items():
        assert torch.equal(begun.tbkin.state_dict()[name], value), name
    assert torch.equal(begun.answer_decoder.weight, answers), "whose rows other answers may have"
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        load_tokenizer(file)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    assert load_tokenizer(file).token_to_id("dog") == 5


@pytest.mark.parametrize("content", ["text", "list", "code", "cut", "bert"])
def test_what_is_no_checkpoint_of_rosita_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "rosita.pkl"
    if content == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1")
    elif content == "code":
        file.write_bytes(pickle.dumps({"text_embeddings": os.system}))
    elif content == "cut":
        whole = rosita_file(tiny(TbkinForVqa), file).read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    else:
        torch.save([1, 2] if content == "list" else {"bert.pooler": torch.zeros(3)}, file)
    for read in (import_rosita, lambda path: load_init(str(path))):
        with pytest.raises(CheckpointError, match="ROSITA"):
            read(file)
    with pytest.raises(CheckpointError, match="no such file"):
        import_rosita(tmp_path / "none.pkl")
    with pytest.raises(ConfigError, match="head"):
        import_rosita(file, "captioning")
