"""Losses that match what a model answers: its logits."""
