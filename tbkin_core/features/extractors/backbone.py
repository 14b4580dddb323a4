"""Region vectors of any vision model that transformers loads, pooled over boxes from elsewhere.

The whole picture is resized to a square, as most of these models were trained, though without a crop; so a
box given as fractions of the picture lies at the same fractions of the square, whatever the picture's shape.
One forward pass per image gives a map of cells; a region's vector is the mean of the map over its box,
sampled between the cells as RoIAlign does (He et al., ICCV 2017).

Where the model has a text tower beside, as CLIP and SigLIP, it predicts attributes too: regions and the names
of attributes meet in the space that the two towers share.

Letters: B images, S side of the square in pixels, h and w cells of the map, D its width, K regions,
A attributes, J width of the space of pictures and texts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from tbkin_core.errors import ConfigError
from tbkin_core.features.extractors import LITE, ExtractorRow
from tbkin_core.features.extractors.base import BatchExtractor, PictureExtractor, Request
from tbkin_core.features.extractors.lite import LiteBackbone
from tbkin_core.features.extractors.models import (
    compute_dtype,
    computing,
    loading,
    prompt_vectors,
    weights_digest,
)
from tbkin_core.features.extractors.roi import roi_tokens
from tbkin_core.features.regions import Floats, ImageId, Pixels, RegionFeatures
from tbkin_core.names.vocabulary import visual_genome_names
from tbkin_core.support.pretrained import load_pretrained

MOST_EXTRA_TOKENS = 16  # before the patches: class, distillation and register tokens
_Mapping = Callable[[Any], torch.Tensor]


class Backbone:
    """A vision model and what it wants of a picture.

    Args:
        model: Hub id or directory of a model for `AutoModel` (DINOv2, ViT, Swin, ResNet, the vision tower of
            CLIP or SigLIP, ...) or `AutoBackbone`.
        device: Where it runs.
        side: S; what the model was trained with when None.
        revision: Of the hub's model; the newest when None.
        precision: As for `tbkin_core.features.extractors.models.compute_dtype`.
        attributes: Whether to predict attributes, where the model can.

    Attributes:
        feature_size: D.
        object_names: Empty; it names no regions.
        attribute_names: The attributes that it chooses from; empty where it predicts none.

    Raises:
        MissingDependencyError: The model cannot be loaded.
        ConfigError: It gives no map of the picture.
    """

    def __init__(
        self,
        model: str,
        device: torch.device | str = "cpu",
        side: int | None = None,
        revision: str | None = None,
        precision: str = "auto",
        attributes: bool = True,
    ) -> None:
        self.model_name = model
        self._device = torch.device(device)
        self._dtype = compute_dtype(self._device, precision)
        with loading("backbone", model):
            self._preparation, self._model, tokenizer = _load(model, revision)
        self._weights = weights_digest(self._model)
        self._model.to(self._device).eval()
        # Two-tower models read pictures with one of the two.
        self._vision = getattr(self._model, "vision_model", self._model)
        self._config = getattr(self._model.config, "vision_config", self._model.config)
        trained = _side(getattr(self._config, "image_size", None)) or _side(self._preparation.size) or 224
        self.side = side or trained
        accepted = inspect.signature(self._vision.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        self.object_names: tuple[str, ...] = ()
        self.attribute_names: tuple[str, ...] = ()
        self.feature_size = self._measure()
        joint = _joint_space(self._model) if attributes and tokenizer is not None else None
        if joint is not None:
            self.attribute_names = visual_genome_names("attributes").names
            with torch.inference_mode():
                (self._states, self._regions), self._texts = (
                    joint,
                    _text_vectors(self._model, tokenizer, self.attribute_names),
                )

    def settings(self) -> dict[str, Any]:
        """What the store records of the backbone."""
        return {
            "backbone": self.model_name,
            "backbone_revision": getattr(self._model.config, "_commit_hash", None),
            "backbone_weights": self._weights,
            "backbone_side": self.side,
            "feature_size": self.feature_size,
        }

    def prepare(self, image: Pixels) -> torch.Tensor:
        """An RGB image (H, W, 3) as (3, S, S); thread-safe."""
        preparation = self._preparation
        square = Image.fromarray(image).resize((self.side, self.side), preparation.resample)
        pixels = np.asarray(square, np.float32) * preparation.scale
        return torch.from_numpy(
            ((pixels - preparation.mean) / preparation.deviation).transpose(2, 0, 1).copy()
        )

    @torch.inference_mode()
    def describe(self, pixels: Sequence[torch.Tensor], boxes: Sequence[Floats]) -> list[dict[str, Any]]:
        """What `RegionFeatures` has of the regions of each picture but their boxes and objects.

        Args:
            pixels: B prepared pictures (3, S, S).
            boxes: For each (K, 4) xyxy as fractions of the picture.

        Returns:
            `features` (K, D), and of models with attributes `attribute_ids`, `attribute_scores` (K,).
        """
        batch = torch.stack(list(pixels)).to(self._device)
        with computing(self._device, self._dtype):
            output = self._vision(
                pixel_values=batch, output_hidden_states=bool(self.attribute_names), **self._options
            )
        maps = output.get("feature_maps")
        cells, stride = self._cells(output.last_hidden_state if maps is None else maps[-1])
        aligned = self._cells(self._states(output))[0] if self.attribute_names else None
        found = []
        for number, fractions in enumerate(boxes):
            places = torch.from_numpy(fractions).to(self._device) * self.side / stride
            fields: dict[str, Any] = {"features": roi_tokens(cells[number], places, 1)[:, 0].cpu().numpy()}
            if aligned is not None:
                regions = self._regions(roi_tokens(aligned[number], places))  # (K, J)
                likeness = torch.nn.functional.normalize(regions, dim=-1) @ self._texts.T  # (K, A)
                best = (likeness * self._model.logit_scale.exp()).softmax(-1).max(-1)
                fields["attribute_ids"] = best.indices.cpu().numpy().astype(np.int32)
                fields["attribute_scores"] = best.values.cpu().numpy()
            found.append(fields)
        return found

    def _cells(self, state: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The map (B, D, h, w) that a model's state is, and the pixels along a side of a cell."""
        state = state.float()
        patch = _side(getattr(self._config, "patch_size", None)) or 1
        strides = [patch * 2**power for power in range(8)]
        # A last cell that is not whole is left out by some models and filled up by others.
        grids = [(-(-self.side // stride), stride) for stride in strides]
        grids += [(self.side // stride, stride) for stride in strides]
        if state.ndim == 4:
            # A map that no stride gives is spread over the picture.
            count = state.shape[-1]
            return state, next((stride for cells, stride in grids if cells == count), self.side / count)
        extra = {state.shape[1] - cells**2: (cells, stride) for cells, stride in reversed(grids) if cells}
        fewest = min((number for number in extra if 0 <= number <= MOST_EXTRA_TOKENS), default=None)
        if fewest is not None:
            cells, stride = extra[fewest]
            grid = state[:, fewest:].transpose(1, 2)  # (B, D, h·w)
            return grid.unflatten(2, (cells, cells)), stride
        raise ValueError(f"{state.shape[1]} tokens are no grid over {self.side} x {self.side} pixels")

    def _measure(self) -> int:
        grey = self.prepare(np.full((8, 8, 3), 127, np.uint8))
        try:
            (found,) = self.describe([grey], [np.array([[0, 0, 1, 1]], np.float32)])
        except (AttributeError, KeyError, TypeError, RuntimeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"{self.model_name}: is no vision model that gives a map of the picture at"
                f" {self.side} x {self.side} pixels ({' '.join(str(error).split())[:200]})",
                hint="DINOv2, ViT, Swin, ResNet, CLIP and SigLIP do; --backbone-side sets the pixels",
            ) from error
        return int(found["features"].shape[1])


class BackboneExtractor:
    """The boxes and labels of another extractor with the vectors of a backbone."""

    def __init__(self, boxes: PictureExtractor | BatchExtractor, backbone: Backbone | LiteBackbone) -> None:
        self._boxes = boxes
        self._backbone = backbone

    def settings(self) -> dict[str, Any]:
        own = {**self._boxes.settings(), **self._backbone.settings()}
        for names in ("object_names", "attribute_names"):
            if found := getattr(self._backbone, names):
                own[names] = list(found)
        return own

    def prepare(self, image_id: ImageId, image: Pixels, width: int, height: int) -> tuple[Any, torch.Tensor]:
        one = self._boxes
        make = one.extract if isinstance(one, PictureExtractor) else one.prepare
        return make(image_id, image, width, height), self._backbone.prepare(image)

    def extract(self, pictures: Sequence[tuple[Any, torch.Tensor]]) -> list[RegionFeatures]:
        found = [picture for picture, _ in pictures]
        if not isinstance(self._boxes, PictureExtractor):
            found = self._boxes.extract(found)
        sizes = [np.array([regions.image_width, regions.image_height] * 2, np.float32) for regions in found]
        described = self._backbone.describe(
            [pixels for _, pixels in pictures],
            [regions.boxes / size for regions, size in zip(found, sizes, strict=True)],
        )
        return [replace(regions, **fields) for regions, fields in zip(found, described, strict=True)]

    def sees(self, regions: RegionFeatures) -> tuple[tuple[str, ...], Floats] | None:
        """As `LiteBackbone.sees`, of regions that this extractor made; None of another backbone."""
        return self._backbone.sees(regions.features) if isinstance(self._backbone, LiteBackbone) else None


def backbone_over(
    boxes: PictureExtractor | Sequence[BatchExtractor], request: Request, row: ExtractorRow
) -> list[BackboneExtractor]:
    """The boxes of an open extractor with the vectors of the request's backbone, a copy per device.

    Args:
        boxes: The extractor; of one that runs models a copy per device.
        request: What it was opened with.
        row: Of the extractor. Names of its own stay, attributes where the row says so.
    """
    if isinstance(boxes, PictureExtractor):
        copies: Sequence[PictureExtractor | BatchExtractor] = [boxes] * len(request.places)
    else:
        copies = boxes
    made = []
    for copy, place in zip(copies, request.places, strict=True):
        settings, side = copy.settings(), request.backbone_side
        backbone: Backbone | LiteBackbone
        if request.backbone == LITE:
            backbone = LiteBackbone(place, side, names=not settings["object_names"])
        else:
            own = row.keeps_attributes and bool(settings["attribute_names"])
            model, revision = str(request.backbone), request.backbone_revision
            backbone = Backbone(model, place, side, revision, attributes=not own)
        made.append(BackboneExtractor(copy, backbone))
    return made


# ---- attributes ---------------------------------------------------------------------------------


def _joint_space(model: Any) -> tuple[_Mapping, _Mapping] | None:
    """How regions get into the space that pictures and texts share, of models like SigLIP and like CLIP.

    Returns:
        From the vision tower's output to the states (B, N, D) that are laid out as a map, and from the tokens
        of regions (K, bins·bins, D) to (K, J); None for other models.
    """
    vision = getattr(model, "vision_model", None)
    if not hasattr(model, "get_text_features") or not hasattr(model, "logit_scale") or vision is None:
        return None
    if getattr(vision, "head", None) is not None:
        # The head that pools the picture's tokens pools a region's.
        return lambda output: output.last_hidden_state, vision.head
    if not hasattr(model, "visual_projection") or not hasattr(vision, "post_layernorm"):
        return None
    last = vision.encoder.layers[-1]

    def values(output: Any) -> torch.Tensor:
        # Of a last layer trained to fill the class token alone, the values of each patch are what is in the
        # joint space (MaskCLIP: Zhou et al., ECCV 2022).
        state = last.layer_norm1(output.hidden_states[-2].float())
        return vision.post_layernorm(last.self_attn.out_proj(last.self_attn.v_proj(state)))

    return values, lambda tokens: model.visual_projection(tokens.mean(dim=1))


def _text_vectors(model: Any, tokenizer: Any, names: Sequence[str]) -> torch.Tensor:
    """Vectors (A, J) of length 1 of the names of attributes."""

    def vectors(tokens: Any) -> torch.Tensor:
        found = model.get_text_features(**tokens)
        return getattr(found, "pooler_output", found)

    prompts = [f"a photo of something {name}" for name in names]
    length = model.config.text_config.max_position_embeddings
    return prompt_vectors(tokenizer, prompts, length, model.device, vectors)


# ---- models -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Preparation:
    """What an image processor's settings ask for: `(pixels · scale - mean) / deviation`, and a size."""

    size: Any
    resample: Image.Resampling
    scale: float
    mean: Floats
    deviation: Floats


def _load(model: str, revision: str | None) -> tuple[_Preparation, Any, Any]:
    """How to prepare pictures, the model, and its tokenizer if it has one."""
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_BACKBONE_MAPPING,
        MODEL_FOR_OBJECT_DETECTION_MAPPING,
        MODEL_MAPPING,
    )

    revision = revision or "main"
    config = load_pretrained(AutoConfig, model, revision=revision)
    # The tables behind AutoModel and AutoBackbone; the latter does not take directories.
    kinds = MODEL_MAPPING if type(config) in MODEL_MAPPING else MODEL_FOR_BACKBONE_MAPPING
    processor = load_pretrained(AutoImageProcessor, model, revision=revision)

    def setting(name: str, default: Any) -> Any:
        value = getattr(processor, name, None)
        return default if value is None else value

    normalised = setting("do_normalize", True)
    preparation = _Preparation(
        setting("crop_size", None) if setting("do_center_crop", False) else setting("size", None),
        Image.Resampling(int(setting("resample", Image.Resampling.BICUBIC))),
        float(setting("rescale_factor", 1 / 255)) if setting("do_rescale", True) else 1.0,
        np.array(setting("image_mean", [0.5] * 3) if normalised else [0.0] * 3, np.float32),
        np.array(setting("image_std", [0.5] * 3) if normalised else [1.0] * 3, np.float32),
    )
    if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        raise ConfigError(
            f"{model}: is a detection model, not a backbone", hint=f"use it as --extractor {model}"
        )
    kind: Any = kinds[type(config)]
    loaded = load_pretrained(kind, model, revision=revision, dtype=torch.float32)
    tokenizer = None
    if hasattr(config, "text_config"):
        tokenizer = load_pretrained(AutoTokenizer, model, revision=revision)
    return preparation, loaded, tokenizer


def _side(size: Any) -> int | None:
    """One number of what a configuration calls a size: 14, (14, 14), {"height": 14}, {"shortest_edge": 14}"""
    if size is None or isinstance(size, int):
        return size
    if isinstance(size, (list, tuple)):
        return int(size[0])
    for name in ("height", "shortest_edge", "longest_edge", "max_height"):
        value = size.get(name) if hasattr(size, "get") else getattr(size, name, None)
        if value:
            return int(value)
    return None
