"""BiomedGPT as a frozen backbone: examples to tensors, tensors to scores and texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmpeft.backbones.base import CandidateScores, EncodedExample, FrozenBackbone
from bmpeft.backbones.biomedgpt.image_tower import STRIDE, default_processor
from bmpeft.backbones.biomedgpt.modeling import IGNORED_LABEL, BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTEncoderOutput
from bmpeft.backbones.description import BackboneDescription
from bmpeft.backbones.fingerprint import canonical_state, fingerprint_of
from bmpeft.backbones.quiet_loading import no_progress_bars
from bmpeft.backbones.tokenizing import LoadedTokenizer, source_ids, target_ids
from bmpeft.errors import BackboneError, BmpeftError
from bmpeft.images.processing import PROCESSOR_FILE, ImageLoader, ImageProcessor
from bmpeft.recipe import BeamDecoding, SampleDecoding
from bmpeft.records import Example

# Logits of one decoder pass while scoring: 2^26 float32 are 256 MiB.
MAX_LOGITS = 2**26


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
        self._tokenizer_text = tokenizer.text
        self._images = ImageLoader(processor)

    @property
    def residual_blocks(self) -> int:
        """Two in each encoder layer, three in each decoder layer."""
        return 2 * self.model.config.encoder_layers + 3 * self.model.config.decoder_layers

    @property
    def longest_sum(self) -> int:
        """See `FrozenBackbone.longest_sum`."""
        config = self.model.config
        return max(config.d_model, config.encoder_ffn_dim, config.decoder_ffn_dim)

    def encode(self, example: Example, *, max_source_length: int, max_target_length: int) -> EncodedExample:
        """bos + source + eos, and target + eos; see `FrozenBackbone.encode`."""
        ids, cut = self._source(example, max_source_length)
        labels = None
        if example.target is not None:
            labels = tuple(target_ids(self.tokenizer, example, self._within_positions(max_target_length)))
            if max(labels) >= self.model.config.code_token_start:
                raise BmpeftError(
                    f"record {example.record.id}: image-code and location targets are not supported by this backbone"
                )
        return EncodedExample(
            input_ids=ids,
            labels=labels,
            document_tokens_cut=cut,
            image=example.image,
            image_patches=0 if example.image is None else (self._images.processor.image_size // STRIDE) ** 2,
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
        labels = [torch.tensor(example.labels) for example in examples if example.labels is not None]
        if len(labels) == len(examples):
            batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL)
        return batch

    @torch.inference_mode()
    def score_candidates(
        self, model: Any, examples: Sequence[Example], *, max_source_length: int
    ) -> list[CandidateScores]:
        """See `FrozenBackbone.score_candidates`; all choices of all examples form one decoder batch."""
        runner = _without_wrapper(model)
        encoder_outputs = runner.encoder(**self._inputs(examples, max_source_length))
        candidates = [self._candidate_ids(example) for example in examples]
        owner = torch.tensor([row for row, ids in enumerate(candidates) for _ in ids])
        flat = [torch.tensor(ids) for per_example in candidates for ids in per_example]
        sums: list[float] = []
        for rows in self._row_chunks([len(ids) for ids in flat]):
            labels = pad_sequence(flat[rows], batch_first=True, padding_value=IGNORED_LABEL).to(self.device)
            logits = runner(
                encoder_outputs=_select_rows(encoder_outputs, owner[rows].to(self.device)),
                decoder_input_ids=runner.prepare_decoder_input_ids_from_labels(labels),
                use_cache=False,
            ).logits
            losses = torch.nn.functional.cross_entropy(  # [rows, T], zero where ignored
                logits.float().transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none"
            )
            sums.extend((-losses.double().sum(dim=1)).tolist())
        return _regroup(sums, candidates)

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
        options: dict[str, Any] = {"max_new_tokens": self._within_positions(decoding.max_new_tokens)}
        if isinstance(decoding, BeamDecoding):
            options |= {"num_beams": decoding.num_beams, "do_sample": False}
            if decoding.num_beams > 1:
                options["length_penalty"] = decoding.length_penalty
            if decoding.no_repeat_ngram_size:
                options["no_repeat_ngram_size"] = decoding.no_repeat_ngram_size
        else:
            options |= {
                "do_sample": True,
                "temperature": decoding.temperature,
                "top_p": decoding.top_p,
                "top_k": 0,
            }
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            if isinstance(decoding, SampleDecoding):
                torch.manual_seed(decoding.seed)
            options |= self._inputs(examples, max_source_length)
            ids = _without_wrapper(model).generate(**options)
        texts: list[str] = self.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.strip() for text in texts]

    def trained(self, name: str, dtype: torch.dtype) -> BiomedGPTBackbone:
        """The same backbone after its weights were trained, cast to the type they are stored in: a new fingerprint."""
        model = self.model.to(dtype=dtype)  # type: ignore[call-arg]  # a wrapper without a type
        return BiomedGPTBackbone(
            name=name,
            init="pretrained",
            init_seed=None,
            model=model,
            tokenizer=LoadedTokenizer(self.tokenizer, self._tokenizer_text),
            fingerprint=fingerprint_of(canonical_state(model)),
            image_processor=self.image_processor,
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write weights, config, tokenizer and `backbone.json`; `AutoModelForSeq2SeqLM` reads the directory too.

        Raises:
            BackboneError: an adapter is attached to the model, which would be saved along.
        """
        directory = Path(directory)
        if any("lora_" in name for name, _ in self.model.named_parameters()):
            raise BackboneError("an adapter is attached: unload it before saving the backbone")
        with no_progress_bars():
            self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        (directory / "tokenizer.json").write_text(self._tokenizer_text, encoding="utf-8")
        processor = json.dumps(self._images.processor.content(), indent=2) + "\n"
        (directory / PROCESSOR_FILE).write_text(processor, encoding="utf-8")
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
        positions = self.model.config.max_position_embeddings
        if length > positions:
            raise BmpeftError(f"{length} tokens asked for: {self.name} has positions for {positions}")
        return length

    def _inputs(self, examples: Sequence[Example], max_source_length: int) -> dict[str, Tensor]:
        encoded = [
            EncodedExample(self._source(example, max_source_length)[0], None, image=example.image)
            for example in examples
        ]
        return {name: tensor.to(self.device) for name, tensor in self.collate(encoded).items()}

    def _candidate_ids(self, example: Example) -> list[list[int]]:
        if not example.choices:
            raise BmpeftError(f"record {example.record.id}: no choices to score")
        ids = self.tokenizer(list(example.choices), add_special_tokens=False, verbose=False)["input_ids"]
        self._within_positions(max(map(len, ids)) + 1)
        return [[*row, self.tokenizer.eos_token_id] for row in ids]

    def _row_chunks(self, lengths: list[int]) -> Iterator[slice]:
        """Consecutive rows whose logits stay below `MAX_LOGITS`."""
        start, longest = 0, 0
        for row, length in enumerate(lengths):
            longest = max(longest, length)
            if row > start and (row - start + 1) * longest * self.model.config.vocab_size > MAX_LOGITS:
                yield slice(start, row)
                start, longest = row, length
        yield slice(start, len(lengths))


def _without_wrapper(model: Any) -> BiomedGPTForConditionalGeneration:
    """The BiomedGPT inside a peft wrapper; its layers carry the active adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _select_rows(outputs: BiomedGPTEncoderOutput, rows: Tensor) -> BiomedGPTEncoderOutput:
    assert outputs.last_hidden_state is not None
    assert outputs.attention_mask is not None
    return BiomedGPTEncoderOutput(
        last_hidden_state=outputs.last_hidden_state[rows],
        attention_mask=outputs.attention_mask[rows],
        image_grid=outputs.image_grid,
    )


def _regroup(sums: list[float], candidates: list[list[list[int]]]) -> list[CandidateScores]:
    values = iter(sums)
    return [
        CandidateScores(
            log_likelihoods=tuple(next(values) for _ in per_example),
            lengths=tuple(len(ids) for ids in per_example),
        )
        for per_example in candidates
    ]
