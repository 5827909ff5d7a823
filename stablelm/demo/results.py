"""What the demo's model achieved: bits per byte beside gzip and xz, overlap with training text, samples, the
page."""

from pathlib import Path
from typing import Any

from stablelm.data import Dataset
from stablelm.data.token_files import TokenFile
from stablelm.demo.compression import compressed_bits_per_byte
from stablelm.demo.overlap import thirteen_gram_overlap
from stablelm.evaluation import perplexity
from stablelm.inference import generate
from stablelm.interchange import open_path
from stablelm.reporting import Page, bar_chart
from stablelm.tokenizer import Tokenizer
from stablelm.training.report import run_page
from stablelm.training.trainer import DTYPES

PROMPTS = ("Return the number of", "The class", "def read(")
SAMPLING: dict[str, Any] = {"temperature": 0.75, "top_p": 0.95, "max_new_tokens": 96}


def results_of(model_path: Path, data_path: Path, window: int, precision: str) -> dict[str, Any]:
    """Per source: bits per byte on all held-out text, compressors on the same bytes, 13-gram overlap; and
    three samples.

    The model reads each held-out token with at least half a window of context."""
    model, tokenizer = open_path(model_path)
    assert tokenizer is not None, "the demo exports its tokenizer with the weights"
    if precision != "fp32":
        model.compute_dtype = DTYPES[precision]  # the arithmetic it was trained in; three times as fast
    dataset = Dataset(data_path)
    sources = {}
    for name in dataset.sources:
        held_out, train = dataset.held_out(name), dataset.train(name)
        assert held_out is not None, "the demo's recipe holds out documents of every source"
        texts = documents(held_out, tokenizer)
        text_bytes = sum(len(text.encode()) for text in texts)
        result = perplexity(model, held_out, text_bytes, window, stride=window // 2)
        overlap = thirteen_gram_overlap(texts, documents(train, tokenizer))
        sources[name] = {
            "documents": len(texts),
            "bytes": text_bytes,
            "model": result.bits_per_byte,
            **compressed_bits_per_byte(texts),
            "overlap_share": overlap.share,
            "overlap_ngrams": overlap.ngrams,
        }
    samples = []
    for seed, prompt in enumerate(PROMPTS, 1):
        text = generate(model, tokenizer, prompt, seed=seed, **SAMPLING)
        samples.append({"prompt": prompt, "text": text, "seed": seed, **SAMPLING})
    return {"sources": sources, "samples": samples}


def documents(tokens: TokenFile, tokenizer: Tokenizer) -> list[str]:
    """The texts of a token file, without the separators."""
    return [
        tokenizer.decode(ids[:-1] if len(ids) and ids[-1] == tokenizer.eos_id else ids)
        for ids in (tokens.document(i) for i in range(tokens.num_documents))
    ]


def demo_page(run: Path, results: dict[str, Any]) -> Page:
    """The run's page with the comparison and the samples."""
    page = run_page(run, "StableLM demo")
    sources = results["sources"]
    page.heading("Held-out text beside compressors")
    page.chart(
        bar_chart(
            list(sources),
            {who: [about[who] for about in sources.values()] for who in ("model", "gzip -9", "xz")},
            title="Bits per byte of held-out text",
            y_label="bits per byte",
        ),
        "The compressors get the held-out documents concatenated; the model gets them a window at a time.",
    )  # fmt: skip
    page.table(
        ["source", "documents", "bytes", "model", "gzip -9", "xz", "model / gzip", "13-grams also in train"],
        [
            [
                name,
                about["documents"],
                about["bytes"],
                f"{about['model']:.3f}",
                f"{about['gzip -9']:.3f}",
                f"{about['xz']:.3f}",
                f"{about['model'] / about['gzip -9']:.3f}",
                f"{100 * about['overlap_share']:.1f} %",
            ]
            for name, about in sources.items()
        ],
        "Whole files are held out. The last column is the share of held-out 13-word sequences that the "
        "training text of the "
        "same source also contains, all of it, read or not.",
    )  # fmt: skip
    page.heading("Samples")
    for sample in results["samples"]:
        page.text_block(
            sample["prompt"] + sample["text"],
            f"After {sample['prompt']!r}; temperature {sample['temperature']}, top-p {sample['top_p']}, "
            f"seed {sample['seed']}.",
        )
    return page


def summary_lines(out: Path, results: dict[str, Any]) -> list[str]:
    """The end of the demo on a console: the comparison, the samples, the next commands."""
    lines = ["", "Bits per byte on held-out text (lower is better):"]
    for name, about in results["sources"].items():
        lines.append(
            f"  {name}: model {about['model']:.3f}, gzip -9 {about['gzip -9']:.3f}, xz {about['xz']:.3f}; "
            f"model / gzip {about['model'] / about['gzip -9']:.3f}; {100 * about['overlap_share']:.1f} % "
            "of its 13-grams "
            "are also in the training text"
        )
    for sample in results["samples"]:
        lines += [
            "",
            f"--- {sample['prompt']!r}, temperature {sample['temperature']}, top-p {sample['top_p']}",
        ]
        lines.append(sample["prompt"] + sample["text"])
    model = out / "model"
    snippet = f"from stablelm import load, generate; print(generate(*load({str(model)!r}), 'import os'))"
    return [
        *lines,
        "",
        f"The report: {out / 'report.html'}",
        "Try next:",
        f'  stablelm generate {model} "Return the list of" --max-new-tokens 40',
        f"  stablelm inspect {model} --verify",
        f'  python -c "{snippet}"',
        "Your own text, your own size: stablelm data prepare --help, stablelm train --help",
    ]
