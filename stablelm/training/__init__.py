"""Batches into weights."""

from stablelm.training.running import train
from stablelm.training.trainer import Trainer

__all__ = ["Trainer", "train"]
