"""Checkpoints that are complete or absent, and a run that goes on from one as if it had never stopped."""
