"""Outputs and losses beside the public reference, with the same weights and the same inputs.

    git clone https://github.com/MILVLG/rosita
    OMP_NUM_THREADS=2 python tests/benchmarks/reference_parity.py rosita

builds the reference's pretraining, VQA and REC models at base size with random weights, saves them in its own
checkpoint format, reads those with `import_rosita`, and prints one JSON object a model: the parameters of the
reference, and the largest absolute difference of every output over texts and regions that are padded; then
one with the largest difference of every loss.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tbkin_core.modeling.checkpoint import import_rosita
from tbkin_core.modeling.losses import (
    answer_loss,
    box_loss,
    masked_word_loss,
    matching_loss,
    optimal_transport_distance,
    region_class_loss,
    region_feature_loss,
    region_score_loss,
)

VOCABULARY, FEATURES, OBJECTS, ATTRIBUTES, ANSWERS = 30522, 2048, 1600, 400, 3129
BATCH, TOKENS, REGIONS = 8, 20, 36

# Outputs of the reference in its order; None where ours has no such output.
OUTPUTS: dict[str, list[str | None]] = {
    "pretraining": [
        "pooled", "text_states", "region_states", "mlm_logits", "region_feature_pred", "object_logits",
        "attribute_logits", "itm_logits", None,
    ],
    "vqa": ["pooled", "text_states", "region_states", "vqa_logits"],
    "rec": ["pooled", "text_states", "region_states", "rec_scores", "rec_deltas"],
}  # fmt: skip
MODULES = {
    "pretraining": "modeling.pretrain_tasks.rosita",
    "vqa": "modeling.finetune_tasks.vqa",
    "rec": "modeling.finetune_tasks.rec",
}


def reference_settings() -> SimpleNamespace:
    """The reference's published configuration, as far as its models and losses ask for it."""
    return SimpleNamespace(
        HSIZE=768, HHEAD=12, HBASE=64, HFF=3072, LAYER=12, DROPOUT_R=0.1, POS_EMB_IN_SIZE=512,
        TYPE_EMB_IN_SIZE=2, IMGFEAT_SIZE=FEATURES, BBOXFEAT_SIZE=5, USE_BBOXFEAT=True,
        IMGFEAT_OBJ_CLASSNUM=OBJECTS, IMGFEAT_ATTR_CLASSNUM=ATTRIBUTES, WEIGHT_INIT_FACTOR=0.02,
        DEVICE_IDS=["cpu"], OT_LAMBDA=0.1,
        TASKS={"text": ["mlm"], "image": ["feat", "obj", "attr"], "mm": ["itm"]},
        LOSS_REDUCTION={
            "text": {"mlm": "mean"},
            "image": {"feat": "mean", "obj": "mean", "attr": "mean"},
            "mm": {"qa": "mean", "itm": "mean", "refs-rank": "mean", "refs-reg": "mean"},
        },
        INSIDE_WEIGHTING={
            "text": ["mlm"], "image": ["feat", "obj", "attr"], "mm": ["refs-rank", "refs-reg"]
        },
        OUTSIDE_WEIGHTING={"text": ["mlm"], "image": ["feat", "obj", "attr"], "mm": []},
        LOSSFUNC_MAPPING={
            "text": {"mlm": nn.CrossEntropyLoss},
            "image": {"feat": nn.SmoothL1Loss, "obj": nn.CrossEntropyLoss, "attr": nn.CrossEntropyLoss},
            "mm": {
                "qa": nn.KLDivLoss, "itm": nn.CrossEntropyLoss, "refs-rank": nn.KLDivLoss,
                "refs-reg": nn.SmoothL1Loss,
            },
        },
        LOSSFUNC_WEIGHT={
            "text": {"mlm": 1.0}, "image": {"feat": 1.0, "obj": 1.0, "attr": 1.0},
            "mm": {"qa": 1.0, "itm": 1.0, "refs-rank": 1.0, "refs-reg": 0.5},
        },
    )  # fmt: skip


