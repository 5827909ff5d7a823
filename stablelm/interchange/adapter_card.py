"""The model card of an adapter that a run trained, README.md beside PEFT's files; from what its checkpoint
knows.

It names the model that the adapter stands on and carries that model's licence and credit, as the card of a
whole model does (`model_card.py`, whose parts these are). An adapter is nothing without its base, so how to
put the two together is most of it."""

import math
import re
from dataclasses import replace
from pathlib import Path

from stablelm.config.adapter import ALL_LINEAR
from stablelm.interchange.base import Base
from stablelm.interchange.model_card import (
    LIMITS,
    citation_section,
    credit_section,
    escaped,
    evaluation_sections,
    front_matter,
    licence_line,
    settled_licence,
    training_sections,
)
from stablelm.interchange.peft import read_adapter_config, stored_parts
from stablelm.interchange.provenance import Ancestor, Provenance, read_provenance, training_sentence

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def adapter_card(checkpoint: Path, name: str) -> str:
    """The card's text of the adapter in a checkpoint of ours; `name` is its title where the run's `card`
    gives none."""
    known, base, settings = (
        read_provenance(checkpoint),
        Base.read(checkpoint),
        read_adapter_config(checkpoint),
    )
    title = known.card.name or name
    ancestors = _ancestors(known)
    licence = settled_licence(known.card, ancestors)
    on = ancestors[0].name if ancestors else base.model
    matter = front_matter(known, ancestors, title, licence)
    matter.library_name = "peft"
    kind = "dora" if settings.get("use_dora") else "lora"
    matter.tags = ["causal-lm", kind, *(tag for tag in known.card.tags if tag not in ("causal-lm", kind))]
    # The Hub shows an adapter below its base by the id alone; a path of this machine is none.
    matter.base_model = next((one for one in (base.model, on) if _HUB_ID.fullmatch(one)), None)
    numbers = sum(math.prod(part.shape) for _, part in stored_parts(checkpoint).values())
    targets = settings["target_modules"]
    places = targets if isinstance(targets, str) else ", ".join(targets)
    told = {
        "Developed by": escaped(known.card.authors),
        "Stands on": f"{escaped(on)} ({escaped(base.model)})" if on != base.model else escaped(on),
        "Kind": _kind(settings),
        "Matrices": "every projection of the blocks" if targets == ALL_LINEAR else escaped(places),
        "Language(s)": ", ".join(known.card.language),
        "Licence": licence_line(known.card, licence),
    }
    if base.bits is not None:
        told["Trained upon"] = f"the base model in {base.bits} bits; it goes with the unrounded one, too"
    about = (
        f"An adapter of {numbers:,} numbers for a language model, in PEFT's format. It is no model alone: "
        f"it goes with {escaped(on)}, the very weights that it was trained on."
    )
    parts = [
        f"# {escaped(title)}",
        about,
        _usage(base.model),
        "## Details",
        "\n".join(f"* **{key}**: {value}" for key, value in told.items() if value),
        credit_section(ancestors),
        *training_sections(known),
        *evaluation_sections(known),
        "## Use and limitations",
        f"### Intended use\n\n{known.card.intended_use}" if known.card.intended_use else "",
        f"### Limitations and bias\n\n{known.card.limitations or LIMITS}",
        citation_section(known.card, title),
    ]
    return f"---\n{matter.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _ancestors(known: Provenance) -> tuple[Ancestor, ...]:
    """Those of the checkpoint, the newest with what was done beside its weights, which stay as they are."""
    if not known.ancestors:
        return ()
    first, *older = known.ancestors
    made = ", then ".join(filter(None, (first.changes, f"an adapter beside it {training_sentence(known)}")))
    return (replace(first, changes=made), *older)


def _kind(settings: dict[str, object]) -> str:
    method = ("rs" if settings.get("use_rslora") else "") + ("DoRA" if settings.get("use_dora") else "LoRA")
    return f"{method}, rank {settings['r']}, alpha {settings['lora_alpha']}"


def _usage(base: str) -> str:
    return f"""## Usage

With [peft](https://github.com/huggingface/peft), where the model below it is in Hugging Face's format;
`adapter` is this directory, or its id on the Hub:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter = {base!r}, "."
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = AutoModelForCausalLM.from_pretrained(base, torch_dtype="auto")
model = PeftModel.from_pretrained(model, adapter)
```

With stablelm, which refuses other weights than those it was trained on:

```python
import stablelm

model, tokenizer = stablelm.load({base!r}, adapters=".")
print(stablelm.generate(model, tokenizer, "The weather is", max_new_tokens=20))
```

`stablelm chat BASE --adapter .` talks to it; `stablelm adapter merge . OUT` makes one model of the two."""
