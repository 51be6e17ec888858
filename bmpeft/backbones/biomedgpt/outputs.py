"""What the encoder hands to the decoder, and the cache of position factors for generation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput


@dataclass
class BiomedGPTEncoderOutput(BaseModelOutput):
    """Encoder output; every tensor is batch-first, so that beam search can repeat its rows.

    Attributes:
        last_hidden_state: [B, P + L, D], image patches in front of the text.
        attention_mask: [B, P + L] boolean, true for real positions: unlike the mask given to
            `generate` it covers the image.
        image_grid: (rows, columns) of the patches, None without an image.
        sampled_image_ids: [B, P] position ids of the patches, where only some of the grid's were read (in training).
    """

    last_hidden_state: Tensor | None = None
    attention_mask: Tensor | None = None
    image_grid: tuple[int, int] | None = None
    sampled_image_ids: Tensor | None = None

    def of_rows(self, rows: Tensor) -> BiomedGPTEncoderOutput:
        """A new output that has these rows [n]; `self` stays as it is, whatever is done to the new one."""
        assert self.last_hidden_state is not None
        assert self.attention_mask is not None
        rows = rows.to(self.last_hidden_state.device)
        return BiomedGPTEncoderOutput(
            last_hidden_state=self.last_hidden_state[rows],
            attention_mask=self.attention_mask[rows],
            image_grid=self.image_grid,
            sampled_image_ids=None if self.sampled_image_ids is None else self.sampled_image_ids[rows],
        )


class BiomedGPTCache(EncoderDecoderCache):
    """Keys and values of both attentions, and the key factors of both position biases.

    The factors depend on positions alone and are the same for every row; keeping them makes the bias of
    a generated token cost that token's own row only.

    Attributes:
        self_key_factor: [1, H, t, R] for the t decoder positions so far.
        cross_key_factor: [1, H, P + L, R].
    """

    def __init__(self, cache: EncoderDecoderCache) -> None:
        super().__init__(cache.self_attention_cache, cache.cross_attention_cache)
        self.is_updated = cache.is_updated
        self.self_key_factor: Tensor | None = None
        self.cross_key_factor: Tensor | None = None

    def forget_tokens(self) -> None:
        """Forget the decoder's own positions and keep the encoder's keys, values and factors."""
        self.self_attention_cache = DynamicCache()
        self.self_key_factor = None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.self_key_factor = self.cross_key_factor = None
