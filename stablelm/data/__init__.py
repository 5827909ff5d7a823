"""Raw text to token files, and token files to training samples in an exact order."""

from stablelm.data.loader import Loader
from stablelm.data.manifest import Dataset
from stablelm.data.mixture import Mixture
from stablelm.data.token_files import TokenFile, TokenFileWriter

__all__ = ["Dataset", "Loader", "Mixture", "TokenFile", "TokenFileWriter"]
