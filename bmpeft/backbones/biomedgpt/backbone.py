"""BiomedGPT as a frozen backbone: examples to tensors, tensors to scores and texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from bmpeft.attention import Choice, choose_backend
from bmpeft.backbones.base import AnswerSet, CandidateScores, EncodedExample, FrozenBackbone
from bmpeft.backbones.biomedgpt.generation import generate_ids
from bmpeft.backbones.biomedgpt.image_tower import STRIDE, default_processor
from bmpeft.backbones.biomedgpt.modeling import IGNORED_LABEL, BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTEncoderOutput
from bmpeft.backbones.biomedgpt.scoring import score_answers
from bmpeft.backbones.biomedgpt.trie import TokenTrie, build_trie
from bmpeft.backbones.description import LICENCE_FILE, BackboneDescription
from bmpeft.backbones.fingerprint import canonical_state, fingerprint_of
from bmpeft.backbones.quiet_loading import no_progress_bars
from bmpeft.backbones.tokenizing import LoadedTokenizer, source_ids, target_ids
from bmpeft.errors import BackboneError, BmpeftError, UsageError
from bmpeft.images.processing import PROCESSOR_FILE, ImageLoader, ImageProcessor
from bmpeft.recipe_decoding import BeamDecoding, SampleDecoding, TrieDecoding
from bmpeft.records import Example

IMAGE_TOWER = "encoder.embed_images."
IMAGE_PARAMETERS = (
    IMAGE_TOWER,
    "encoder.image_proj.",
    "encoder.patch_layernorm_embedding.",
    "encoder.embed_image_positions.",
    "encoder.image_pos_ln.",
    "encoder.image_rel_pos_table_list.",
)
"""Not reachable from text alone."""
CODE_PARAMETERS = (
    "decoder.embed_image_positions.",
    "decoder.image_pos_ln.",
    "decoder.image_rel_pos_table_list.",
    "decoder.code_layernorm_embedding.",
)
"""For writing image codes, which none of the tasks does: never reachable."""


class BiomedGPTBackbone(FrozenBackbone):
    """A frozen `BiomedGPTForConditionalGeneration` with its tokenizer."""

    family = "biomedgpt"
    model: BiomedGPTForConditionalGeneration

    def __init__(
        self,
        *,
        name: str,
        init: str,
        init_seed: int | None,
        model: BiomedGPTForConditionalGeneration,
        tokenizer: LoadedTokenizer,
        fingerprint: str,
        image_processor: ImageProcessor | None = None,
        licence_note: bytes | None = None,
    ) -> None:
        processor = image_processor or default_processor(model.config)
        super().__init__(
            name=name,
            init=init,
            init_seed=init_seed,
            model=model,
            tokenizer=tokenizer.tokenizer,
            fingerprint=fingerprint,
            tokenizer_digest=tokenizer.digest,
            attention=model.config._attn_implementation,
            image_processor=processor,
        )
        self.loaded_tokenizer = tokenizer
        # What upstream says about its weights goes wherever they, or weights trained from them, are saved.
        self.licence_note = licence_note
        # What a directory's generation_config.json asks for would slip into every decoding.
        model.generation_config = GenerationConfig.from_model_config(model.config)
        self._images = ImageLoader(processor)

    def attention_layers(self, source_length: int, target_length: int) -> tuple[tuple[int, Choice], ...]:
        """The encoder's, the decoder's own and the decoder's to the source, by backend."""
        config = self.model.config
        stacks = (
            (config.encoder_layers, source_length, source_length, True),
            (config.decoder_layers, target_length, source_length, False),
            (config.decoder_layers, target_length, target_length, True),
        )
        return tuple(
            (layers, choose_backend(self.attention, self.device.type, queries, keys, tables=tables))
            for layers, queries, keys, tables in stacks
        )

    @property
    def residual_blocks(self) -> int:
        """Two in each encoder layer, three in each decoder layer."""
        return 2 * self.model.config.encoder_layers + 3 * self.model.config.decoder_layers

    @property
    def longest_sum(self) -> int:
        """See `FrozenBackbone.longest_sum`."""
        config = self.model.config
        return max(config.d_model, config.encoder_ffn_dim, config.decoder_ffn_dim)

    def unreached_parameters(self, *, with_images: bool) -> tuple[str, ...]:
        """See `FrozenBackbone.unreached_parameters`."""
        return CODE_PARAMETERS if with_images else (*IMAGE_PARAMETERS, *CODE_PARAMETERS)

    @property
    def image_tower_parameters(self) -> tuple[str, ...]:
        """See `FrozenBackbone.image_tower_parameters`."""
        return (IMAGE_TOWER,)

    def keep_statistics(self, keep: bool) -> None:
        """See `FrozenBackbone.keep_statistics`."""
        self.model.encoder.embed_images.frozen_statistics = keep

    def extend_positions(self, positions: int) -> None:
        """See `FrozenBackbone.extend_positions` and `BiomedGPTForConditionalGeneration.extend_positions`."""
        trained = self.model.config.max_position_embeddings
        if positions < trained:
            raise BackboneError(f"backbone.max_positions={positions}: {self.name} has {trained} already")
        self.model.extend_positions(positions)
        self.max_positions = positions if positions > trained else None

    def encode(self, example: Example, *, max_source_length: int, max_target_length: int) -> EncodedExample:
        """bos + source + eos, and target + eos; see `FrozenBackbone.encode`."""
        ids, cut = self._source(example, max_source_length)
        prefix, labels = decoder_prefix(ids, example.prompt_layout), None
        if example.target is not None:
            labels = tuple(target_ids(self.tokenizer, example, self._within_positions(max_target_length)))
            if max(labels) >= self.model.config.code_token_start:
                raise BmpeftError(
                    f"record {example.record.id}: image-code and location targets are not supported by this backbone"
                )
            self._within_positions(len(prefix) + len(labels))
        return EncodedExample(
            input_ids=ids,
            labels=labels,
            document_tokens_cut=cut,
            image=example.image,
            image_patches=0 if example.image is None else (self._images.processor.image_size // STRIDE) ** 2,
            decoder_prefix=prefix,
        )

    def collate(self, examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
        """See `FrozenBackbone.collate`."""
        rows = [torch.tensor(example.input_ids) for example in examples]
        batch = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=self.model.config.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        }
        if any(example.image is not None for example in examples):
            batch["pixel_values"], batch["pixel_mask"] = self._pixels(examples)
        answers = [(example.decoder_prefix, example.labels) for example in examples if example.labels is not None]
        if len(answers) == len(examples):
            batch |= self.decoder_batch(answers)
        return batch

    def decoder_batch(self, answers: Sequence[tuple[tuple[int, ...], Sequence[int]]]) -> dict[str, Tensor]:
        """What the decoder reads and is to write, for pairs of a prefix and labels.

        Returns:
            `labels` [B, T], ignored over a prefix and the padding; where there are prefixes `decoder_input_ids`
            [B, T], which without them are the labels behind the start token, as the model makes them.
        """
        labels = [torch.tensor([IGNORED_LABEL] * len(prefix) + list(ids)) for prefix, ids in answers]
        batch = {"labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL)}
        if any(prefix for prefix, _ in answers):
            config = self.model.config
            read = [torch.tensor([config.decoder_start_token_id, *prefix, *ids[:-1]]) for prefix, ids in answers]
            batch["decoder_input_ids"] = pad_sequence(read, batch_first=True, padding_value=config.pad_token_id)
        return batch

    @torch.inference_mode()
    def score_candidates(
        self, model: Any, examples: Sequence[Example], *, max_source_length: int
    ) -> list[CandidateScores]:
        """See `FrozenBackbone.score_candidates` and `bmpeft.backbones.biomedgpt.scoring`."""
        runner = _without_wrapper(model)
        candidates = self._candidate_ids(examples)
        memory, prefixes = self._encoded(runner, examples, max_source_length)
        self._within_positions(max(len(p) + max(map(len, c)) for p, c in zip(prefixes, candidates, strict=True)))
        scores = score_answers(runner, memory, candidates, prefixes)
        return [
            CandidateScores(log_likelihoods=tuple(row), lengths=tuple(map(len, ids)))
            for row, ids in zip(scores, candidates, strict=True)
        ]

    @torch.inference_mode()
    def generate(
        self,
        model: Any,
        examples: Sequence[Example],
        decoding: BeamDecoding | SampleDecoding,
        *,
        max_source_length: int,
    ) -> list[str]:
        """See `FrozenBackbone.generate`; sampling draws from `decoding.seed` and leaves other generators alone."""
        runner = _without_wrapper(model)
        memory, prefixes = self._encoded(runner, examples, max_source_length)
        self._within_positions(max(map(len, prefixes)) + decoding.max_new_tokens)
        ids = generate_ids(runner, memory, decoding, prefixes=prefixes)
        texts: list[str] = self.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.strip() for text in texts]

    def compile_answers(self, answers: Sequence[str]) -> AnswerTrie:
        """See `FrozenBackbone.compile_answers`."""
        ids = self.tokenizer([f" {answer}" for answer in answers], add_special_tokens=False, verbose=False)["input_ids"]
        config = self.model.config
        for number, row in enumerate(ids, start=1):
            if max(row, default=config.vocab_size) >= config.code_token_start:
                raise UsageError(f"task.decoding.answers: answer {number} has no tokens, or others than those of text")
        ended = [[*row, config.eos_token_id] for row in ids]
        return AnswerTrie(
            answers=tuple(answers),
            trie=build_trie(ended, [config.decoder_start_token_id]),
            by_ids={tuple(row): answer for row, answer in zip(reversed(ended), reversed(answers), strict=True)},
        )

    @torch.inference_mode()
    def choose(
        self,
        model: Any,
        examples: Sequence[Example],
        answers: AnswerSet,
        decoding: TrieDecoding,
        *,
        max_source_length: int,
    ) -> list[str]:
        """See `FrozenBackbone.choose`."""
        assert isinstance(answers, AnswerTrie)
        runner = _without_wrapper(model)
        memory, prefixes = self._encoded(runner, examples, max_source_length)
        self._within_positions(max(map(len, prefixes)) + answers.trie.longest)
        written = generate_ids(runner, memory, decoding, prefixes=prefixes, trie=answers.trie)
        return [answers.by_ids[tuple(ids)] for ids in written]

    def trained(self, name: str, dtype: torch.dtype) -> BiomedGPTBackbone:
        """The same backbone after its weights were trained, cast to the type they are stored in: a new fingerprint."""
        model = self.model.to(dtype=dtype)  # type: ignore[call-arg]  # a wrapper without a type
        return BiomedGPTBackbone(
            name=name,
            init="pretrained",
            init_seed=None,
            model=model,
            tokenizer=self.loaded_tokenizer,
            fingerprint=fingerprint_of(canonical_state(model)),
            image_processor=self.image_processor,
            licence_note=self.licence_note,
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write weights, config, tokenizer, licence note and `backbone.json`; `AutoModelForSeq2SeqLM` reads these too.

        Raises:
            BackboneError: an adapter is attached to the model, which would be saved along.
        """
        directory = Path(directory)
        if self.is_adapted:
            raise BackboneError("an adapter is attached: unload it before saving the backbone")
        with no_progress_bars():
            self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        (directory / "tokenizer.json").write_text(self.loaded_tokenizer.text, encoding="utf-8")
        processor = json.dumps(self._images.processor.content(), indent=2) + "\n"
        (directory / PROCESSOR_FILE).write_text(processor, encoding="utf-8")
        if self.licence_note is not None:
            (directory / LICENCE_FILE).write_bytes(self.licence_note)
        BackboneDescription(
            family=self.family,
            name=Path(self.name).name,
            init=self.init,
            init_seed=self.init_seed,
            fingerprint=self.fingerprint,
            stored_tensors=fingerprint_of(canonical_state(self.model)),
            tokenizer_digest=self.tokenizer_digest,
        ).write(directory)

    def _pixels(self, examples: Sequence[EncodedExample]) -> tuple[Tensor, Tensor]:
        """`pixel_values` [B, 3, S, S] float32 and `pixel_mask` [B]; images are decoded here, a batch at a time."""
        side = self._images.processor.image_size
        pixels = torch.zeros(len(examples), 3, side, side)
        for row, example in enumerate(examples):
            if example.image is not None:
                pixels[row] = torch.from_numpy(self._images.pixels(example.image))
        return pixels, torch.tensor([example.image is not None for example in examples])

    def _source(self, example: Example, max_source_length: int) -> tuple[tuple[int, ...], int]:
        """bos + source + eos within the limit, and how many document tokens were cut."""
        limit = self._within_positions(max_source_length) - 2
        ids, cut = source_ids(self.tokenizer, example, limit)
        return (self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id), cut

    def _within_positions(self, length: int) -> int:
        positions = self.model.max_text_positions
        if length > positions:
            raise BmpeftError(
                f"{length} tokens asked for: {self.name} has positions for {positions} "
                "(backbone.max_positions adds some)"
            )
        return length

    def _encoded(
        self, model: BiomedGPTForConditionalGeneration, examples: Sequence[Example], max_source_length: int
    ) -> tuple[BiomedGPTEncoderOutput, list[tuple[int, ...]]]:
        """The encoder's output for some examples, each image's patches made once, and their decoder prefixes."""
        sources = [self._source(example, max_source_length)[0] for example in examples]
        inputs = self.collate([EncodedExample(ids, None) for ids in sources])
        images = dict.fromkeys(example.image for example in examples if example.image is not None)
        if images:
            numbers = {image: number for number, image in enumerate(images)}
            inputs["pixel_values"] = torch.stack([torch.from_numpy(self._images.pixels(image)) for image in images])
            # A row without an image shows any of them, masked.
            inputs["pixel_rows"] = torch.tensor([0 if e.image is None else numbers[e.image] for e in examples])
            inputs["pixel_mask"] = torch.tensor([example.image is not None for example in examples])
        memory = model.encoder(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
        prefixes = [decoder_prefix(ids, e.prompt_layout) for ids, e in zip(sources, examples, strict=True)]
        return memory, prefixes

    def _candidate_ids(self, examples: Sequence[Example]) -> list[list[list[int]]]:
        """Token ids of every choice of every example; choices that examples have in common are tokenized once."""
        known: dict[tuple[str, ...], list[list[int]]] = {}
        for example in examples:
            if not example.choices:
                raise BmpeftError(f"record {example.record.id}: no choices to score")
            if example.choices not in known:
                ids = self.tokenizer(list(example.choices), add_special_tokens=False, verbose=False)["input_ids"]
                known[example.choices] = [[*row, self.tokenizer.eos_token_id] for row in ids]
        return [known[example.choices or ()] for example in examples]


@dataclass(frozen=True)
class AnswerTrie(AnswerSet):
    """Answers as a token tree, and which answer a row of token ids is."""

    trie: TokenTrie
    by_ids: Mapping[tuple[int, ...], str]


def decoder_prefix(source: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """What the decoder reads after its start token, for a source of bos, text and eos; see `Example.prompt_layout`."""
    return {"none": (), "src": source[1:], "prev_output": source[1:-1]}[layout]


def _without_wrapper(model: Any) -> BiomedGPTForConditionalGeneration:
    """The BiomedGPT inside a peft wrapper; its layers carry the active adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
