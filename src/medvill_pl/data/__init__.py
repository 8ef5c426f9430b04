"""Corpora, batches and the data modules that feed them to training."""
