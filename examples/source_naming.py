"""Where is a text from? A small model is tuned to name the source of an excerpt.

    python examples/source_naming.py TEXTS OUT --only-data                 writes the examples
    python examples/source_naming.py TEXTS OUT --model runs/demo/model     tunes, too, and compares

TEXTS is a folder of sources: folders NAME/ of text files (runs/demo/corpus has two), or files NAME.jsonl
(also .gz or .zst) with a document a line under the key `text`; their names are the answers. Documents, not
excerpts, are held out, and every source is asked equally often. All the rest is done by the command
`stablelm`: tuning of the whole model, tuning by an adapter (LoRA), and the answers to the same held-out
prompts, counted word for word. Beside them stands naive Bayes on the words of the same excerpts: what
counting words alone can do.

A model of some million parameters wants a far higher learning rate than a large one. Its adapter stands on
the head, too: a frozen one bounds the logits, and the model stays unsure of what it names."""

import argparse
import json
import math
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from stablelm.config.finetune import ExamplesConfig
from stablelm.finetuning.records import read_records

EXCERPT = 200
"""Characters, some 70 tokens of the demo's model."""
ROWS = "--sequence-length 256 --set batch.sequences=4 --set batch.micro_sequences=4 --set evaluation.every=90"
HEAD = "adapter.targets=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head]"
TUNINGS = {
    "full": f"{ROWS} --lr 1e-3 --epochs 2",
    "lora": f"{ROWS} --lr 2e-3 --epochs 2 --lora 32 --set {HEAD}",
}
"""How the model is tuned, and the name of the run in OUT."""


def sources(folder: Path) -> dict[str, list[str]]:
    """The texts of each source that are long enough for an excerpt; folders count where there is no file."""
    found: dict[str, list[str]] = {}
    places = sorted(folder.iterdir())
    for file in (place for place in places if ".jsonl" in place.name):
        records = read_records(str(file), ExamplesConfig(paths=[str(file)]))
        found[file.name.split(".")[0]] = [record["text"] for _, record in records]
    for place in places if not found else ():
        files = sorted(file for file in place.rglob("*") if file.is_file())
        if files:
            found[place.name] = [file.read_text("utf-8", errors="replace") for file in files]
    long = {name: [text for text in texts if len(text) >= 2 * EXCERPT] for name, texts in found.items()}
    return {name: texts for name, texts in long.items() if len(texts) > 1}  # one to train on, one held out


def excerpts(texts: list[str], count: int, draw: random.Random) -> list[str]:
    """`count` pieces, from every document equally often, that begin and end with a word."""
    found = []
    for number in range(count):
        text = texts[number % len(texts)]
        at = draw.randrange(len(text) - EXCERPT)
        found.append(" ".join(text[at : at + EXCERPT].split()[1:-1]))
    return found


