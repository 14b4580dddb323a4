"""Vision models of many families, tiny and untrained, saved to disk as those of the hub are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = {0: "N/A", 1: "Traffic_Light", 2: "dog", 3: "tv", 4: "person"}
SQUARE = {"height": 64, "width": 64}


# ---- detectors of fixed classes -----------------------------------------------------------------


def rt_detr(place: Path) -> None:
    from transformers import (
        RTDetrImageProcessor,
        RTDetrResNetConfig,
        RTDetrV2Config,
        RTDetrV2ForObjectDetection,
    )

    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = RTDetrV2Config(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=12, decoder_in_channels=[16, 16, 16],
        decoder_layers=2, decoder_ffn_dim=16, decoder_attention_heads=2, id2label=NAMES,
    )  # fmt: skip
    RTDetrV2ForObjectDetection(config).save_pretrained(place)
    RTDetrImageProcessor(size=SQUARE).save_pretrained(place)


def detr(place: Path) -> None:
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, use_pretrained_backbone=False,
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=9, id2label=NAMES,
    )  # fmt: skip
    DetrForObjectDetection(config).save_pretrained(place)
    DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(place)


def yolos(place: Path) -> None:
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    config = YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        patch_size=16, num_detection_tokens=10, id2label=NAMES,
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(place)
    YolosImageProcessor(size=SQUARE).save_pretrained(place)


DETECTORS = {"rt-detr": rt_detr, "detr": detr, "yolos": yolos}


# ---- detectors that are prompted ----------------------------------------------------------------

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TOWER, "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def clip_tokenizer(place: Path) -> int:
    """A tokenizer of letters in the files of CLIP's; the size of its vocabulary."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789-'.,/&"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(
        str(place / "vocab.json"), str(place / "merges.txt"), pad_token="<|endoftext|>"
    ).save_pretrained(place)
    return len(tokens)


def owl_vit(place: Path) -> None:
    import transformers

    _owl(place, transformers.OwlViTConfig, transformers.OwlViTForObjectDetection)
    transformers.OwlViTImageProcessor(size=SQUARE, do_center_crop=False).save_pretrained(place)


def owlv2(place: Path) -> None:
    import transformers

    _owl(place, transformers.Owlv2Config, transformers.Owlv2ForObjectDetection)
    transformers.Owlv2ImageProcessor(size=SQUARE).save_pretrained(place)


def _owl(place: Path, config: Any, model: Any) -> None:
    words = clip_tokenizer(place)
    values = config(
        text_config={**TEXT, "vocab_size": words}, projection_dim=16,
        vision_config={**TOWER, "image_size": 64, "patch_size": 16},
    )  # fmt: skip
    model(values).save_pretrained(place)


def grounding_dino(place: Path) -> None:
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        SwinConfig,
    )

    # The numbers of these five are written into the model's code.
    special = {0: "[PAD]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
    tokens = [special.get(number, f"[unused{number}]") for number in range(1030)]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-',/&"
    tokens += ["[UNK]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "sign", "stop", "dog"]
    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.txt").write_text("\n".join(tokens) + "\n")
    BertTokenizer(str(place / "vocab.txt")).save_pretrained(place)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4,
            out_features=["stage2", "stage3"],
        ),
        text_config=BertConfig(
            vocab_size=len(tokens), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=300,
        ),
        num_queries=12, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_feature_levels=3,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(place)
    GroundingDinoImageProcessor(size=SQUARE).save_pretrained(place)


PROMPTED = {"owl-vit": owl_vit, "owlv2": owlv2, "grounding-dino": grounding_dino}


# ---- backbones ----------------------------------------------------------------------------------

VISION = {**TOWER, "image_size": 64, "patch_size": 16}


def vit(place: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    ViTModel(ViTConfig(**VISION)).save_pretrained(place)
    ViTImageProcessor(size=SQUARE).save_pretrained(place)


def dinov2(place: Path) -> None:
    from transformers import BitImageProcessor, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(**{**VISION, "image_size": 70, "patch_size": 14})
    Dinov2WithRegistersModel(config).save_pretrained(place)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}).save_pretrained(
        place
    )


def resnet(place: Path) -> None:
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(place)
    ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(place)


def swin(place: Path) -> None:
    from transformers import SwinConfig, SwinModel, ViTImageProcessor

    config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4
    )
    SwinModel(config).save_pretrained(place)
    ViTImageProcessor(size=SQUARE).save_pretrained(place)


def clip(place: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    words = clip_tokenizer(place)
    config = CLIPConfig(
        vision_config={**VISION, "projection_dim": 8}, projection_dim=8,
        text_config={**TEXT, "vocab_size": words, "projection_dim": 8},
    )  # fmt: skip
    CLIPModel(config).save_pretrained(place)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(place)


def siglip(place: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    words = clip_tokenizer(place)  # SigLIP reads with any tokenizer that stands beside it
    config = SiglipConfig(vision_config=VISION, text_config={**TEXT, "vocab_size": words})
    SiglipModel(config).save_pretrained(place)
    SiglipImageProcessor(size=SQUARE).save_pretrained(place)


def bare_resnet(place: Path) -> None:
    """A model that only AutoBackbone's table has."""
    from transformers import RTDetrImageProcessor, RTDetrResNetBackbone, RTDetrResNetConfig

    config = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage4"],
    )  # fmt: skip
    RTDetrResNetBackbone(config).save_pretrained(place)
    RTDetrImageProcessor(size=SQUARE).save_pretrained(place)


BACKBONES = {
    "vit": vit,
    "dinov2": dinov2,
    "resnet": resnet,
    "swin": swin,
    "clip": clip,
    "siglip": siglip,
    "bare-resnet": bare_resnet,
}
