"""What a model can do: so far its loss on held-out text."""

from stablelm.evaluation.perplexity import Perplexity, perplexity

__all__ = ["Perplexity", "perplexity"]