def examples(folder: Path, each: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Prompts and completions: `each` of every source to be trained, a sixth as many held out, from a tenth
    of the documents."""
    sides: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for name, texts in sources(folder).items():
        draw = random.Random(name)
        draw.shuffle(texts)
        cut = max(1, len(texts) // 10)
        for side, part, count in zip(
            sides, (texts[cut:], texts[:cut]), (each, max(1, each // 6)), strict=True
        ):
            for text in excerpts(part, count, draw):
                side.append({"prompt": f"{text}\n\nSource:", "completion": f" {name}"})
    return sides


class NaiveBayes:
    """Words of an excerpt, counted, each once more than seen."""

    def __init__(self, trained: list[dict[str, str]]) -> None:
        self.counts: dict[str, Counter[str]] = {}
        for example in trained:
            self.counts.setdefault(example["completion"], Counter()).update(words(example["prompt"]))
        self.size = len({word for counts in self.counts.values() for word in counts})

    def answer(self, prompt: str) -> str:
        """The likeliest completion."""
        found = Counter(words(prompt))

        def nats(name: str) -> float:
            counts, total = self.counts[name], self.counts[name].total() + self.size
            return sum(times * math.log((counts[word] + 1) / total) for word, times in found.items())

        return max(self.counts, key=nats)


def words(text: str) -> list[str]:
    """Runs of letters in lower case."""
    return re.findall(r"[a-z]+", text.lower())


def stablelm(*arguments: object) -> None:
    """One command, as a user types it; where it fails it has said why, and that is the end."""
    line = [sys.executable, "-m", "stablelm", *map(str, arguments)]
    print("$ stablelm", *map(str, arguments), flush=True)
    if code := subprocess.run(line).returncode:
        sys.exit(code)


def write_lines(file: Path, records: list[dict[str, str]]) -> Path:
    """A .jsonl file."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def right(model: Path, out: Path, held: list[dict[str, str]]) -> int:
    """How many held-out prompts a model answers, to the end of the text, with the name of the source and
    nothing else; the answers stay in the file `out`."""
    stablelm("generate", model, "--file", out.parent / "prompts.jsonl", "--out", out, "--temperature", 0,
             "--max-new-tokens", 12, "--batch", 32)  # fmt: skip
    answers = [json.loads(line)["text"] for line in out.read_text("utf-8").splitlines()]
    return sum(answer == example["completion"] for answer, example in zip(answers, held, strict=True))


def main() -> None:
    """Writes the examples, tunes into OUT/full and OUT/lora, and tells in OUT/result.json how many answers
    were right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, help="folder of sources")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--each", type=int, default=480, help="excerpts of each source to train on")
    parser.add_argument("--only-data", action="store_true", help="write the examples and stop")
    parser.add_argument("--model", type=Path, default=Path("runs/demo/model"))
    given = parser.parse_args()
    out = given.out
    if out.exists():
        parser.error(f"{out} is there already; give a new folder")
    if not given.texts.is_dir():
        parser.error(f"{given.texts} is no folder")
    if given.each < 1:
        parser.error(f"--each {given.each}: give 1 or more")
    trained, held = examples(given.texts, given.each)
    if len({example["completion"] for example in held}) < 2:
        parser.error(f"{given.texts} needs two sources: folders of text files, or files NAME.jsonl")
    out.mkdir(parents=True)
    train = write_lines(out / "train.jsonl", trained)
    kept = write_lines(out / "held.jsonl", held)
    write_lines(out / "prompts.jsonl", [{"prompt": example["prompt"]} for example in held])
    bayes = NaiveBayes(trained)
    counted = sum(bayes.answer(one["prompt"]) == one["completion"] for one in held)
    if given.only_data:
        print(f"{train}: {len(trained)} examples; {kept}: {len(held)}")
        print(f"Naive Bayes gets {100 * counted / len(held):.1f} % of the latter right.")
        return
    found = {"untuned": right(given.model, out / "untuned.jsonl", held)}
    seconds = {}
    for name, flags in TUNINGS.items():
        began = time.perf_counter()
        stablelm("finetune", given.model, train, "--held-out", kept, "--out", out / name, *flags.split())
        seconds[name] = round(time.perf_counter() - began, 1)
        found[name] = right(out / name, out / f"{name}.jsonl", held)
    found["naive Bayes"] = counted
    result = {"right": found, "held_out": len(held), "trained": len(trained), "seconds_of_tuning": seconds}
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    guessed = len(held) // len(bayes.counts)
    print(f"\nOf {len(held)} held-out excerpts, named word for word ({guessed} by guessing):")
    for name, count in found.items():
        took = f"tuned in {seconds[name]:.0f} s" if name in seconds else ""
        print(f"  {name:12s} {count:4d}  {100 * count / len(held):5.1f} %  {took}".rstrip())
    print(f"PyTorch used {torch.get_num_threads()} threads on the CPU.")


if __name__ == "__main__":
    main()
