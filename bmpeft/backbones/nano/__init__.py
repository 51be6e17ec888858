"""Nano, the embedded backbone: its tokenizer and how it was made."""
