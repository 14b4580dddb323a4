"""The way past the encoder: words and the mean over an image, as a whole and where attention looks.

Letters: B batch, T text tokens, K regions, D width of the encoder, W of this way, V vocabulary, F region
feature size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tbkin_core.modeling.configuration import TbkinConfig

NEVER = 1e4
"""What is this much less likely is not taken; infinity would leave rows in which nothing is likely."""

LEAST_WEIGHT = 1e-6
"""Of all regions of an image together; one without any has none."""


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """(B, W) mean of (B, N, W) by weights (B, N) of 0 and up; 0 where these are all 0."""
    share = weight[..., None].to(values.dtype)
    return (values * share).sum(1) / share.sum(1).clamp(min=LEAST_WEIGHT)


WORDS_DROPOUT = 0.3
"""Of what words are told from in pretraining: of few images much is learnt by heart."""


class ImageWords(nn.Module):
    """The words that are said of an image, told from the mean over it alone.

    Its parts have the names that they have in `DirectPath`, the image's side of which begins with them: what
    goes with which words, captions tell, and then need not be learnt from answers.
    """

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__()
        self.regions = nn.Linear(config.region_feature_size, config.direct_width, bias=False)
        self.region_norm = nn.LayerNorm(config.direct_width, eps=config.layer_norm_eps)
        self.vocabulary = nn.Linear(config.direct_width, config.vocab_size)
        self.dropout = nn.Dropout(WORDS_DROPOUT)

    def forward(self, vectors: Tensor, region_mask: Tensor, area: Tensor) -> Tensor:
        """(B, V) of standardised vectors (B, K, F) of regions of some area (B, K), where (B, K) is True."""
        mean = self.regions(self.dropout(weighted_mean(vectors, region_mask * area)))
        image = normed(self.region_norm, mean)
        logits: Tensor = self.vocabulary(self.dropout(image))
        return logits

    def attended_logits(self, attended: Tensor) -> Tensor:
        """(..., V) to add to the logits of masked words, which tell how usual each word is by themselves.

        Args:
            attended: (..., W) the mean of `regions` where each masked word attends to; where it attends to
                none, 0, nothing is added.
        """
        image = self.dropout(normed(self.region_norm, attended)) * attended.any(dim=-1, keepdim=True)
        return functional.linear(image, self.vocabulary.weight)


def normed(norm: nn.LayerNorm, values: Tensor) -> Tensor:
    """(..., W) normalised; where nothing was seen, 0, the same without a gradient.

    That would be so large that half precision ends there.
    """
    found: Tensor = torch.where(values.any(dim=-1, keepdim=True), norm(values), norm.bias)
    return found


MEETINGS = ("mean", "least", "most", "sum")
"""Over the words of a text: how much likelier they are said of an image than of others."""


class SilentLinear(nn.Linear):
    """Without a bias, and with nothing to say before it has learnt."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(width, outputs, bias=False)


class DirectPath(nn.Module):
    """The words of a text and the mean over its image, each on a way of its own to the answers.

    The wide part of "Wide & Deep Learning" (Cheng et al., 2016), of low rank: what a linear model learns from
    few samples, the encoder beside it need not.

    With `config.direct_attends` the image is seen in part as a whole, in part where the encoder's attention
    looks, for a question is of a part of it. What a threshold cuts from attention is not seen there.

    With `config.direct_words` it also tells how well the image fits the words, by what pretraining has learnt
    of the words that are said of images (`ImageWords`): how much likelier each word is said of this image
    than of others. Of a question of yes or no this tells most, and it is no sum of what question and image
    say alone.
    """

    def __init__(self, config: TbkinConfig) -> None:
        super().__init__()
        self.met: SilentLinear | None = None
        if config.direct_words:
            self.vocabulary = nn.Linear(config.direct_width, config.vocab_size)
            # Mean logarithm of each word's chance over images, 0 of words that pretraining did not know.
            self.register_buffer("usual", torch.zeros(config.vocab_size))
            self.met = SilentLinear(len(MEETINGS), config.num_answers)
        self.words = nn.Linear(config.hidden_size, config.direct_width, bias=False)
        self.word_norm = nn.LayerNorm(config.direct_width, eps=config.layer_norm_eps)
        self.regions = nn.Linear(config.region_feature_size, config.direct_width, bias=False)
        self.region_norm = nn.LayerNorm(config.direct_width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.answers = SilentLinear(2 * config.direct_width, config.num_answers)
        # Of what is seen where attention looks, beside what is seen everywhere; 0 is a half.
        self.share = nn.Parameter(torch.zeros(())) if config.direct_attends else None

    def forward(
        self,
        words: Tensor,
        word_mask: Tensor,
        mean: Tensor,
        attended: Tensor | None,
        seen: Tensor,
        input_ids: Tensor,
    ) -> Tensor:
        """What to add to the logits (B, answers).

        Args:
            words: (B, T, D) embeddings of the words alone.
            word_mask: (B, T) bool or 0/1.
            mean: (B, W) of `regions` over an image, by their areas as shares of it: they crowd about small
                things, and the mean over the image says more of it.
            attended: (B, W) the same, by areas and by the attention that the regions get; 0 where it is none.
            seen: (B,) bool, whether there are regions.
            input_ids: (B, T) of the words.
        """
        text = self.word_norm(self.words((words * word_mask[..., None]).sum(1)))
        image = told = normed(self.region_norm, mean)
        if attended is not None and self.share is not None:
            told = torch.lerp(image, normed(self.region_norm, attended), self.share.sigmoid().to(image.dtype))
        logits: Tensor = self.answers(self.dropout(torch.cat([text, told], dim=-1)))
        if self.met is not None:
            known = word_mask.bool() & seen[:, None]
            logits = logits + self.met(self.meetings(image, input_ids, known).to(self.met.weight.dtype))
        return logits

    def of_image(self, means: Tensor) -> Tensor:
        """(B, W) of the mean standardised vectors (B, F) of images."""
        found: Tensor = self.region_norm(self.regions(means))
        return found

    def chances(self, image: Tensor) -> Tensor:
        """(B, V) logarithm of the chance of each word to be said of images (B, W)."""
        return self.vocabulary(image).float().log_softmax(dim=-1)

    def meetings(self, image: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, 4) the `MEETINGS` of words (B, T), where (B, T) is True, with images (B, W); 0 of no word."""
        known = mask & (self.usual[input_ids] < 0)  # type: ignore[index]
        above = self.chances(image).gather(1, input_ids) - self.usual[input_ids]  # type: ignore[index]
        count = known.sum(dim=1)
        total = (above * known).sum(dim=1)
        least = above.masked_fill(~known, NEVER).amin(dim=1)
        most = above.masked_fill(~known, -NEVER).amax(dim=1)
        found = torch.stack([total / count.clamp_min(1), least, most, total], dim=-1)
        return found.masked_fill((count == 0)[:, None], 0.0)
