"""Stages of training, the loop, its optimiser, its checkpoints and its log."""
