"""Writes configs/reference.yml, the commented list of every key of a training run (`make docs`)."""

from pathlib import Path

from stablelm.config.run import reference_yaml
from stablelm.storage import write_text

if __name__ == "__main__":
    write_text(Path(__file__).parent.parent / "configs" / "reference.yml", reference_yaml())
