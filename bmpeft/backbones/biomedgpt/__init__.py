"""BiomedGPT as a transformers model, registered with its auto classes on import."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from bmpeft.backbones.biomedgpt.configuration import SIZES, BiomedGPTConfig
from bmpeft.backbones.biomedgpt.modeling import BiomedGPTForConditionalGeneration

AutoConfig.register(BiomedGPTConfig.model_type, BiomedGPTConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(BiomedGPTConfig, BiomedGPTForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(BiomedGPTConfig, BiomedGPTForConditionalGeneration, exist_ok=True)

__all__ = ["SIZES", "BiomedGPTConfig", "BiomedGPTForConditionalGeneration"]
