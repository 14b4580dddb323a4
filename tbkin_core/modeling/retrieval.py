"""The head of retrieval: two towers on the encoder, and the encoder over text and image together.

Letters: B batch of texts, I images, C texts that are matched, N positions, D width of the encoder, E of the
towers' vectors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tbkin_core.modeling.configuration import TbkinConfig
from tbkin_core.modeling.direct import NEVER, weighted_mean
from tbkin_core.modeling.models import Alignment, TbkinModel, TbkinOutput, TbkinPreTrainedModel

FIRST_SCALE, MOST_SCALE = 15.0, 100.0
"""Of the cosines of the towers; the most is CLIP's (Radford et al., ICML 2021)."""


class Tower(nn.Module):
    """What the encoder makes of one modality, beside a linear way past it, to one vector of length 1.

    The linear way can begin as what is known before anything is trained (`begin`): the wide part of "Wide &
    Deep Learning" (Cheng et al., 2016), of which the encoder then learns the rest.
    """

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__()
        self.states = nn.Linear(2 * config.hidden_size, config.tower_width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, mask: Tensor, direct: Tensor) -> Tensor:
        """(B, E) of states (B, N, D), a mask (B, N) with a True in each row, and the linear way (B, E)."""
        found = self.states(self.dropout(_pooled(states, mask))) + self.dropout(direct)
        return functional.normalize(found.float(), dim=-1)


class TextTower(Tower):
    """Of texts; the linear way is a sum over their word pieces."""

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.tower_width)
        self.bias = nn.Parameter(torch.zeros(config.tower_width))

    def linear(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, E) of pieces (B, T)."""
        return self.bias + (self.words(input_ids) * mask[..., None]).sum(1)


class ImageTower(Tower):
    """Of images; the linear way begins at the mean of their regions by area, and at the maximum."""

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__(config)
        self.regions = nn.Linear(2 * config.region_feature_size, config.tower_width)

    def linear(self, vectors: Tensor, mask: Tensor, area: Tensor) -> Tensor:
        """(B, E) of standardised vectors (B, K, F) of regions with some area (B, K)."""
        return self.regions(_pooled(vectors, mask, area))  # type: ignore[no-any-return]


def _pooled(values: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B, 2 W) mean, by weight (B, N) or not, and maximum of (B, N, W) where (B, N) is True."""
    keep = mask.bool()[..., None]
    mean = weighted_mean(values, mask.bool() if weight is None else mask.bool() * weight)
    most = values.masked_fill(~keep, torch.finfo(values.dtype).min).amax(1)
    return torch.cat([mean, most], dim=-1)


