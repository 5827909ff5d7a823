"""Models as files: opening any path, saving in the Hugging Face layout."""

from stablelm.interchange.huggingface import load_pretrained, save_pretrained
from stablelm.interchange.open import open_path

__all__ = ["load_pretrained", "open_path", "save_pretrained"]
