"""The network, as the paper reads."""

from stablelm.model.attention import LayerCache
from stablelm.model.backends import Documents, Mask
from stablelm.model.initialization import initialize
from stablelm.model.transformer import Cache, StableLM

__all__ = ["Cache", "Documents", "LayerCache", "Mask", "StableLM", "initialize"]
