"""Where is a text from? A small model is tuned to name the source of an excerpt.

    python examples/source_naming.py TEXTS OUT --only-data                       writes the examples
    python examples/source_naming.py TEXTS OUT --model runs/demo/model           tunes, too, and compares
    python examples/source_naming.py TEXTS OUT --model runs/demo/model --lora 8

TEXTS is a folder of sources: folders NAME/ of text files (runs/demo/corpus has two), or files NAME.jsonl
(also .gz or .zst) with a document a line under the key `text`; their names are the answers. Documents, not
excerpts, are held out, and every source is asked equally often. All the rest is done by the command
`stablelm`: tuning, and the answers of the model before and after to the same held-out prompts, counted word
for word. Beside it stands naive Bayes on the words of the same excerpts: what counting words alone can do."""

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

from stablelm.config.finetune import ExamplesConfig
from stablelm.finetuning.records import read_records

EXCERPT = 200
"""Characters; the demo's model reads 256 tokens at once."""
SETTINGS = {"--epochs": 3, "--lr": 1e-3, "--sequence-length": 256, "--set": "evaluation.every=25"}
LORA = {"--lr": 5e-3}


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
    """One command, as a user types it."""
    line = [sys.executable, "-m", "stablelm", *map(str, arguments)]
    print("$ stablelm", *map(str, arguments), flush=True)
    subprocess.run(line, check=True)


def write_lines(file: Path, records: list[dict[str, str]]) -> Path:
    """A .jsonl file."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def right(model: Path, prompts: Path, out: Path, held: list[dict[str, str]]) -> float:
    """The share of held-out prompts that a model answers, to the end of the text, with the name of the
    source and nothing else."""
    stablelm("generate", model, "--file", prompts, "--out", out, "--temperature", 0, "--max-new-tokens", 12,
             "--batch", 32)  # fmt: skip
    answers = [json.loads(line)["text"] for line in out.read_text("utf-8").splitlines()]
    return sum(answer == example["completion"] for answer, example in zip(answers, held, strict=True)) / len(
        held
    )


def main() -> None:
    """Writes the examples, tunes into OUT/run, and tells in OUT/result.json how many answers were right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, help="folder of sources")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--each", type=int, default=240, help="excerpts of each source to train on")
    parser.add_argument("--only-data", action="store_true", help="write the examples and stop")
    parser.add_argument("--model", type=Path, default=Path("runs/demo/model"))
    parser.add_argument("--lora", type=int, help="tune adapters of this rank instead of all weights")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} is there already; give a new folder")
    if not given.texts.is_dir():
        parser.error(f"{given.texts} is no folder")
    trained, held = examples(given.texts, given.each)
    if len({example["completion"] for example in held}) < 2:
        parser.error(f"{given.texts} needs two sources: folders of text files, or files NAME.jsonl")
    given.out.mkdir(parents=True)
    train = write_lines(given.out / "train.jsonl", trained)
    kept = write_lines(given.out / "held.jsonl", held)
    prompts = write_lines(given.out / "prompts.jsonl", [{"prompt": example["prompt"]} for example in held])
    bayes = NaiveBayes(trained)
    counted = sum(bayes.answer(one["prompt"]) == one["completion"] for one in held) / len(held)
    if given.only_data:
        print(f"{train}: {len(trained)} examples; {kept}: {len(held)}")
        print(f"Naive Bayes gets {100 * counted:.1f} % of the latter right.")
        return
    before = right(given.model, prompts, given.out / "before.jsonl", held)
    began = time.perf_counter()
    settings = {**SETTINGS, **({"--lora": given.lora, **LORA} if given.lora else {})}
    flags = [part for pair in settings.items() for part in pair]
    stablelm("finetune", given.model, train, "--held-out", kept, "--out", given.out / "run", *flags)
    seconds = time.perf_counter() - began
    after = right(given.out / "run", prompts, given.out / "after.jsonl", held)
    result = {
        "untuned": before, "tuned": after, "naive_bayes": counted, "seconds_of_tuning": round(seconds, 1),
        "trained_examples": len(trained), "held_out_examples": len(held), "lora": given.lora,
    }  # fmt: skip
    (given.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    chance = 100 / len(bayes.counts)
    print(f"{len(held)} held-out excerpts, answered word for word ({chance:.0f} % would be guessed):")
    for name, share in (("before tuning", before), ("after tuning", after), ("naive Bayes", counted)):
        print(f"  {name:14s} {100 * share:5.1f} %")
    print(f"Tuning took {seconds:.0f} s.")


if __name__ == "__main__":
    main()
