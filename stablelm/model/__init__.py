"""The network, as the paper reads."""

from stablelm.model.attention import LayerCache, Mask
from stablelm.model.initialization import initialize
from stablelm.model.transformer import Cache, StableLM

__all__ = ["Cache", "LayerCache", "Mask", "StableLM", "initialize"]
