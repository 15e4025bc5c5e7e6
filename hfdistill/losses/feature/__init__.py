"""Losses that match what a model computes on the way: hidden states and attention, layer by layer."""
