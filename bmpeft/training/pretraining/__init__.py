"""Pretraining of a whole backbone on a mixture of texts."""
