"""From a model to the user's application: supervised fine-tuning on texts, answers and conversations."""

from stablelm.finetuning.tuner import finetune

__all__ = ["finetune"]
