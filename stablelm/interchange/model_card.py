"""The model card of an exported model: README.md with the Hub's front matter, from what the checkpoint knows.

What is not known is left out or said to be unknown; nothing is invented. A share-alike licence of an ancestor
is carried over with the credit and a statement of the changes, and another licence beside it is refused.
Values from manifests and configurations are escaped, so that a source's name cannot break a table."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from stablelm.config import InputError, ModelConfig
from stablelm.config.card import CardConfig
from stablelm.interchange.card_results import CardResult, sections
from stablelm.interchange.provenance import (
    LICENCE_LINKS,
    Ancestor,
    Provenance,
    binding_licence,
    data_sources,
    training_sentence,
    with_changes,
)

_INTENDED = (
    "A base model: the starting point for fine-tuning on a task, to be evaluated for that task, and for its "
    "safety there, by whoever builds on it."
)
LIMITS = (
    "It continues text; it was not taught to be helpful, truthful or safe, and can be none of these. Filters "
    "do not find everything: offensive or wrong passages of the training text can come back in what it "
    "writes. Test it on your own task before anybody depends on it, and do not use it to harm."
)
_HUB = re.compile(r"(?:https?://huggingface\.co/datasets/|hf://datasets/)([\w.-]+/[\w.-]+)")


def model_card(
    config: ModelConfig,
    known: Provenance,
    name: str,
    dtype: str,
    changes: str = "",
    results: Sequence[CardResult] = (),
) -> str:
    """The card's text; `dtype` as in "bfloat16", `changes` what was done to an ancestor's weights if not
    trained, `results` what was measured beside training. `InputError` for a licence that an ancestor's does
    not allow."""
    from huggingface_hub import ModelCard

    card = known.card
    title = card.name or name
    ancestors = with_changes(known, changes)
    licence = settled_licence(card, ancestors)
    matter = front_matter(known, ancestors, title, licence).to_yaml()
    body = "\n\n".join(filter(None, _sections(config, known, ancestors, title, licence, dtype, results)))
    text = f"---\n{matter}\n---\n\n{body}\n"
    ModelCard(text)  # parses what the Hub will parse; refuses a broken front matter
    return text


def settled_licence(card: CardConfig, ancestors: tuple[Ancestor, ...]) -> str:
    """The licence of the new model; `InputError` when the card states one that an ancestor forbids."""
    bound = binding_licence(ancestors)
    if bound is None:  # without a word from its makers, the terms of what it was made from go on
        return card.licence or (ancestors[0].licence if ancestors else "")
    if card.licence not in ("", bound.licence):
        raise InputError(
            f"card.licence {card.licence}: the weights come from {bound.name}, whose licence {bound.licence} "
            "is share-alike: what is made from it carries the same. Leave licence out, or write "
            f"{bound.licence}."
        )
    return bound.licence


def front_matter(known: Provenance, ancestors: tuple[Ancestor, ...], title: str, licence: str) -> Any:
    """The Hub's `ModelCardData` of a model made from `ancestors`, newest first."""
    from huggingface_hub import ModelCardData

    card = known.card
    bases = [a.name for a in ancestors[:1] if re.fullmatch(r"[\w.-]+/[\w.-]+", a.name)]
    about = {
        "license": licence or "unknown",
        "license_name": _of(card.licence_name, licence, ancestors, "licence_name") or None,
        "license_link": _of(card.licence_link, licence, ancestors, "licence_link") or None,
        "language": card.language or None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["causal-lm", *(tag for tag in card.tags if tag != "causal-lm")],
        "datasets": _datasets(known) or None,
        "base_model": bases or None,
        "model_name": title,
        "eval_results": _results(known) or None,
        "extra_gated_fields": card.gated_fields or None,
        "credit": card.authors or None,
        "lineage": [ancestor.as_dict() for ancestor in ancestors] or None,
    }
    return ModelCardData(**{key: value for key, value in about.items() if value is not None})  # type: ignore[arg-type]


def _of(given: str, licence: str, ancestors: tuple[Ancestor, ...], name: str) -> str:
    """A name or link that goes with licence `other`: as given, or as the ancestor's files say."""
    inherited = ancestors and licence == "other" == ancestors[0].licence
    return given or (str(getattr(ancestors[0], name)) if inherited else "")


