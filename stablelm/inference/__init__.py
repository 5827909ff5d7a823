"""Weights to text: generation with a key-value cache, sampling, stopping."""

from stablelm.inference.cache import KVCache
from stablelm.inference.generation import generate, generate_ids, stream
from stablelm.inference.sampling import Sampling
from stablelm.inference.scoring import Scores, score_ids
from stablelm.inference.stopping import StopMatcher

__all__ = ["KVCache", "Sampling", "Scores", "StopMatcher", "generate", "generate_ids", "score_ids", "stream"]
