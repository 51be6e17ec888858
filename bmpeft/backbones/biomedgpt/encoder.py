"""The encoder of BiomedGPT: image patches and text in one sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bmpeft.attention import Layout, PositionBias
from bmpeft.attention.bias import image_position_ids
from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig
from bmpeft.backbones.biomedgpt.image_tower import NUM_CHANNELS, ImageTower
from bmpeft.backbones.biomedgpt.layers import BiomedGPTEncoderLayer
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTEncoderOutput
from bmpeft.backbones.biomedgpt.positions import PositionTables, by_bucket, relative_tables, split_factor

TEXT_TYPE, IMAGE_TYPE = 0, 1
PIXELS_AT_ONCE = 2**18
"""Of the images that a CPU puts through a frozen tower together: four of 256 x 256, all of a batch of 64 x 64."""


class BiomedGPTEncoder(nn.Module, PositionTables):
    """[image ; text] -> hidden states.

    Attributes:
        sample_patch_num: in training mode, how many randomly drawn patches of each image are read (all, where there
            are no more); None: all of them. They are drawn from torch's generator, as dropout's masks are, so
            that a seed fixes them and a run that is resumed draws what it would have drawn.
    """

    main_input_name = "input_ids"

    def __init__(self, config: BiomedGPTConfig) -> None:
        super().__init__()
        width, heads, layers = config.d_model, config.encoder_attention_heads, config.encoder_layers
        self.config = config
        self.gradient_checkpointing = False
        self.sample_patch_num: int | None = None
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.type_embedding = nn.Embedding(2, width)
        self.embed_images = ImageTower(config.resnet_type, config.batch_norm_eps)
        self.image_proj = nn.Linear(NUM_CHANNELS, width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self._init_positions(config)
        self.pos_q_linear = nn.Linear(width, width)
        self.pos_k_linear = nn.Linear(width, width)
        self.token_rel_pos_table_list, self.image_rel_pos_table_list = relative_tables(config, layers, heads)
        rates = torch.linspace(0, config.encoder_drop_path_rate, layers, device="cpu").tolist()
        self.layers = nn.ModuleList(BiomedGPTEncoderLayer(config, i, rates[i]) for i in range(layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        pixel_rows: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BiomedGPTEncoderOutput:
        """Encode a batch.

        Args:
            input_ids: [B, L] int64, padded on the right.
            attention_mask: [B, L], 1 for real tokens; default: everything that is not the padding token.
            pixel_values: [B, 3, H, W] or None; with `pixel_rows` [U, 3, H, W], so that rows may share an image.
            pixel_mask: [B] boolean, false for a row that has no image; default: every row has one.
            pixel_rows: [B] int64, which of `pixel_values` each row shows; default: each row its own.
            output_attentions: not available; fused backends never hold the probabilities.
            output_hidden_states: also return the input of every layer and the last output.
            return_dict: accepted because transformers passes it; the output is always an object.

        Raises:
            ValueError: the text has more tokens than there are positions, or the image than the grid.
        """
        if output_attentions:
            raise ValueError("output_attentions: the attention backends do not keep probabilities")
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        visible = attention_mask.to(torch.bool)
        hidden_states = self._embed_text(input_ids)
        grid: tuple[int, int] | None = None
        sampled_ids: Tensor | None = None
        if pixel_values is not None:
            patches, grid = self._embed_image(pixel_values)
            patches = patches if pixel_rows is None else patches[pixel_rows]
            patches, sampled_ids = self._sample_patches(patches, grid)
            shown = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
            if pixel_mask is not None:
                shown = shown & pixel_mask.to(torch.bool)[:, None]
            hidden_states = torch.cat([patches, hidden_states], dim=1)  # [B, P + L, D]
            visible = torch.cat([shown, visible], dim=1)
        hidden_states = hidden_states * visible[..., None].to(hidden_states.dtype)

        bias = self._position_bias(self.image_ids(grid, sampled_ids), input_ids.shape[1])
        states = []
        for layer, token_table, image_table in zip(
            self.layers, self.token_rel_pos_table_list, self.image_rel_pos_table_list, strict=True
        ):
            if output_hidden_states:
                states.append(hidden_states)
            layer_bias = bias.with_tables(by_bucket(token_table), by_bucket(image_table) if grid else None)
            hidden_states = layer(hidden_states, layer_bias, visible)
        hidden_states = self.layer_norm(hidden_states)
        return BiomedGPTEncoderOutput(
            last_hidden_state=hidden_states,
            hidden_states=(*states, hidden_states) if output_hidden_states else None,
            attention_mask=visible,
            image_grid=grid,
            sampled_image_ids=sampled_ids,
        )

    def image_ids(self, grid: tuple[int, int] | None, sampled_ids: Tensor | None = None) -> Tensor | None:
        """Position ids [1 or B, P] of the patches: of all on the grid, or those that were sampled; None without."""
        if grid is None or sampled_ids is not None:
            return sampled_ids
        device = self.embed_image_positions.weight.device
        return image_position_ids(*grid, self.config.image_bucket_size, device)[None]

    def position_embeddings(self, image_ids: Tensor | None, text_length: int) -> Tensor:
        """Normed embeddings [1 or B, P + L, D] of the absolute positions, those of `image_ids` first."""
        text = self._text_positions(0, text_length)
        if image_ids is None:
            return text
        image = self.image_pos_ln(self.embed_image_positions(image_ids))
        return torch.cat([image, text.expand(len(image_ids), -1, -1)], dim=1)

    def _embed_text(self, input_ids: Tensor) -> Tensor:
        embedded = self.embed_tokens(input_ids) + self.type_embedding.weight[TEXT_TYPE]
        return nn.functional.dropout(self.layernorm_embedding(embedded), self.config.dropout, self.training)

    def _embed_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, 3, H, W] -> patches [B, rows * columns, D] in row-major order, and the grid."""
        tower_dtype, dtype = self.embed_images.conv1.weight.dtype, self.image_proj.weight.dtype
        features = self._image_features(pixel_values.to(tower_dtype))
        if tower_dtype != dtype:  # fully fine-tuned parameters are float32 behind a tower that stays as it is
            features = features.to(dtype)
        rows, columns = features.shape[-2:]
        largest = self.config.image_bucket_size
        if max(rows, columns) > largest:
            raise ValueError(
                f"image of {rows} x {columns} patches: this backbone has positions for {largest} x {largest} "
                f"({largest * 16} pixels a side)"
            )
        embedded = self.image_proj(features.flatten(2).transpose(1, 2)) + self.type_embedding.weight[IMAGE_TYPE]
        embedded = self.patch_layernorm_embedding(embedded)
        return nn.functional.dropout(embedded, self.config.dropout, self.training), (rows, columns)

    def _image_features(self, pixel_values: Tensor) -> Tensor:
        """The tower's output [B, C, rows, columns].

        On a CPU the activations of many large images do not fit its caches, and small images one by one waste it. With
        the statistics of a batch (a tower that is trained) that would be another function.
        """
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        if pixel_values.device.type != "cpu" or self.embed_images.training:
            features: Tensor = self.embed_images(pixel_values)
            return features
        images = max(1, PIXELS_AT_ONCE // (pixel_values.shape[2] * pixel_values.shape[3]))
        return torch.cat([self.embed_images(part) for part in pixel_values.split(images)])

    def _sample_patches(self, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """The patches [B, P, D] that are read and, where they were drawn, their position ids [B, P]."""
        count = self.sample_patch_num
        if not self.training or count is None or count >= patches.shape[1]:
            return patches, None
        # The positions of the highest of independent numbers: every subset is equally likely.
        drawn = torch.rand(patches.shape[:2], device=patches.device).topk(count).indices.sort().values
        ids = self.image_ids(grid)
        assert ids is not None
        return patches.gather(1, drawn[..., None].expand(-1, -1, patches.shape[2])), ids[0, drawn]

    def _position_bias(self, image_ids: Tensor | None, text_length: int) -> PositionBias:
        positions = self.position_embeddings(image_ids, text_length)
        heads = self.config.encoder_attention_heads
        return PositionBias(
            query_factor=split_factor(self.pos_q_linear(positions), heads, self.config.attn_scale_factor),
            key_factor=split_factor(self.pos_k_linear(positions), heads),
            layout=Layout(
                image_ids=image_ids,
                token_bucket_size=self.config.token_bucket_size,
                image_bucket_size=self.config.image_bucket_size,
                max_positions=self.config.max_position_embeddings,
            ),
        )
