"""Text to ids and back: load, train, stream-decode."""

from stablelm.tokenizer.streaming import StreamDecoder
from stablelm.tokenizer.tokenizer import TokenBatch, Tokenizer
from stablelm.tokenizer.training import train_tokenizer

__all__ = ["StreamDecoder", "TokenBatch", "Tokenizer", "train_tokenizer"]
