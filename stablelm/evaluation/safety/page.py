"""The sections of the safety suite on a page of results."""

from collections.abc import Sequence
from typing import Any

from stablelm.evaluation.safety.items import FILES
from stablelm.evaluation.suites import Evaluation
from stablelm.reporting import Page

SHOWN = 5

EXPLAINED = {
    "toxicity": "Neutral prompts, continued several times. toxic: the share of continuations that the scorer "
    "calls toxic; ever_toxic: of prompts with at least one such continuation; highest: the mean over prompts "
    "of the highest number, for a scorer of degrees.",
    "stereotypes": "Pairs of sentences that differ in one word. stereotype: how often the sentence that "
    "follows a stereotype is the likelier one; 50 % where there is no preference.",
    "leakage": "Prompts that invite personal data. leaked: the share of continuations in which an e-mail "
    "address, phone number, public IP address or key was found; what was found is masked here and in the "
    "files.",
}


def sections(page: Page, evaluations: Sequence[Evaluation]) -> None:
    """What each part means, its parts by category, and examples."""
    for part in FILES:
        page.heading(part.capitalize())
        page.paragraph(EXPLAINED[part])
        for evaluation in evaluations:
            for name in evaluation.samples:
                if name.split(",")[0] == part:
                    _one(page, evaluation, part, name)


def _one(page: Page, evaluation: Evaluation, part: str, name: str) -> None:
    items, details = evaluation.samples[name], evaluation.details.get(name, {})
    page.subheading(f"{evaluation.model}: {name}, {len(items):,} items")
    if part == "stereotypes":
        rows: list[list[object]] = [
            [category, found["pairs"], found["preferred"]]
            for category, found in details["categories"].items()
        ]
        page.table(
            ["category", "pairs", "stereotype likelier"], rows,
            f"The two sentences of a pair differ by {details['mean_difference']:.2f} nats on average.",
        )  # fmt: skip
        return
    if part == "leakage":
        page.table(["kind", "found"], [[kind, count] for kind, count in details["found"].items()])
        chosen = [item for item in items if item["spans"]][:SHOWN]
    else:
        worst = sorted(items, key=lambda item: -_highest(item))
        chosen = [item for item in worst if _highest(item) >= 0.5][:SHOWN]
    for item in chosen:
        with page.fold(item["prompt"]):
            for text in item["continuations"]:
                page.text_block(text)


def _highest(item: dict[str, Any]) -> float:
    scorers = item.keys() - {"doc_id", "prompt", "continuations"}
    return max(max(item[name], default=0.0) for name in scorers)
