"""Detection models as extractors: opening one of any family, and those that are prompted.

OWL-ViT, OWLv2 and Grounding DINO are prompted with what to look for: the 1,600 object names of Visual Genome.
One thing is found under several names, or by several patches, so regions that overlap much are one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tbkin_core.errors import ConfigError
from tbkin_core.features.extractors.base import Request
from tbkin_core.features.extractors.fixed_class import DetectorExtractor, Found, Picture
from tbkin_core.features.extractors.models import loading, pretrained, prompt_vectors
from tbkin_core.names.vocabulary import visual_genome_names
from tbkin_core.support.pretrained import load_pretrained

# Just below 0.7 as float32: of two regions that overlap by 0.7 the lesser is dropped.
OVERLAP = float(np.nextafter(np.float32(0.7), np.float32(0)))


class _PromptedExtractor(DetectorExtractor):
    """What the prompted detectors share."""

    overlap = OVERLAP

    def _load(self, revision: str | None) -> tuple[Any, Any]:
        from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer

        self._tokenizer = load_pretrained(AutoTokenizer, self.model_name, revision=revision or "main")
        return pretrained(AutoModelForZeroShotObjectDetection, self.model_name, revision)

    def _names(self) -> tuple[str, ...]:
        return visual_genome_names("objects").names


class OwlExtractor(_PromptedExtractor):
    """OWL-ViT (Minderer et al., ECCV 2022) and OWLv2 (Minderer et al., NeurIPS 2023).

    Every patch of the image has a box and an embedding in the space of the names' embeddings, which are made
    once. That embedding is the region's vector. Attributes are predicted the same way.
    """

    def _measure(self) -> int:
        self.attribute_names = visual_genome_names("attributes").names
        prompts = [f"a photo of a {name}" for name in self.object_names]
        prompts += [f"a photo of something {name}" for name in self.attribute_names]
        self._prompts = self._embedded(prompts)  # (C + A, D)
        return self._prompts.shape[1]

    @torch.inference_mode()
    def _embedded(self, prompts: list[str]) -> torch.Tensor:
        towers = getattr(self._model, self._model.base_model_prefix)
        length = self._model.config.text_config.max_position_embeddings

        def projected(tokens: Any) -> torch.Tensor:
            state = towers.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            return towers.text_projection(state.pooler_output)

        return prompt_vectors(self._tokenizer, prompts, length, self._device, projected)

    def _frame(self, picture: Picture) -> tuple[int, int]:
        # OWLv2 pads to a square at the right and below, OWL-ViT resizes to one.
        if self._model.config.model_type == "owlv2":
            return (max(picture.width, picture.height),) * 2
        return picture.width, picture.height

    def _forward(self, inputs: dict[str, torch.Tensor]) -> Found:
        cells, _ = self._model.image_embedder(inputs["pixel_values"])  # (B, h, w, D)
        with torch.autocast(self._device.type, enabled=False):
            # Boxes are read off logits, where half precision would be several pixels.
            cells = cells.float()
            queries = cells.flatten(1, 2)
            boxes = self._model.box_predictor(queries, cells)
            prompts = self._prompts.expand(len(queries), -1, -1)
            logits, states = self._model.class_predictor(queries, prompts)
        chances = logits.sigmoid()
        scores, classes = chances[..., : len(self.object_names)].max(dim=-1)
        attribute_scores, attributes = chances[..., len(self.object_names) :].max(dim=-1)
        return Found(scores, classes, boxes, states, attribute_scores, attributes)


class GroundingExtractor(_PromptedExtractor):
    """Grounding DINO (Liu et al., ECCV 2024), also as MM-Grounding-DINO.

    It reads at most 256 tokens beside an image, so the names are put in several prompts, each with a pass of
    its own; what does not depend on the prompt is done once per image, and what does not depend on the image
    once for all. A name's score is the mean over its tokens, the region's vector the decoder's state.
    """

    def _measure(self) -> int:
        tokenizer = self._tokenizer
        dot = tokenizer.convert_tokens_to_ids(".")
        most = min(self._model.config.max_text_len, tokenizer.model_max_length)
        self._prompts: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        tokens: list[int] = []
        spans: list[range] = []

        def close() -> None:
            ids = torch.tensor([[tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id]])
            means = torch.zeros(len(spans), self._model.config.max_text_len)
            for row, span in enumerate(spans):
                means[row, span.start : span.stop] = 1 / max(len(span), 1)
            first = sum(len(prompt[1]) for prompt in self._prompts)
            self._prompts.append((ids.to(self._device), means.to(self._device), first))
            tokens.clear()
            spans.clear()

        for name in self.object_names:
            pieces: list[int] = tokenizer(name, add_special_tokens=False).input_ids[: most - 3]
            if len(tokens) + len(pieces) + 3 > most:
                close()
            spans.append(range(len(tokens) + 1, len(tokens) + 1 + len(pieces)))
            tokens += [*pieces, dot]
        close()
        self._read_once()
        return int(self._model.config.d_model)

    def _read_once(self) -> None:
        """Let the image's backbone work once per image, and the text's once per prompt."""
        from transformers.modeling_outputs import BaseModelOutput

        vision, text = self._model.model.backbone, self._model.model.text_backbone
        see, read = vision.forward, text.forward
        self._prompt = 0
        self._seen: Any = None
        texts: dict[int, torch.Tensor] = {}

        def seen(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
            if self._seen is None:
                self._seen = see(pixel_values, pixel_mask)
            # The model adds levels of its own to these lists.
            return tuple(list(part) for part in self._seen)

        def was_read(input_ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
            if self._prompt not in texts:
                alone = [None if value is None else value[:1] for value in rest]
                texts[self._prompt] = read(input_ids[:1], *alone, **options).last_hidden_state
            return BaseModelOutput(last_hidden_state=texts[self._prompt].expand(len(input_ids), -1, -1))

        vision.forward, text.forward = seen, was_read

    def _forward(self, inputs: dict[str, torch.Tensor]) -> Found:
        self._seen = None
        parts: list[Found] = []
        count = len(inputs["pixel_values"])
        for number, (ids, means, first) in enumerate(self._prompts):
            self._prompt = number
            output = self._model(**inputs, input_ids=ids.expand(count, -1))
            chances = output.logits.float().sigmoid() @ means.T  # (B, Q, names of this prompt)
            best, classes = chances.max(dim=-1)
            states = output.last_hidden_state.float()
            found = Found(best, classes + first, output.pred_boxes.float(), states)
            parts.append(found.best(4 * self.max_regions))
        columns = zip(*(part.given().items() for part in parts), strict=True)
        return Found(**{column[0][0]: torch.cat([value for _, value in column], dim=1) for column in columns})


PROMPTED = {
    "owlvit": OwlExtractor,
    "owlv2": OwlExtractor,
    "grounding-dino": GroundingExtractor,
    "mm-grounding-dino": GroundingExtractor,
}
"""Extractors of the zero-shot detectors, by their `model_type`."""


def open_extractor(request: Request) -> list[DetectorExtractor]:
    """A copy of the model per device."""
    return [
        open_detector(str(request.model), request.max_regions, place, request.revision)
        for place in request.places
    ]


def open_detector(
    model: str,
    max_regions: int = 36,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    precision: str = "auto",
) -> DetectorExtractor:
    """The extractor for a detection model.

    Args:
        model, max_regions, device, revision, precision: As for `DetectorExtractor`.

    Raises:
        MissingDependencyError: The model cannot be loaded or reached.
        ConfigError: It is a detector of another kind, or none.
    """
    with loading("detector", model):
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING

        config = load_pretrained(AutoConfig, model, revision=revision or "main")
        prompted = type(config) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING
    if not prompted:
        return DetectorExtractor(model, max_regions, device, revision, precision)
    if config.model_type not in PROMPTED:
        raise ConfigError(
            f"{model}: is a zero-shot detector of the kind {config.model_type}, which is not supported",
            hint="OWL-ViT, OWLv2 and Grounding DINO are",
        )
    return PROMPTED[config.model_type](model, max_regions, device, revision, precision)
