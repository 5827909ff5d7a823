"""Weights to text: generation with a key-value cache, sampling, stopping."""

from stablelm.inference.cache import KVCache
from stablelm.inference.decoding import Decoding
from stablelm.inference.generation import generate, generate_ids, stream
from stablelm.inference.prefix import PrefixCache
from stablelm.inference.sampling import Sampling
from stablelm.inference.scoring import Scores, score_ids
from stablelm.inference.stopping import StopMatcher
from stablelm.inference.window import Window

__all__ = [
    "Decoding", "KVCache", "PrefixCache", "Sampling", "Scores", "StopMatcher", "Window", "generate",
    "generate_ids", "score_ids", "stream",
]  # fmt: skip
