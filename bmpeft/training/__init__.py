"""Training: one sequence-to-sequence trainer, and the run that a recipe describes."""