def _results(known: Provenance) -> list[Any]:
    from huggingface_hub import EvalResult

    results = []
    newest = {r["source"]: r for r in known.state.get("evaluations", []) if isinstance(r, dict)}
    for source, record in newest.items():
        for metric in ("bits_per_byte", "perplexity", "loss"):
            if metric in record:
                results.append(
                    EvalResult(
                        task_type="text-generation",
                        dataset_type=f"held-out-{source}",
                        dataset_name=f"held-out documents of {source}",
                        metric_type=metric,
                        metric_value=round(float(record[metric]), 6),
                    )
                )
    return results


def _datasets(known: Provenance) -> list[str]:
    named = (_HUB.search(str(about.get("url", ""))) for about in data_sources(known).values())
    return list(dict.fromkeys([*known.card.datasets, *(found[1] for found in named if found)]))


def _sections(
    config: ModelConfig,
    known: Provenance,
    ancestors: tuple[Ancestor, ...],
    title: str,
    licence: str,
    dtype: str,
    results: Sequence[CardResult],
) -> Iterable[str]:
    card = known.card
    yield f"# {escaped(title)}"
    yield (
        f"A decoder-only language model of {config.num_parameters:,} parameters with a context of "
        f"{config.max_position_embeddings:,} tokens, of the StableLM architecture, stored in {dtype}."
    )
    yield _usage()
    yield "## Model details"
    details = {
        "Developed by": escaped(card.authors),
        "Model type": "auto-regressive language model, decoder-only transformer",
        "Language(s)": ", ".join(card.language),
        "Library": "stablelm; loads in `transformers` as `StableLmForCausalLM`",
        "Licence": licence_line(card, licence),
    }
    yield "\n".join(f"* **{key}**: {value}" for key, value in details.items() if value)
    yield credit_section(ancestors)
    yield from _architecture(config)
    yield from training_sections(known)
    yield from evaluation_sections(known)
    for heading, head, rows, below in sections(results):
        yield f"## {escaped(heading)}"
        yield markdown_table(head, rows)
        yield "\n".join(f"* {escaped(line)}" for line in below)
    yield "## Use and limitations"
    yield f"### Intended use\n\n{card.intended_use or _INTENDED}"
    yield f"### Limitations and bias\n\n{card.limitations or LIMITS}"
    yield citation_section(card, title)


def _usage() -> str:
    return """## Usage

```python
from transformers import AutoModelForCausalLM, AutoTokenizer  # or: from stablelm import …

path = "."  # this directory, or its id on the Hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, torch_dtype="auto")
inputs = tokenizer("The weather is always wonderful", return_tensors="pt").to(model.device)
tokens = model.generate(**inputs, max_new_tokens=64, temperature=0.75, top_p=0.95, do_sample=True)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
```"""


def licence_line(card: CardConfig, licence: str) -> str:
    """The licence, as a link where its text has an address."""
    if not licence:
        return "not stated; ask its makers before you use or share it"
    link = card.licence_link or LICENCE_LINKS.get(licence, "")
    shown = card.licence_name or licence
    return f"[{escaped(shown)}]({link})" if link else escaped(shown)


def credit_section(ancestors: tuple[Ancestor, ...]) -> str:
    """Whom it is made from, under which terms, and what was changed; empty without ancestors."""
    if not ancestors:
        return ""
    lines = ["### Credit and changes", ""]
    for ancestor in ancestors:
        by = f" by {escaped(ancestor.credit)}" if ancestor.credit else ""
        terms = escaped(ancestor.licence) or "a licence that its files do not state"
        if ancestor.licence_link:
            terms = f"[{terms}]({ancestor.licence_link})"
        changes = f" Changes: {escaped(ancestor.changes)}." if ancestor.changes else ""
        lines.append(f"* Made from **{escaped(ancestor.name)}**{by}, under {terms}.{changes}")
    lines += ["", "None of those credited endorses this model or its use."]
    return "\n".join(lines)


def _architecture(config: ModelConfig) -> Iterable[str]:
    yield "### Architecture"
    yield markdown_table(
        ["Parameters", "Hidden size", "Layers", "Heads", "KV heads", "MLP", "Vocabulary", "Context"],
        [
            [
                config.num_parameters,
                config.hidden_size,
                config.num_hidden_layers,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.intermediate_size,
                config.vocab_size,
                config.max_position_embeddings,
            ]
        ],
    )
    norm = "with" if config.use_norm_bias else "without"
    yield (
        f"* Rotary position embeddings on {config.rotary_dim} of {config.head_dim} dimensions of each head "
        f"(base {config.rope_theta:,.0f})\n* LayerNorm {norm} bias, SwiGLU, untied head"
    )


