"""Writes the commented configurations that are generated from field docstrings (`make docs`)."""

from pathlib import Path

from stablelm.config.finetune import finetune_yaml
from stablelm.config.recipe import recipe_yaml
from stablelm.config.run import original_yaml, reference_yaml, small_yaml
from stablelm.storage import write_text

GENERATED = {
    "finetune.yml": finetune_yaml,
    "reference.yml": reference_yaml,
    "small.yml": small_yaml,
    "stablelm-3b.yml": original_yaml,
    "data/example.yml": recipe_yaml,
}

if __name__ == "__main__":
    for name, text in GENERATED.items():
        write_text(Path(__file__).parent.parent / "configs" / name, text())