def reference_model(head: str) -> nn.Module:
    """The reference's own model with random weights, biases included."""
    module = importlib.import_module(MODULES[head])
    torch.manual_seed(sum(head.encode()))
    model: nn.Module = module.Net(
        reference_settings(), {"vocab_size": VOCABULARY, "ans_size": ANSWERS}
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def random_inputs() -> dict[str, Tensor]:
    """Texts of 5 to 20 tokens and 10 to 36 regions, padded."""
    chance = torch.Generator().manual_seed(7)
    text = torch.randint(5, TOKENS + 1, (BATCH,), generator=chance)
    regions = torch.randint(10, REGIONS + 1, (BATCH,), generator=chance)
    text[0], regions[0] = TOKENS, REGIONS
    return {
        "input_ids": torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=chance),
        "attention_mask": torch.arange(TOKENS)[None] < text[:, None],
        "region_features": torch.randn((BATCH, REGIONS, FEATURES), generator=chance).abs(),
        "region_geometry": torch.rand((BATCH, REGIONS, 5), generator=chance),
        "region_mask": torch.arange(REGIONS)[None] < regions[:, None],
    }


def run_reference(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = model(
        (
            inputs["input_ids"],
            inputs["attention_mask"].float(),
            inputs["region_features"],
            inputs["region_mask"].float(),
            inputs["region_geometry"],
        )
    )
    return found


def largest_difference(one: Tensor, other: Tensor, valid: Tensor | None) -> float:
    if valid is not None:
        one, other = one[valid], other[valid]
    return float((one - other).abs().max())


@torch.no_grad()
def compare_outputs(head: str) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    reference = reference_model(head)
    inputs = random_inputs()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "rosita.pkl"
        torch.save({name: part.state_dict() for name, part in reference.named_children()}, file)
        ours = import_rosita(file, head)
    theirs = run_reference(reference, inputs)
    found = ours(**inputs)
    differences = {}
    for name, expected in zip(OUTPUTS[head], theirs, strict=True):
        if name is not None:
            # What stands in the padding is nobody's business: rec_scores are -inf there.
            rows = {TOKENS: inputs["attention_mask"], REGIONS: inputs["region_mask"]}
            valid = rows.get(expected.shape[1]) if expected.dim() > 1 else None
            valid = valid if expected.dim() == 3 or name == "rec_scores" else None
            differences[name] = largest_difference(found[name], expected, valid)
    parameters = sum(parameter.numel() for parameter in reference.parameters())
    return {"model": head, "reference_parameters": parameters, "largest_differences": differences}, theirs


def compare_losses(outputs: dict[str, tuple[Tensor, ...]]) -> dict[str, Any]:
    """Every loss on the reference's own outputs, random targets and masks."""
    chance = torch.Generator().manual_seed(11)
    inputs = random_inputs()
    text_mask, region_mask = inputs["attention_mask"], inputs["region_mask"]
    chosen_text = (torch.rand((BATCH, TOKENS), generator=chance) < 0.3) & text_mask
    chosen_regions = (torch.rand((BATCH, REGIONS), generator=chance) < 0.3) & region_mask
    words = torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=chance)
    objects = torch.randint(0, OBJECTS, (BATCH, REGIONS), generator=chance)
    attributes = torch.randint(0, ATTRIBUTES, (BATCH, REGIONS), generator=chance)
    features = torch.randn((BATCH, REGIONS, FEATURES), generator=chance)
    confidence = torch.rand((BATCH, REGIONS), generator=chance)
    matched = torch.arange(BATCH) % 2
    every = torch.ones(BATCH)
    _, text, regions, mlm, feat, obj, attr, itm, qa = outputs["pretraining"]
    reference = importlib.import_module(MODULES["pretraining"]).Net
    settings = reference_settings()
    scores = torch.rand((BATCH, ANSWERS), generator=chance) * (
        torch.rand((BATCH, ANSWERS), generator=chance) < 0.002
    )
    scores[:, 0] = 1.0
    normalised = scores / scores.sum(dim=1, keepdim=True)

    def theirs(method: str, *arguments: Any) -> Tensor:
        """A loss of the reference without building a model: it uses `self` for its settings alone."""
        owner = SimpleNamespace(_Net__C=settings, cfg=settings)
        found: Tensor = getattr(reference, method)(owner, *arguments)
        return found

    text_weight, region_weight = chosen_text.float(), chosen_regions.float()
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "mlm": (
            masked_word_loss(mlm[chosen_text], words[chosen_text]) / chosen_text.sum(),
            theirs("text_mlm_loss", text_weight, mlm, words, torch.ones_like(text_weight), every, VOCABULARY),
        ),
        "mrfr": (
            region_feature_loss(feat[chosen_regions], features[chosen_regions]) / chosen_regions.sum(),
            theirs("imgfeat_feat_loss", region_weight, feat, features, torch.ones_like(region_weight), every),
        ),
        "object": (
            region_class_loss(obj[chosen_regions], objects[chosen_regions], confidence[chosen_regions])
            / chosen_regions.sum(),
            theirs("imgfeat_obj_loss", region_weight, obj, objects, confidence.clone(), every),
        ),
        "attribute": (
            region_class_loss(attr[chosen_regions], attributes[chosen_regions], confidence[chosen_regions])
            / chosen_regions.sum(),
            theirs("imgfeat_attr_loss", region_weight, attr, attributes, confidence.clone(), every),
        ),
        "itm and alignment": (
            matching_loss(itm, matched) / BATCH
            + 0.1
            * (
                optimal_transport_distance(text, regions, text_mask, region_mask) * (2.0 * matched - 1)
            ).mean(),
            theirs(
                "mm_itm_loss", itm, matched, every, (text, regions, text_mask.float(), region_mask.float())
            ),
        ),
        "answer, kl": (
            answer_loss(qa, normalised, "kl") / (BATCH * ANSWERS),
            theirs("mm_qa_loss", qa, normalised, every.clone(), ANSWERS),
        ),
    }
    settings.LOSSFUNC_MAPPING["mm"]["qa"] = nn.BCEWithLogitsLoss
    pairs["answer, bce"] = (
        answer_loss(qa, scores, "bce") / (BATCH * ANSWERS),
        theirs("mm_qa_loss", qa, scores, every.clone(), ANSWERS),
    )
    reference = importlib.import_module(MODULES["rec"]).Net
    _, _, _, rank, delta = outputs["rec"]
    target = torch.rand((BATCH, REGIONS), generator=chance) * region_mask
    target = target / target.sum(dim=1, keepdim=True)
    boxes = torch.randn((BATCH, REGIONS, 4), generator=chance)
    near = (torch.rand((BATCH, REGIONS), generator=chance) < 0.2) & region_mask
    whole = torch.ones_like(region_mask)  # the reference's softmax runs over the padding too
    pairs["region score"] = (
        region_score_loss(rank, target, whole) / (BATCH * REGIONS),
        theirs("mm_refs_rank_loss", rank, target, torch.ones_like(target), every),
    )
    pairs["box"] = (
        box_loss(delta, boxes, near) / near.sum(),
        theirs("mm_refs_reg_loss", delta, boxes, near.float(), every),
    )
    return {"losses": {name: float((ours - their).abs()) for name, (ours, their) in pairs.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("reference", type=Path, help="checkout of github.com/MILVLG/rosita")
    place = parser.parse_args().reference / "rosita"
    if not (place / "modeling" / "transformer.py").is_file():
        parser.error(f"{place}: holds no modeling/transformer.py")
    sys.path.insert(0, str(place))
    outputs = {}
    for head in OUTPUTS:
        result, outputs[head] = compare_outputs(head)
        print(json.dumps(result), flush=True)
    print(json.dumps(compare_losses(outputs)))


if __name__ == "__main__":
    main()
