"""What a fine-tuning run reads, as its trainer wants it: examples, tokenizer, what is held out, the account.

Held out are whole examples, chosen by a hash of their ids and the seed; equal examples have equal hashes, so
none is on both sides. Examples of a file that the user holds out are compared with those that are trained,
and equal ones are told, not removed: what they mean is for the user to judge."""

import hashlib
import json
from pathlib import Path
from typing import Any

from stablelm.config import InputError, ModelConfig
from stablelm.config.finetune import SOURCE, FinetuneConfig
from stablelm.data.token_files import TokenFile
from stablelm.finetuning.conversations import ChatEncoder
from stablelm.finetuning.examples import CHATS, Account, Example, ExampleReader
from stablelm.finetuning.packing import PairRows, Rows
from stablelm.finetuning.pairs import CHATS as PAIR_CHATS
from stablelm.finetuning.pairs import JudgedReader, Pair, PairReader, mismatched
from stablelm.storage import fingerprint, sha256_text
from stablelm.storage.json_lines import decoded
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.chat import ZEPHYR
from stablelm.tokenizer.infilling import Infilling, Marks, added_by, with_infilling


class TuningData:
    """The examples of one run; a `TrainingData`."""

    def __init__(self, config: FinetuneConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
        """`tokenizer`: the base model's. `InputError` names whatever is wrong with the examples."""
        data, length = config.data, config.length(model)
        template, self.template_from = _template(data.template, tokenizer)
        infilling, self.added = None, ""
        if data.fim is not None:
            base, tokenizer = tokenizer, with_infilling(tokenizer)
            self.added = added_by(base, tokenizer)
            infilling = Infilling(data.fim, config.seed, Marks.of(tokenizer))
            if tokenizer.size > model.vocab_size:
                raise InputError(
                    f"data.fim: the tokens of filling in make {tokenizer.size:,} ids, the model has rows for "
                    f"{model.vocab_size:,}. Tune a model whose vocabulary is padded."
                )
        chat = ChatEncoder(tokenizer, template, model.bos_token_id)
        reader = self.reader(config)(data, tokenizer, chat, length + 1, infilling)
        self.accounts = {"train": Account()}
        examples = reader.read(data.paths, self.accounts["train"])
        self.shared: list[str] = []
        """Where held-out examples stand that are trained too."""
        if data.held_out:
            self.accounts["held_out"] = Account()
            held = reader.read(data.held_out, self.accounts["held_out"])
            known = {_key(example) for example in examples}
            self.shared = [example.where for example in held if _key(example) in known]
        else:
            examples, held = split(examples, data.held_out_share, config.seed)
        self.duplicates = len(examples) - len({_key(example) for example in examples})
        """Trained examples that are equal to another one."""
        self.train: list[Any] = examples
        self.held: list[Any] = held
        chats = (*CHATS, *PAIR_CHATS)
        self.chats = any(account.format in chats for account in self.accounts.values())
        self.answers = data.train_on == "answers" and any(a.format != "text" for a in self.accounts.values())
        """Whether examples have answers that can be told from what was asked."""
        self.tokenizer = tokenizer.with_chat_template(template) if self.chats else tokenizer
        self.tokenizer_path, self.tokenizer_size = Path(tokenizer.source), tokenizer.size
        self.sources: tuple[str, ...] = (SOURCE,)
        pad = tokenizer.pad_id  # never the separator, which answers are to end with
        if pad == tokenizer.eos_id:
            pad = next(number for number in range(2) if number != tokenizer.eos_id)
        self.rows, self.held_rows = (self.packed(part, length, config, pad) for part in (examples, held))
        self.fingerprint = fingerprint([self.rows.fingerprint, self.held_rows.fingerprint, tokenizer.sha256])

    def reader(self, config: FinetuneConfig) -> type[ExampleReader]:
        """What makes examples of records; data of another kind replace it."""
        return ExampleReader

    def packed(self, part: list[Any], length: int, config: FinetuneConfig, pad: int) -> Any:
        """The rows of a side; data of another kind replace it."""
        return Rows(part, length, config.seed, pad, packing=config.data.packing)

    def held_out(self, source: str) -> TokenFile | None:
        """None: what is held out are examples, which the tuner measures itself."""
        return None

    def text_bytes(self, source: str, side: str = "train") -> int:
        """UTF-8 bytes of what is trained in the examples of a side."""
        return sum(example.text_bytes for example in (self.train if side == "train" else self.held))

    def open_tokenizer(self) -> Tokenizer:
        """Text to the ids of the examples."""
        return self.tokenizer

    def tokenizer_files(self) -> dict[str, bytes]:
        """What a checkpoint keeps of the tokenizer, the chat template among it."""
        return self.tokenizer.files()

    def summary(self) -> dict[str, Any]:
        """What a checkpoint and a model card carry of the examples."""
        sides = {"train": self.train, "held_out": self.held}
        template = self.tokenizer.chat_template if self.chats else None
        about: dict[str, Any] = {
            name: {
                "documents": len(part),
                "tokens": sum(len(example.ids) for example in part),
                "trained_tokens": sum(example.trained for example in part),
                "bytes": self.text_bytes(SOURCE, name),
            }
            for name, part in sides.items()
        }
        accounts = {name: account.as_dict() for name, account in self.accounts.items()}
        return {
            "fingerprint": self.fingerprint,
            "tokenizer": {"sha256": self.tokenizer.sha256, "size": self.tokenizer_size},
            "chat_template_sha256": sha256_text(template) if template else None,
            "sources": {SOURCE: {"licence": "", "url": "", **about, "records": accounts}},
        }

    def summary_json(self) -> str:
        """`summary` as JSON text."""
        return json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n"

    def describe(self) -> list[str]:
        """The examples for a reader, a line each."""
        lines = [f"tokenizer: gets {self.added}, stored with the result"] if self.added else []
        for name, account in self.accounts.items():
            lost = ", ".join(f"{reason} {count:,}" for reason, count in account.dropped.items())
            cut = f"; {account.truncated:,} cut at the end" if account.truncated else ""
            cut += f"; {account.rearranged:,} rearranged for filling in" if account.rearranged else ""
            side = "" if name == "train" else "held out: "
            lines.append(
                f"{side}{account.read:,} records ({account.format}), {account.kept:,} examples"
                f"{f'; left out: {lost}' if lost else ''}{cut}"
            )
            if account.unread:
                keys = ", ".join(f"{key} ({count:,})" for key, count in account.unread.most_common(8))
                lines.append(f"{side}keys that were not read: {keys}")
        lines += self.sizes()
        if self.duplicates:
            lines.append(f"warning: {self.duplicates:,} of them repeat another example word for word")
        if self.shared:
            lines.append(
                f"warning: {len(self.shared):,} held-out examples are trained too, the first "
                f"{self.shared[0]}; the held-out loss will look better than it is"
            )
        if self.chats:
            lines.append(f"chat template: {self.template_from}; it is stored with the result")
        return lines

    def sizes(self) -> list[str]:
        """What is trained on, a line or two."""
        tokens = sum(len(example.ids) for example in self.train)
        trained = int(self.rows.trained.sum())
        told = (
            f"trained on {len(self.train):,} examples: {tokens:,} tokens, {trained:,} of them to be written "
            f"({100 * trained / tokens:.0f} %), in {len(self.rows):,} rows of {self.rows.length:,} "
            f"({100 * self.rows.fill:.0f} % full); held out: {len(self.held):,}"
        )
        return [told]


class PairData(TuningData):
    """Pairs of answers, or judged answers, in the place of examples."""

    def reader(self, config: FinetuneConfig) -> type[ExampleReader]:
        """One of pairs."""
        self.judging = config.preference.loss == "kto"
        self.choice = config.preference
        return JudgedReader if self.judging else PairReader

    def packed(self, part: list[Any], length: int, config: FinetuneConfig, pad: int) -> PairRows:
        """Rows of two lanes; of KTO, with a mismatched answer for each prompt."""
        pairs = mismatched(part, length + 1) if self.judging else part
        return PairRows(pairs, length, config.seed, pad, packing=config.data.packing)

    def summary(self) -> dict[str, Any]:
        """As of examples, and by which loss they were learnt."""
        choice = self.choice
        return {**super().summary(), "objective": f"preferences ({choice.loss}, beta {choice.beta:g})"}

    def sizes(self) -> list[str]:
        """What is trained on; of KTO, whether both kinds of answers weigh alike."""
        pairs: list[Pair] = self.train
        tokens = [sum(len(side.ids) for side in pair.sides) for pair in pairs]
        what = "judged answers" if self.judging else "pairs of answers"
        told = (
            f"trained on {len(pairs):,} {what}: {sum(tokens):,} tokens, "
            f"{sum(pair.trained for pair in pairs):,} of them answers', in {len(self.rows):,} rows of twice "
            f"{self.rows.length:,} ({100 * self.rows.fill:.0f} % full); held out: {len(self.held):,}"
        )
        lines = [told]
        if self.judging:
            wanted = sum(pair.wanted for pair in pairs)
            choice, others = self.choice, len(pairs) - wanted
            weighed = [choice.desirable_weight * wanted, choice.undesirable_weight * others]
            lines.append(f"{wanted:,} of them wanted, {len(pairs) - wanted:,} not")
            if not min(weighed) or max(weighed) > 4 / 3 * min(weighed):
                lines.append(
                    f"warning: wanted answers weigh {weighed[0]:g} in all, unwanted {weighed[1]:g}; "
                    "preference.desirable_weight and undesirable_weight can bring them within a third"
                )
        return lines


def split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Trained and held-out examples, each in the order given: `share` of them, one at least where there are
    several, and all that are equal to one of these."""
    wanted = min(len(examples) - 1, max(1, round(share * len(examples)))) if share else 0
    by_hash: dict[bytes, list[int]] = {}
    for number, example in enumerate(examples):
        by_hash.setdefault(_key(example, seed), []).append(number)
    held: set[int] = set()
    for _, numbers in sorted(by_hash.items()):
        if len(held) < wanted and len(held) + len(numbers) < len(examples):
            held.update(numbers)
    sides: tuple[list[Example], list[Example]] = ([], [])
    for number, example in enumerate(examples):
        sides[number in held].append(example)
    return sides


def _key(example: Example, seed: int = 0) -> bytes:
    return hashlib.sha256(str(seed).encode() + b" " + example.ids.tobytes()).digest()


def _template(asked: str | None, tokenizer: Tokenizer) -> tuple[str, str]:
    """The chat template to use, and where it comes from."""
    if asked == "zephyr":
        return ZEPHYR, "stablelm-zephyr's, as asked"
    if asked is not None:
        path = Path(asked)
        if not path.is_file():
            raise InputError(
                f"data.template: {asked}: no such file. Name a file with a Jinja template, write zephyr, or "
                "leave it out for the model's own."
            )
        return decoded(path.read_bytes(), asked), asked
    if (own := tokenizer.chat_template) is not None:
        return own, "the model's own"
    return ZEPHYR, "stablelm-zephyr's, since the model has none"
