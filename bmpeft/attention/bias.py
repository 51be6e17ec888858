"""The position bias of BiomedGPT (OFA) in factored form.

    bias[i, j] = query_factor[i] . key_factor[j]           absolute positions, shared by all layers
               + token_table[bucket(i - j)]                 where i and j are both text
               + image_table[bucket(row_i - row_j, col_i - col_j)]   where i and j are both image patches

The sequence is ``[image patches ; text]``. A `PositionBias` holds the factors and the small tables of
one layer, never an L x L matrix; `materialize` builds that matrix for the backends that want it.

Source: OFA (Wang et al. 2022, arXiv:2202.03052), section 3.1, and the layout of its released checkpoints.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where text and image positions lie among queries and keys.

    Attributes:
        image_ids: [1 or B, P] int64, position id ``row * image_bucket_size + column + 1`` of each image
            patch in front of the text (see `image_position_ids`); None without an image.
        token_bucket_size: distances up to half of it have a bucket each, larger ones share logarithmic buckets.
        image_bucket_size: side of the largest patch grid.
        max_positions: distance at which the last token bucket ends (1,024 in the published checkpoints).
        query_offset: index of the first query in the whole sequence: 0, or, in cached decoding, the
            number of positions that came before.
        text_positions: [1 or B, L] int64, position of each text token, where that is not its index: in a
            token tree it is the depth. Queries and keys are the same tokens then, and there is no image.
    """

    image_ids: Tensor | None = None
    token_bucket_size: int = 256
    image_bucket_size: int = 42
    max_positions: int = 1024
    query_offset: int = 0
    text_positions: Tensor | None = None

    @property
    def num_image(self) -> int:
        """Number of image patches in front of the text."""
        return 0 if self.image_ids is None else self.image_ids.shape[1]


@dataclass(frozen=True)
class PositionBias:
    """Factors and tables of one attention layer's bias.

    Attributes:
        query_factor: [1 or B, H, Lq, R] or None, already scaled.
        key_factor: [1 or B, H, Lk, R] or None.
        token_table: [H, 2 * token_bucket_size - 1] or None, by `token_bucket`.
        image_table: [H, N] or None, by `image_bucket`.
        layout: where text and image positions lie.
    """

    query_factor: Tensor | None = None
    key_factor: Tensor | None = None
    token_table: Tensor | None = None
    image_table: Tensor | None = None
    layout: Layout = Layout()

    @property
    def has_tables(self) -> bool:
        """Whether there is a part that is no product of factors."""
        return self.token_table is not None or self.image_table is not None

    def with_tables(self, token_table: Tensor | None, image_table: Tensor | None) -> PositionBias:
        """The same factors with the tables of another layer."""
        return replace(self, token_table=token_table, image_table=image_table)

    def materialize(self, num_queries: int, num_keys: int) -> Tensor | None:
        """The bias as a matrix [1 or B, H, Lq, Lk] in the dtype of its parts, or None where there is no part."""
        bias = None
        if self.query_factor is not None and self.key_factor is not None:
            bias = self.query_factor @ self.key_factor.transpose(-1, -2)
        num_image, offset = self.layout.num_image, self.layout.query_offset
        if self.token_table is not None:
            text = self._token_block(num_queries, num_keys)
            if num_image > 0:
                text = torch.nn.functional.pad(text, (num_image, 0, max(0, num_image - offset), 0))
            bias = text if bias is None else bias + text
        if self.image_table is not None and num_image > offset:
            image = self._image_block(self.image_table, num_queries)
            image = torch.nn.functional.pad(image, (0, num_keys - image.shape[-1], 0, num_queries - image.shape[-2]))
            bias = image if bias is None else bias + image
        return bias

    def _token_block(self, num_queries: int, num_keys: int) -> Tensor:
        """[1 or B, H, text queries, text keys]: the token table at every distance query - key."""
        assert self.token_table is not None
        layout, device = self.layout, self.token_table.device
        first_query = max(layout.query_offset - layout.num_image, 0)
        text_queries = num_queries - max(layout.num_image - layout.query_offset, 0)
        text_keys = num_keys - layout.num_image
        if layout.text_positions is None:
            queries = torch.arange(first_query, first_query + text_queries, device=device)[None]
            keys = torch.arange(text_keys, device=device)[None]
        else:
            queries = keys = layout.text_positions
        distance = queries[:, :, None] - keys[:, None, :]
        # One table serves all lengths up to max_positions: in cached decoding the length changes at every token.
        longest = max(first_query + text_queries, text_keys, layout.max_positions)
        buckets = token_bucket(longest, layout.token_bucket_size, layout.max_positions).to(device)
        return self.token_table[:, buckets[distance + longest - 1]].transpose(0, 1)

    def _image_block(self, table: Tensor, num_queries: int) -> Tensor:
        """[1 or B, H, image queries, P]: the image table at every pair of patches."""
        ids = self.layout.image_ids
        assert ids is not None
        query_ids = ids[:, self.layout.query_offset : self.layout.query_offset + num_queries]
        index = image_bucket(query_ids, ids, self.layout.image_bucket_size)
        return table[:, index].transpose(0, 1)


