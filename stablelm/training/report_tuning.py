"""What the page about a run says of held-out loss (is it overfitting?), of answers, and of samples."""

from collections.abc import Sequence
from typing import Any

from stablelm.config.finetune import SOURCE
from stablelm.reporting import Page, Series, line_chart

RISE = 0.01
"""Share by which the last held-out loss exceeds the lowest before it is called risen: less is noise."""
SHOWN = 6
"""Steps at which the samples of a prompt are shown."""


def verdict(steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> str | None:
    """One sentence on the losses that are held out and trained; None with fewer than two evaluations, and for
    runs that are no fine-tuning."""
    if {record["source"] for record in evaluations} != {SOURCE} or len(evaluations) < 2:
        return None
    low, last = lowest(evaluations), evaluations[-1]
    best, final = held_out_loss(low), held_out_loss(last)
    if final <= (1 + RISE) * best:
        near = "is lowest at the end" if low is last else f"stays near its lowest, of step {low['step']:,}"
        return f"No overfitting is seen: held-out loss fell to {best:.4f} and {near}."
    trained = [_mean(steps, record["step"]) for record in (low, last)]
    rise = f"{100 * (final / best - 1):.0f} %"
    if trained[1] < trained[0]:
        return (
            f"Overfitting: held-out loss was lowest after step {low['step']:,} ({best:.4f}) and has risen by "
            f"{rise} to {final:.4f}, while training loss fell on from {trained[0]:.4f} to {trained[1]:.4f}. "
            "Take fewer epochs, or the best checkpoint (--keep-best, --early-stopping)."
        )
    return (
        f"Held-out loss has risen by {rise} since step {low['step']:,} ({best:.4f} to {final:.4f}), and "
        "training loss with it: a lower learning rate is more stable."
    )


def held_out_loss(record: dict[str, Any]) -> float:
    """What training lowers, on held-out examples."""
    return float(record.get("preference_loss", record["loss"]))


def lowest(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The evaluation with the lowest loss, the first of equal ones."""
    return min(evaluations, key=held_out_loss)


def _mean(steps: Sequence[dict[str, Any]], until: int, window: int = 20) -> float:
    """Training loss of the steps that end with `until`."""
    losses = [float(record["loss"]) for record in steps if until - window < record["step"] <= until]
    return sum(losses) / len(losses)


def answers_chart(page: Page, evaluations: Sequence[dict[str, Any]]) -> None:
    """How many held-out answers, and tokens of them, the model would write as they are."""
    told = [record for record in evaluations if "answer_accuracy" in record]
    if not told:
        return
    at = [record["step"] for record in told]
    names = (("answers", "answer_accuracy"), ("tokens of answers", "accuracy"))
    lines = [Series(name, at, [record[key] for record in told], "line") for name, key in names]
    page.chart(
        line_chart(lines, title="Held-out answers", x_label="step", y_label="share right"),
        f"Of {told[-1]['answers']:,} answers, those whose every token is the likeliest; and of all their "
        f"tokens. At the end {100 * told[-1]['answer_accuracy']:.1f} % of the answers.",
    )


def samples_of(page: Page, records: Sequence[dict[str, Any]]) -> None:
    """What was written to each prompt, at up to six steps from the first to the last."""
    found = [record for record in records if record.get("kind") == "sample"]
    if not found:
        return
    page.heading("Samples")
    page.paragraph("The likeliest token each time. An answer that does not end by itself is marked with […].")
    for number in dict.fromkeys(record["number"] for record in found):
        own = [record for record in found if record["number"] == number]
        places = sorted({round(i * (len(own) - 1) / (SHOWN - 1)) for i in range(SHOWN)})
        rows: list[list[object]] = [
            [f"step {own[i]['step']:,}", own[i]["text"] + ("" if own[i]["ended"] else " […]")] for i in places
        ]
        if own[0]["wanted"] is not None:
            rows.append(["held-out answer", own[0]["wanted"]])
        page.table(["", "answer"], rows, f"Prompt: {own[0]['prompt']}")
