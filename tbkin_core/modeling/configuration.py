"""Configuration of the model; saved as config.json beside the weights."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from tbkin_core.selection import Selection

_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_SHAPES = {"tiny": (128, 2, 4, 512), "small": (256, 4, 4, 1024), "base": (768, 12, 12, 3072)}
SIZES = {size: dict(zip(_SHAPE, shape, strict=True)) for size, shape in _SHAPES.items()}


class TbkinConfig(PretrainedConfig):
    """Sizes, heads and the selection rule of a TBKIN model."""

    model_type = "tbkin"

    def __init__(
        self,
        vocab_size: int = 30522,  # words of the tokenizer
        hidden_size: int = 768,  # width D of the encoder
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,  # H; divides `hidden_size`
        intermediate_size: int = 3072,  # width of the feed-forward layers
        hidden_dropout_prob: float = 0.1,  # on embeddings, attention and feed-forward outputs
        attention_probs_dropout_prob: float = 0.1,  # on attention weights
        feature_dropout_prob: float = 0.0,  # on the numbers of region vectors, the same ones of all regions
        max_position_embeddings: int = 512,  # longest text in tokens
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        pad_token_id: int = 0,
        region_feature_size: int = 2048,  # width of a region's feature vector; this is bottom-up attention's
        num_object_classes: int = 1600,  # of masked region classification; these are Visual Genome's
        num_attribute_classes: int = 400,  # likewise
        num_answers: int = 3129,  # outputs of the VQA head; `id2label` names them
        direct_width: int = 0,  # of the VQA head's way past the encoder; 0 is the published head, without one
        direct_words: bool = False,  # whether that way also tells how well the image fits the words
        direct_attends: bool = False,  # whether it sees the image where attention looks, too
        encoder_dropout_prob: float = 0.0,  # of samples, which learn from that way alone
        aligned_matching: bool = False,  # whether pretraining matches by words and regions too, beside [CLS]
        even_words: bool = False,  # whether the words of a text weigh about alike there, see `Alignment`
        tower_width: int = 256,  # E of the vectors that retrieval compares texts and images by
        match_weight: float = 1.0,  # in rankings, of a match's logit beside the similarity by these vectors
        threshold: float = 0.0,  # τ of the selection, for "topk" the number k; 0 is the dense model
        selection: str = "relative",  # one of `tbkin_core.selection.SELECTIONS`
        threshold_layers: list[int] | None = None,  # layers that select; None means all
        threshold_scope: str = "all",  # one of `tbkin_core.selection.SCOPES`
        straight_through: bool = False,  # give dropped keys the dense softmax's gradient
        use_regions: bool = True,  # False hides every region from the model (the question-only baseline)
        extractor: dict[str, Any] | None = None,  # what made the features: extractor, model, settings
        max_regions: int = 36,
        max_text_tokens: int = 20,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.feature_dropout_prob = feature_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.region_feature_size = region_feature_size
        self.num_object_classes, self.num_attribute_classes = num_object_classes, num_attribute_classes
        self.num_answers = num_answers
        self.direct_width, self.encoder_dropout_prob = direct_width, encoder_dropout_prob
        self.direct_words, self.direct_attends = direct_words, direct_attends
        self.aligned_matching, self.even_words = aligned_matching, even_words
        self.tower_width, self.match_weight = tower_width, match_weight
        self.selection, self.threshold = selection, threshold
        self.threshold_layers, self.threshold_scope = threshold_layers, threshold_scope
        self.straight_through, self.use_regions = straight_through, use_regions
        self.extractor = extractor
        self.max_regions, self.max_text_tokens = max_regions, max_text_tokens
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)

    def attention_selection(self) -> Selection:
        """The selection rule as attention takes it; ConfigError where a value is out of range."""
        layers = None if self.threshold_layers is None else tuple(self.threshold_layers)
        scope, straight_through = self.threshold_scope, self.straight_through
        return Selection(self.selection, self.threshold, layers, scope, straight_through)

    def answers(self) -> list[str]:
        """The answers of the VQA head, in the order of its outputs."""
        labels: dict[Any, str] = self.id2label or {}
        return [labels[number] for number in range(self.num_answers)]