class TbkinForRetrieval(TbkinPreTrainedModel):
    """Whether a text and an image belong together, in two ways on one encoder.

    Two towers read text alone and image alone, so that the vectors of many images can be kept and compared
    with a new text at once; the encoder over both together, dearer and better, ranks what they bring. It is
    trained on the negatives that the towers find hard (Li et al., NeurIPS 2021, "Align before fuse").
    """

    task = "retrieval"

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__(config)
        self.tbkin = TbkinModel(config)
        self.itm_head = nn.Linear(config.hidden_size, 2)
        self.alignment = Alignment(config)
        self.text_tower = TextTower(config)
        self.image_tower = ImageTower(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.post_init()

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by: the reciprocal of a temperature."""
        return self.log_scale.clamp(max=math.log(MOST_SCALE)).exp()

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, E) vectors of length 1 of texts (B, T) alone."""
        none = self.tbkin.region_embeddings.feature_projection.weight.new_zeros(len(input_ids), 1, 1)
        hidden = none.expand(-1, -1, self.config.hidden_size)
        mask = torch.zeros_like(none[..., 0], dtype=torch.bool)
        output = self.tbkin(input_ids, attention_mask, region_mask=mask, regions=hidden)
        direct = self.text_tower.linear(input_ids, attention_mask)
        found: Tensor = self.text_tower(output.text_states, attention_mask, direct)
        return found

    def embed_images(self, region_features: Tensor, region_geometry: Tensor, region_mask: Tensor) -> Tensor:
        """(B, E) vectors of length 1 of images alone, as `TbkinModel.forward` takes them."""
        embedded = self.tbkin.embed_regions(region_features, region_geometry)
        return self.image_vectors(*embedded, region_geometry, region_mask)

    def image_vectors(
        self, vectors: Tensor, regions: Tensor, region_geometry: Tensor, region_mask: Tensor
    ) -> Tensor:
        """The same of what `TbkinModel.embed_regions` gives."""
        absent = torch.zeros(len(regions), 1, dtype=torch.long, device=regions.device)
        output = self.tbkin(absent, absent, region_mask=region_mask, regions=regions)
        direct = self.image_tower.linear(vectors, region_mask, region_geometry[..., 4])
        found: Tensor = self.image_tower(output.region_states, region_mask, direct)
        return found

    @torch.no_grad()
    def begin(self, words: Tensor, bias: Tensor, images: Tensor, image_bias: Tensor) -> None:
        """Let both towers begin as linear ones, which the encoder adds nothing to yet.

        Args:
            words: (V, E') of texts, E' at most E.
            bias: (E',) likewise.
            images: (F, E') of the mean of standardised region vectors.
            image_bias: (E',) likewise.
        """
        width = words.shape[1]
        for parameter in (*self.text_tower.parameters(), *self.image_tower.parameters()):
            nn.init.zeros_(parameter)
        self.text_tower.words.weight[:, :width] = words
        self.text_tower.bias[:width] = bias
        self.image_tower.regions.weight[:width, : len(images)] = images.T
        self.image_tower.regions.bias[:width] = image_bias

    def forward(
        self,
        *,
        positives: Tensor | None = None,
        own: Tensor | None = None,
        chosen: Tensor | None = None,
        **inputs: Any,
    ) -> TbkinOutput:
        """`itm_logits` (B, 2) of B texts and their images; inputs as `TbkinModel.forward`.

        Args:
            positives: (B, I) bool, for training: which of B texts are true of which of I images. Then the
                output has the `similarities` (B, I) of the towers, and `itm_logits` (3 C, 2): of each text
                that is chosen with its image, with one that it is not true of, and of its image with a text
                that is not true of it. The likelier the towers hold a pair, the likelier it is taken.
            own: (B,) which image each text is of.
            chosen: (C,) texts that are matched.
        """
        if positives is None or own is None or chosen is None:
            return self._matched(**inputs)
        mask = inputs["region_mask"]
        vectors, regions = self.tbkin.embed_regions(inputs["region_features"], inputs["region_geometry"])
        texts = self.embed_texts(inputs["input_ids"], inputs["attention_mask"])
        seen = self.image_vectors(vectors, regions, inputs["region_geometry"], mask)
        # Half precision would round away what tells the likeliest apart.
        with torch.autocast(mask.device.type, enabled=False):
            similarities = self.scale * (texts @ seen.T)  # (B, I)
        images = own[chosen]
        with torch.no_grad():
            wrong = similarities.masked_fill(positives, -NEVER)
            other_image, other_text = _drawn(wrong[chosen]), _drawn(wrong.T[images])
        text = torch.cat([chosen, chosen, other_text])
        image = torch.cat([images, other_image, images])
        output = self._matched(
            input_ids=inputs["input_ids"][text],
            attention_mask=inputs["attention_mask"][text],
            region_mask=mask[image],
            regions=regions[image],
        )
        output.similarities, output.matched = similarities, positives[text, image]
        return output

    def _matched(self, **inputs: Any) -> TbkinOutput:
        output: TbkinOutput = self.tbkin(**inputs)
        output.itm_logits = self.itm_head(output.pooled)
        output.itm_logits = self.alignment.added(output, inputs)
        return output


def _drawn(scores: Tensor) -> Tensor:
    """(N,) one column of each row of (N, C) scores: of every second row by their softmax, else any.

    From hard pairs alone an encoder that cannot tell easy ones apart learns nothing.
    """
    hard = scores.float().softmax(dim=-1)
    easy = (scores > -NEVER).float() + 1e-6
    easy = easy / easy.sum(dim=-1, keepdim=True)
    every_second = torch.arange(len(scores), device=scores.device)[:, None] % 2 == 0
    return torch.multinomial(torch.where(every_second, hard, easy), 1)[:, 0]