def training_sections(known: Provenance) -> Iterable[str]:
    """What a run did, on which data, with which settings; none where no run is known."""
    if not known.run:
        return
    run, plan = known.run, known.about.get("plan", {})
    yield "## Training"
    yield f"{escaped(training_sentence(known)).capitalize()}."
    rows = []
    seen = known.about.get("data", {})
    for name, about in data_sources(known).items():
        read = seen.get(name, {})
        train = about.get("train", {})
        rows.append([
            name, about.get("licence") or "not stated", about.get("url") or "", train.get("documents", ""),
            train.get("tokens", ""), f"{read['epochs']:.4g}" if "epochs" in read else "0",
        ])  # fmt: skip
    if rows:
        yield "### Data"
        yield markdown_table(["Source", "Licence", "Address", "Documents", "Tokens", "Epochs read"], rows)
        dataset = known.about["dataset"]
        yield f"Manifest: fingerprint `{str(dataset.get('fingerprint', ''))[:16]}`."
    yield "### Hyper-parameters"
    optimizer, batch, schedule = run.get("optimizer", {}), run.get("batch", {}), run.get("schedule", {})
    values = {
        "Optimizer": f"AdamW, betas {optimizer.get('betas')}, eps {optimizer.get('eps')}",
        "Peak learning rate": optimizer.get("lr"),
        "Schedule": _schedule(schedule, plan),
        "Weight decay, clipping": f"{optimizer.get('weight_decay')}, {optimizer.get('clip')}",
        "Batch": f"{batch.get('sequences')} sequences of {batch.get('sequence_length')} tokens",
        "Precision": run.get("precision"),
        "Seed": str(run.get("seed")),
    }
    yield markdown_table(["Setting", "Value"], [[key, value] for key, value in values.items()])
    hardware = known.about.get("hardware", {})
    if hardware:
        yield (
            f"### Hardware\n\n{escaped(hardware.get('name', ''))} ({escaped(hardware.get('system', ''))}), "
            f"PyTorch {escaped(hardware.get('torch', ''))}"
        )


def _schedule(schedule: dict[str, Any], plan: dict[str, Any]) -> str:
    shape = schedule.get("shape", "cosine")  # checkpoints before there was a choice have a cosine
    told = f"{plan.get('warmup_steps')} warm-up steps, {shape.replace('_', ' ')}"
    if shape != "constant":
        told += f" to {schedule.get('floor')} × peak"
    if steps := plan.get("cooldown_steps"):
        told += (
            f", {steps} steps of {schedule['cooldown_shape']} cooldown to {schedule['cooldown_floor']} × peak"
        )
    return told


def evaluation_sections(known: Provenance) -> Iterable[str]:
    """What was measured on held-out text while training."""
    newest = {r["source"]: r for r in known.state.get("evaluations", []) if isinstance(r, dict)}
    if newest:
        yield "## Evaluation"
        rows = [
            [
                name, f"{r['loss']:.4f}", f"{r['perplexity']:.3f}", f"{r['bits_per_byte']:.4f}",
                f"{r['ece']:.4f}" if "ece" in r else "not measured",
            ]
            for name, r in newest.items()
        ]  # fmt: skip
        head = ["Held-out documents of", "Loss", "Perplexity", "Bits per byte", "Calibration error"]
        yield markdown_table(head, rows)


def citation_section(card: CardConfig, title: str) -> str:
    """How to cite it."""
    key = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "model"
    author = f"\n  author = {{{card.authors}}}," if card.authors else ""
    return f"## How to cite\n\n```bibtex\n@misc{{{key},\n  title = {{{title}}},{author}\n}}\n```"


def markdown_table(head: list[str], rows: list[list[Any]]) -> str:
    """Rows under a head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escaped(value)


def escaped(value: Any) -> str:
    """A value on one line of Markdown, without what would end a cell or begin markup."""
    return re.sub(r"([|<\[\]`*])", r"\\\1", " ".join(str(value).split()))
