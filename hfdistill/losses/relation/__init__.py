"""Losses that match relations: between tokens, heads or samples. Contrastive ones live here."""