def token_bucket(length: int, bucket_size: int = 256, max_positions: int = 1024) -> Tensor:
    """Table index of every distance ``-(length - 1) ... length - 1``: [2 * length - 1] int64.

    Distances up to ``bucket_size / 2`` keep their own index; larger ones share logarithmic buckets
    that end at `max_positions` - 1, and everything beyond falls into the last one.
    """
    return torch.from_numpy(_token_bucket(length, bucket_size, max_positions))


def last_bucket_from(bucket_size: int = 256, max_positions: int = 1024) -> int:
    """The smallest distance from which on all distances share the last bucket."""
    after = _token_bucket(max_positions + 1, bucket_size, max_positions)[
        max_positions:
    ]  # distances 0 ... max_positions
    return int(np.argmax(after == 2 * bucket_size - 2))


def token_line(layout: Layout, num_queries: int, num_keys: int) -> Tensor:
    """Table index [M] int64 of key - query = -last_query ... in the text: one for every diagonal of its block.

    M is the number of text queries plus the number of text keys, less one; there has to be a text query.
    """
    text_queries = num_queries - max(layout.num_image - layout.query_offset, 0)
    text_keys = num_keys - layout.num_image
    last_query = layout.query_offset + num_queries - 1 - layout.num_image
    distance = last_query - torch.arange(text_queries + text_keys - 1)  # query - key
    longest = max(last_query + 1, text_keys, layout.max_positions)
    buckets = token_bucket(longest, layout.token_bucket_size, layout.max_positions)
    return buckets[distance + longest - 1]


def patch_places(image_ids: Tensor, side: int) -> Tensor:
    """row * (2 * side - 1) + column of position ids: differences of places are the image table's index, but for
    that of no difference, 2 * side * (side - 1).
    """
    position = image_ids - 1
    return position.div(side, rounding_mode="floor") * (2 * side - 1) + position.remainder(side)


@functools.lru_cache(maxsize=64)
def _token_bucket(length: int, bucket_size: int, max_positions: int) -> np.ndarray:
    distance = np.arange(-(length - 1), length, dtype=np.int64)
    middle = bucket_size // 2
    magnitude = np.maximum(np.abs(distance), 1).astype(np.float64)
    logarithmic = np.ceil(np.log(magnitude / middle) / math.log((max_positions - 1) / middle) * (middle - 1))
    # Clamped: beyond max_positions the bias is constant.
    far = np.minimum(logarithmic.astype(np.int64) + middle, bucket_size - 1) * np.sign(distance)
    bucket = np.where(np.abs(distance) <= middle, distance, far)
    index: np.ndarray = bucket + bucket_size - 1
    return index


def image_bucket(query_ids: Tensor, key_ids: Tensor, bucket_size: int = 42) -> Tensor:
    """Table index of every pair of image positions: [B, Pq], [B, Pk] -> [B, Pq, Pk] int64.

    Ids from 1 are ``row * bucket_size + column + 1`` and share an index by their difference in rows
    and columns; id 0 (no patch) has three indices of its own after these.
    """
    span = 2 * bucket_size - 1
    query, key = query_ids[:, :, None] - 1, key_ids[:, None, :] - 1
    rows = query.div(bucket_size, rounding_mode="floor") - key.div(bucket_size, rounding_mode="floor")
    columns = query.remainder(bucket_size) - key.remainder(bucket_size)
    index = (rows + bucket_size - 1) * span + columns + bucket_size - 1
    index = torch.where(query < 0, span * span, index)
    index = torch.where(key < 0, span * span + 1, index)
    return torch.where((query < 0) & (key < 0), span * span + 2, index)


def image_position_ids(rows: int, columns: int, bucket_size: int = 42, device: torch.device | None = None) -> Tensor:
    """Position ids [rows * columns] int64 of a grid of patches in row-major order."""
    row = torch.arange(rows, device=device)[:, None] * bucket_size
    return (row + torch.arange(columns, device=device)[None, :] + 1).reshape(-1)
