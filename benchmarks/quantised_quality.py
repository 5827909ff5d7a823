"""KL(model ‖ the model in 8 and 4 bits) on real text, by either way of computing with a packed matrix.

    .venv/bin/python benchmarks/quantised_quality.py MODEL [--tokens 2048] [--text FILE] [--bits 8 4]

`prefill` reads windows of 256 tokens at once (`kernels/cpu/prefill.py`); `decoding` reads the same windows 16
tokens at a time through the kernels that write text, keys and values in the default precision of that
model. Rounding is what `stablelm quantize` does without options. Without --text, the text is this program's
own source. Nothing is timed. Needs the memory of the model and of the packed one."""

import argparse
from pathlib import Path

import torch
from measure import write_result

import stablelm
from stablelm.auto import load
from stablelm.evaluation.fidelity import fidelity, hidden_of
from stablelm.inference.cpu_runner import CpuRunner
from stablelm.inference.quantization import FEW_ROWS, Recipe, quantize
from stablelm.planning import hardware

WINDOW = 256


@torch.inference_mode()
def by_decoding(reference, head, model, windows) -> dict[str, float]:
    """The same comparison, beyond the first 16 tokens of each window, by the kernels that write text."""
    kl, same, count = 0.0, 0, 0
    for theirs, ids in zip(reference, windows, strict=True):
        runner = CpuRunner(model)
        runner.prefill(ids[:, :FEW_ROWS], None, ids.shape[1])
        for start in range(FEW_ROWS, ids.shape[1], FEW_ROWS):
            q = runner.read(ids[:, start : start + FEW_ROWS])[0].log_softmax(-1)  # [16, V]
            p = head(theirs[0, start : start + FEW_ROWS]).float().log_softmax(-1)
            kl += float((p.exp() * (p - q)).sum())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            count += len(p)
    return {"kl": kl / count, "top1_agreement": same / count, "tokens": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4])
    parser.add_argument("--name", default="quantised_quality", help="of the result")
    options = parser.parse_args()
    files = [options.text] if options.text else sorted(Path(stablelm.__file__).parent.rglob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    found = {}
    for bits in options.bits:
        model, tokenizer = load(options.model, torch.bfloat16)
        ids = tokenizer.encode(text[: 32 * options.tokens])[: options.tokens]
        windows = [torch.tensor([ids[at : at + WINDOW]]) for at in range(0, len(ids) - WINDOW + 1, WINDOW)]
        reference, head = hidden_of(model, windows), model.lm_head
        quantize(model, Recipe.of(bits))
        found[f"int{bits}"] = {
            "prefill": fidelity(reference, head, model, windows).as_dict(),
            "decoding": by_decoding(reference, head, model, windows),
        }
        print(bits, found[f"int{bits}"], flush=True)
    result = {
        "model": options.model.name, "parameters": model.config.num_parameters,
        "text": options.text.name if options.text else "source of stablelm", **found,
    }  # fmt: skip
    print(write_result(options.name, result, hardware(torch.device("cpu"))))


if __name__ == "__main__":
    main()
