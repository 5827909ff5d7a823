"""Batches into weights."""

from stablelm.training.trainer import Trainer, train

__all__ = ["Trainer", "train"]
