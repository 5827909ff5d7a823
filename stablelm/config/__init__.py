"""What a user may say: the architecture, the run, the data recipe. Imports no other room."""

from stablelm.config.errors import InputError
from stablelm.config.model import PRESETS, ModelConfig, preset
from stablelm.config.run import RunConfig, load_run_config

__all__ = ["PRESETS", "InputError", "ModelConfig", "RunConfig", "load_run_config", "preset"]
