"""Published weights to a backbone directory, and back; `convert` is the whole of it."""

from __future__ import annotations

from bmpeft.backbones.biomedgpt.conversion.report import ConversionReport, KeyReport, keys_table, summary_table
from bmpeft.backbones.biomedgpt.conversion.run import convert

__all__ = ["ConversionReport", "KeyReport", "convert", "keys_table", "summary_table"]
