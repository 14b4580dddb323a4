"""Single-stream encoder over [CLS] text [SEP] regions, and its heads.

Letters: B batch, T text tokens, K regions, L = T + K, D width, V vocabulary, F region feature size.
Masks are True (or 1) where there is something to attend to. The layout is BERT's (post-norm) with region
embeddings added at the end, as in UNITER and ROSITA (Cui et al., ACM MM 2021), so that BERT-base and
ROSITA-base weights fit the size `base`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from tbkin_core.modeling.attention import AttentionRecord, selective_attention
from tbkin_core.modeling.configuration import TbkinConfig
from tbkin_core.modeling.direct import (
    LEAST_WEIGHT,
    NEVER,
    DirectPath,
    ImageWords,
    SilentLinear,
    weighted_mean,
)
from tbkin_core.selection import Selection, rule_of

EVEN_SCALE, ALIGNMENT_SCALE = 30.0, 10.0
"""Of the cosines of words and regions at first, with `even_words` and without."""


@dataclass
class TbkinOutput(ModelOutput):
    """What a forward pass returns; a head fills its own fields."""

    text_states: Tensor | None = None  # (B, T, D)
    region_states: Tensor | None = None  # (B, K, D)
    region_vectors: Tensor | None = None  # (B, K, F), as the model was given them, standardised
    attended: Tensor | None = None  # (B, R, W), see `AttendedMean`
    pooled: Tensor | None = None  # (B, D), tanh of a dense layer over [CLS]
    mlm_logits: Tensor | None = None  # (B, T, V), or (M, V) where only M positions were asked for
    region_feature_pred: Tensor | None = None  # (B, K, F), or (M, F)
    object_logits: Tensor | None = None  # (B, K, object classes), or (M, ...)
    attribute_logits: Tensor | None = None  # (B, K, attribute classes), or (M, ...)
    word_logits: Tensor | None = None  # (B, V), of the words that are said of the image
    itm_logits: Tensor | None = None  # (B, 2), class 1 = image and text belong together
    vqa_logits: Tensor | None = None  # (B, answers)
    rec_scores: Tensor | None = None  # (B, K), -inf where padded
    rec_deltas: Tensor | None = None  # (B, K, 4), box refinement (dx, dy, dw, dh) as in Faster R-CNN
    similarities: Tensor | None = None  # (B, I) of B texts to I images, scaled cosines of their towers
    matched: Tensor | None = None  # (P,) whether the pairs of `itm_logits` belong together, in training
    attentions: tuple[AttentionRecord, ...] | None = None  # one a layer when asked for


class AttendedMean(NamedTuple):
    """Asks for the mean of some values of regions, by weight and by the attention that they get."""

    values: Tensor  # (B, K, W)
    weight: Tensor  # (B, K), 0 and up
    rows: int  # R, of the first positions of the text each


class TextEmbeddings(nn.Module):
    """Words, positions and token type (always 0), normalised."""

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        embedded = self.word_embeddings(input_ids)  # (B, T, D)
        embedded = embedded + self.position_embeddings.weight[: input_ids.shape[1]]
        embedded = embedded + self.token_type_embeddings.weight[0]
        return self.dropout(self.layer_norm(embedded))


class RegionEmbeddings(nn.Module):
    """Region features and geometry, each through a dense layer, added and normalised.

    Features are first standardised by the mean and scale of the training set, which travel with the
    weights; with mean 0 and scale 1, the initial values, they pass unchanged as in the reference.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(config.region_feature_size))
        self.register_buffer("feature_scale", torch.ones(config.region_feature_size))
        self.feature_projection = nn.Linear(config.region_feature_size, config.hidden_size)
        self.geometry_projection = nn.Linear(5, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.feature_dropout = nn.Dropout1d(config.feature_dropout_prob)

    def standardised(self, region_features: Tensor) -> Tensor:
        """Features (B, K, F) by the statistics; in training some of the F are 0 in all regions of an image.

        Of vectors of hundreds of numbers from a network that knew other pictures, few suffice to learn by
        heart which of some thousand images it is.
        """
        vectors = (region_features - self.feature_mean) * self.feature_scale
        return self.feature_dropout(vectors.transpose(1, 2)).transpose(1, 2)

    def forward(self, vectors: Tensor, region_geometry: Tensor) -> Tensor:
        embedded = self.feature_projection(vectors) + self.geometry_projection(region_geometry)
        return self.dropout(self.layer_norm(embedded))  # (B, K, D)


class EncoderLayer(nn.Module):
    """Self-attention with explicit selection, then a feed-forward network; post-norm as in BERT."""

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.kernel: torch.dtype | None = None  # see `tbkin_core.modeling.acceleration`
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(width, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, width)
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def heads(self, projected: Tensor) -> Tensor:
        """(B, N, D) -> (B, H, N, D/H)."""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attended(
        self, states: Tensor, mask: Tensor, selection: Selection, text_length: int, rows: int, values: Tensor
    ) -> Tensor:
        """(B, R, W) the sums of values (B, L, W) by the attention of the first R positions, meant over heads.

        The other arguments are those of `forward`, which has no part in it.
        """
        query, key = self.heads(self.query(states[:, :rows])), self.heads(self.key(states))
        seen = values[:, None].to(query.dtype).expand(-1, self.num_heads, -1, -1)
        return selective_attention(query, key, seen, mask[:, :, :rows], selection, text_length)[0].mean(1)

    def forward(
        self,
        states: Tensor,
        mask: Tensor,
        selection: Selection,
        text_length: int,
        record: bool,
        threshold: Tensor | None = None,
    ) -> tuple[Tensor, AttentionRecord | None]:
        batch, length, width = states.shape
        query, key, value = (self.heads(part(states)) for part in (self.query, self.key, self.value))
        dropout = self.attention_dropout if self.training else 0.0
        attended, kept = selective_attention(
            query, key, value, mask, selection, text_length, dropout, record, threshold, self.kernel
        )
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        states = self.attention_norm(states + self.dropout(self.attention_output(attended)))
        inner = self.output(functional.gelu(self.intermediate(states)))
        return self.output_norm(states + self.dropout(inner)), kept


class Encoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.compiled = False  # whether the layers are, see `tbkin_core.modeling.acceleration`

    def forward(
        self, states: Tensor, mask: Tensor, selection: Selection, text_length: int, record: bool
    ) -> tuple[Tensor, Tensor, tuple[AttentionRecord, ...] | None]:
        records, given_last = [], states
        for number, layer in enumerate(self.layers):
            own = selection.in_layer(number)
            threshold = None
            if self.compiled and own.threshold and rule_of(own.rule).is_number:
                # A number would be compiled in, and a τ that grows would compile at every step.
                threshold = torch.tensor(own.threshold)
            given_last = states
            given = (states, mask, own, text_length, record, threshold)
            if self.gradient_checkpointing and self.training:
                states, kept = torch.utils.checkpoint.checkpoint(layer, *given, use_reentrant=False)
            else:
                states, kept = layer(*given)
            records.append(kept)
        return states, given_last, tuple(records) if record else None


class TransformHead(nn.Module):
    """Dense, GELU, normalise: the first half of BERT's prediction heads."""

    def __init__(self, config: TbkinConfig, width: int | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, width or config.hidden_size)
        self.layer_norm = nn.LayerNorm(width or config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.layer_norm(functional.gelu(self.dense(states)))


class TbkinPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by all TBKIN models; those with a head name its task."""

    task: ClassVar[str] = ""
    config_class = TbkinConfig
    config: TbkinConfig
    base_model_prefix = "tbkin"

    @property
    def answers_past_attention(self) -> bool:
        """Whether answers also come by a way that attention has no part in."""
        return False

    supports_gradient_checkpointing = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SilentLinear):
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, DirectPath):
            for value in (module.share, getattr(module, "usual", None)):
                if value is not None:
                    nn.init.zeros_(value)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)


class TbkinModel(TbkinPreTrainedModel):
    """Embeddings, encoder and pooler; the selection rule is `selection`, a plain attribute.

    Assign another `Selection` to `model.selection` (or `model.tbkin.selection`) to change τ without
    touching the weights.
    """

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__(config)
        self.text_embeddings = TextEmbeddings(config)
        self.region_embeddings = RegionEmbeddings(config)
        self.encoder = Encoder(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.selection = config.attention_selection()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_embeddings.word_embeddings = value  # type: ignore[assignment]

    def embed_regions(self, region_features: Tensor, region_geometry: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, K, F), standardised, and what the encoder reads of them and their places (B, K, D)."""
        dtype = self.region_embeddings.feature_projection.weight.dtype
        vectors = self.region_embeddings.standardised(region_features.to(dtype))
        return vectors, self.region_embeddings(vectors, region_geometry.to(dtype))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        region_features: Tensor | None = None,
        region_geometry: Tensor | None = None,
        region_mask: Tensor | None = None,
        pair_mask: Tensor | None = None,
        output_attentions: bool = False,
        regions: Tensor | None = None,
        attend: AttendedMean | None = None,
    ) -> TbkinOutput:
        """Encode text and regions.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T) bool or 0/1.
            region_features: (B, K, F).
            region_geometry: (B, K, 5), see `region_geometry`.
            region_mask: (B, K) bool or 0/1.
            pair_mask: (B, L, L) bool, False hides a key from a query (interference removal).
            output_attentions: Also return one `AttentionRecord` a layer.
            regions: (B, K, D) of `embed_regions` in the place of features and geometry, for images that are
                encoded with many texts.
            attend: Also return this mean, `attended`: by the attention of the last layer, with its selection,
                over all heads. It is 0 where the selection leaves no region, or none weighs anything.
        """
        text_length = input_ids.shape[1]
        assert region_mask is not None
        region_mask = region_mask.bool()
        if not self.config.use_regions:
            region_mask = torch.zeros_like(region_mask)
        text = self.text_embeddings(input_ids)  # (B, T, D)
        vectors = None
        if regions is None:
            assert region_features is not None and region_geometry is not None
            vectors, regions = self.embed_regions(region_features, region_geometry)
        states = torch.cat([text, regions], dim=1)  # (B, L, D)
        mask = torch.cat([attention_mask.bool(), region_mask], dim=1)[:, None, None, :]  # (B, 1, 1, L)
        if pair_mask is not None:
            mask = mask & pair_mask[:, None, :, :]  # (B, 1, L, L)
        states, before, records = self.encoder(states, mask, self.selection, text_length, output_attentions)
        return TbkinOutput(
            text_states=states[:, :text_length],
            region_states=states[:, text_length:],
            region_vectors=vectors,
            attended=None if attend is None else self._attended(attend, before, mask, text_length),
            pooled=torch.tanh(self.pooler(states[:, 0])),
            attentions=records,
        )

    def _attended(self, attend: AttendedMean, states: Tensor, mask: Tensor, text_length: int) -> Tensor:
        """(B, R, W); the other arguments are what the last layer was given."""
        selection = self.selection.in_layer(len(self.encoder.layers) - 1)
        # About 1 each: the least numbers of half precision are not small enough for shares of small regions.
        weight = attend.weight.float()
        scale = weight.shape[1] / weight.sum(dim=1, keepdim=True).clamp_min(LEAST_WEIGHT)
        share = (weight * scale)[..., None].to(attend.values.dtype)
        weighed = torch.cat([attend.values * share, share], dim=-1)
        weighed = functional.pad(weighed, (0, 0, text_length, 0))  # (B, L, W + 1), 0 of words
        last: EncoderLayer = self.encoder.layers[-1]  # type: ignore[assignment]
        total = last.attended(states, mask, selection, text_length, attend.rows, weighed).float()
        met, share = total[..., :-1], total[..., -1:]
        some = share > torch.finfo(share.dtype).tiny
        mean = torch.where(some, met / torch.where(some, share, 1.0), 0.0)
        return mean.to(attend.values.dtype)


class Alignment(nn.Module):
    """How well the words of a text are met by regions, each by the one that is most like it.

    As in late interaction (Khattab and Zaharia, SIGIR 2020; of words and patches: Yao et al., ICLR 2022),
    here of states that have read each other. From [CLS] alone a small encoder takes very long to learn
    whether the two belong together: after 2 minutes on photos 64 % of pairs were told apart from it, 74 %
    with this.

    With `config.even_words` no word weighs more than e² times as much as another. Left to themselves the
    weights go to the words that are understood first, and those that get none are never learnt: on scenes
    the colours had them, 97 % of captions whose colours an image lacks were refused, of those whose shapes it
    lacks 40 %.
    """

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__()
        self.words = nn.Linear(config.hidden_size, config.hidden_size)
        self.regions = nn.Linear(config.hidden_size, config.hidden_size)
        self.weight = nn.Linear(config.hidden_size, 1)
        self.even = config.even_words
        self.scale = nn.Parameter(torch.tensor(EVEN_SCALE if self.even else ALIGNMENT_SCALE))

    def forward(self, text: Tensor, text_mask: Tensor, regions: Tensor, region_mask: Tensor) -> Tensor:
        """(B,) of states (B, T, D) and (B, K, D) and their masks: a weighted mean of cosines, scaled."""
        words = functional.normalize(self.words(text).float(), dim=-1)
        seen = functional.normalize(self.regions(regions).float(), dim=-1)
        met = (words @ seen.transpose(1, 2)).masked_fill(~region_mask.bool()[:, None], -NEVER).amax(-1)
        weight = self.weight(text)[..., 0].float()
        weight = weight.tanh() if self.even else weight
        weight = weight.masked_fill(~text_mask.bool(), -NEVER).softmax(dim=-1)
        found: Tensor = self.scale * (weight * met).sum(dim=-1)
        return found

    def added(self, output: TbkinOutput, inputs: dict[str, Any]) -> Tensor:
        """`itm_logits` (B, 2) of an output, with what this says of them."""
        masks = inputs["attention_mask"], inputs["region_mask"]
        met = self(output.text_states, masks[0], output.region_states, masks[1])
        return output.itm_logits.float() + torch.stack([-met, met], dim=-1) / 2  # type: ignore[union-attr]


class TbkinForPreTraining(TbkinPreTrainedModel):
    """Masked words, masked regions (feature, object, attribute), image-text matching.

    With `config.direct_width` also the words that are said of an image (`ImageWords`), and with
    `config.direct_attends` masked words also from the regions that they attend to, on that way.
    """

    task = "pretrain"
    _tied_weights_keys = {"mlm_decoder.weight": "tbkin.text_embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__(config)
        self.tbkin = TbkinModel(config)
        self.mlm_head = TransformHead(config)
        self.mlm_decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.region_head = TransformHead(config)
        self.region_feature_decoder = nn.Linear(config.hidden_size, config.region_feature_size)
        self.object_decoder = nn.Linear(config.hidden_size, config.num_object_classes)
        self.attribute_decoder = nn.Linear(config.hidden_size, config.num_attribute_classes)
        self.itm_head = nn.Linear(config.hidden_size, 2)
        self.alignment = Alignment(config) if config.aligned_matching else None
        self.direct = ImageWords(config) if config.direct_width else None
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.mlm_decoder = new_embeddings  # type: ignore[assignment]

    def forward(
        self,
        *,
        text_places: Tensor | None = None,
        region_places: Tensor | None = None,
        visible_regions: Tensor | None = None,
        **inputs: Any,
    ) -> TbkinOutput:
        """All pretraining predictions.

        Args:
            text_places: (M,) positions in the texts laid end to end, b · T + t; only these reach the
                vocabulary head, whose output is then (M, V). None predicts at every position.
            region_places: (M,) likewise for the region heads, b · K + k.
            visible_regions: (B, K) bool, those that nothing is hidden of; the words of an image are told from
                these. None tells them from all.
            inputs: As `TbkinModel.forward`.
        """
        seen, attend = inputs["region_mask"].bool() & self.config.use_regions, None
        seen = seen if visible_regions is None else seen & visible_regions
        area = inputs["region_geometry"][..., 4]
        if self.direct is not None:
            features = inputs["region_features"], inputs["region_geometry"]
            vectors, inputs["regions"] = self.tbkin.embed_regions(*features)
            if self.config.direct_attends:
                rows = inputs["input_ids"].shape[1]
                attend = AttendedMean(self.direct.regions(vectors), seen * area, rows)
        output = self.tbkin(**inputs, attend=attend)
        text, regions = _at(output.text_states, text_places), _at(output.region_states, region_places)
        output.mlm_logits = self.mlm_decoder(self.mlm_head(text))
        hidden = self.region_head(regions)
        output.region_feature_pred = self.region_feature_decoder(hidden)
        output.object_logits = self.object_decoder(hidden)
        output.attribute_logits = self.attribute_decoder(hidden)
        output.itm_logits = self.itm_head(output.pooled)
        if self.alignment is not None:
            output.itm_logits = self.alignment.added(output, inputs)
        if self.direct is not None:
            output.region_vectors = vectors
            output.word_logits = self.direct(vectors, seen, area)
            if attend is not None:
                told = self.direct.attended_logits(_at(output.attended, text_places))
                output.mlm_logits = output.mlm_logits + told
        return output


def _at(states: Tensor | None, places: Tensor | None) -> Tensor:
    # By number: a device would have to wait for the count of what a mask chooses.
    assert states is not None
    return states if places is None else states.flatten(0, 1).index_select(0, places)


class TbkinForVqa(TbkinPreTrainedModel):
    """[CLS] through two dense layers to the answers; `config.id2label` names them.

    With `config.direct_width` words and regions have a way of their own beside (`DirectPath`). In training
    the encoder then says nothing about some samples (`config.encoder_dropout_prob`), so that the way beside
    it learns to do without, and neither leans on what the other has learnt by heart.
    """

    task = "vqa"

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__(config)
        self.tbkin = TbkinModel(config)
        self.answer_head = TransformHead(config, 2 * config.hidden_size)
        self.answer_decoder = nn.Linear(2 * config.hidden_size, config.num_answers)
        self.direct = DirectPath(config) if config.direct_width else None
        self.post_init()

    @property
    def answers_past_attention(self) -> bool:
        return self.direct is not None

    def forward(self, **inputs: Any) -> TbkinOutput:
        """`vqa_logits` (B, answers); inputs as `TbkinModel.forward`."""
        if self.direct is None:
            output = self.tbkin(**inputs)
            output.vqa_logits = self.answer_decoder(self.answer_head(output.pooled))
            return output
        seen = inputs["region_mask"].bool() & self.config.use_regions
        weight = seen * inputs["region_geometry"][..., 4]
        features = inputs["region_features"], inputs["region_geometry"]
        vectors, inputs["regions"] = self.tbkin.embed_regions(*features)
        attend = None
        if self.config.direct_attends:
            attend = AttendedMean(self.direct.regions(vectors), weight, rows=1)
        output = self.tbkin(**inputs, attend=attend)
        logits = self.answer_decoder(self.answer_head(output.pooled))
        if self.training and self.config.encoder_dropout_prob:
            # Not scaled up in turn: either way alone, and both together, are to give logits of one size.
            kept = torch.rand(len(logits), 1, device=logits.device) >= self.config.encoder_dropout_prob
            logits = logits * kept
        output.vqa_logits = logits + self.direct(
            self.tbkin.text_embeddings.word_embeddings(inputs["input_ids"]),
            inputs["attention_mask"],
            self.direct.regions(weighted_mean(vectors, weight)),
            None if output.attended is None else output.attended[:, 0],
            seen.any(dim=1),
            inputs["input_ids"],
        )
        return output


class TbkinForRec(TbkinPreTrainedModel):
    """Scores every region against the expression and refines its box."""

    task = "rec"

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__(config)
        self.tbkin = TbkinModel(config)
        self.rec_head = TransformHead(config)
        self.score_decoder = nn.Linear(config.hidden_size, 1)
        self.delta_decoder = nn.Linear(config.hidden_size, 4)
        self.post_init()

    def forward(self, **inputs: Any) -> TbkinOutput:
        """`rec_scores` (B, K) and `rec_deltas` (B, K, 4); inputs as `TbkinModel.forward`."""
        output = self.tbkin(**inputs)
        hidden = self.rec_head(output.region_states)
        scores = self.score_decoder(hidden).squeeze(-1)  # (B, K)
        output.rec_scores = scores.masked_fill(~inputs["region_mask"].bool(), float("-inf"))
        output.rec_deltas = self.delta_decoder(hidden)
        return output
