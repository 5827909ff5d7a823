"""What the page about a run shows of its sources, its memory and its layers (measures.py, health.py)."""

from collections.abc import Sequence
from typing import Any

from stablelm.reporting import Page, Series, line_chart
from stablelm.training.health import MEASURES
from stablelm.training.measures import EPOCHS, LOSS

SMOOTHED = 0.1
"""Weight of the newest step in the running mean of a source's loss: a step reads little of a rare source."""
LAYERS = 8
"""Layers that have a line of their own in a chart; of more, so many are chosen evenly."""
_ABOUT = {
    "gradient": ("Gradient RMS", "before clipping"),
    "activation": ("Activation RMS", "of what leaves a block"),
    "attention_logit": ("Largest attention logit", "of q · k / √D; far above 50 the softmax sees one key"),
    "update": ("Update / weight", "norm of a step's change over that of the weights; 1e-3 is usual"),
}


def sources_on(page: Page, steps: Sequence[dict[str, Any]]) -> None:
    """Loss and epochs of each source."""
    names = _after(steps, LOSS)
    if names:
        lines = [_running(name, [r for r in steps if LOSS + name in r]) for name in names]
        page.chart(
            line_chart(lines, title="Loss by source", x_label="step", y_label="nats a token"),
            "Running means over the steps that read of a source.",
        )
    read = _after(steps, EPOCHS)
    if read:
        told = {name: [r for r in steps if EPOCHS + name in r] for name in read}
        lines = [
            Series(name, [r["step"] for r in some], [r[EPOCHS + name] for r in some])
            for name, some in told.items()
        ]
        newest = ", ".join(f"{name} {some[-1][EPOCHS + name]:.3g}" for name, some in told.items())
        page.chart(
            line_chart(lines, title="Epochs read", x_label="step", y_label="epochs"), f"Now: {newest}."
        )


def memory_on(page: Page, steps: Sequence[dict[str, Any]]) -> None:
    """Memory of the first process."""
    told = [record for record in steps if "memory" in record]
    if not told:
        return
    cuda = "memory_reserved" in told[-1]
    kinds = {"memory": "tensors at most", "memory_reserved": "reserved"} if cuda else {"memory": "resident"}
    lines = [
        Series(label, [r["step"] for r in told], [r[key] / 2**30 for r in told])
        for key, label in kinds.items()
    ]
    page.chart(
        line_chart(lines, title="Memory", x_label="step", y_label="GiB"),
        f"Of the first process; {told[-1]['memory'] / 2**30:.2f} GiB now.",
    )


def layers_on(page: Page, records: Sequence[dict[str, Any]]) -> None:
    """A chart for each measure of the layers, and a table of the newest numbers."""
    told = [record for record in records if record.get("kind") == "health"]
    if not told:
        return
    page.heading("Layers")
    for measure, (title, about) in _ABOUT.items():
        have = [record for record in told if record.get(f"{measure}_max") is not None]
        if not have:
            continue
        count = len(have[-1][measure])
        chosen = sorted({round(i * (count - 1) / (min(LAYERS, count) - 1 or 1)) for i in range(LAYERS)})
        lines = [
            Series(f"layer {layer}", [r["step"] for r in have], [_or_gap(r[measure][layer]) for r in have])
            for layer in chosen
            if layer < count
        ]
        if len(lines) < count:
            peak = [r[f"{measure}_max"] for r in have]
            lines.append(Series("largest of all", [r["step"] for r in have], peak, "points"))
        page.chart(
            line_chart(lines, title=title, x_label="step", y_label=title.lower(), log_y=measure == "update"),
            f"{about[0].upper()}{about[1:]}.",
        )
    last = told[-1]
    shown = [measure for measure in MEASURES if measure in last]
    rows: list[list[object]] = [
        [layer, *(_told(last[measure][layer]) for measure in shown)] for layer in range(len(last[shown[0]]))
    ]
    for place in ("embedding", "head"):
        rows.append([place, *(_told(last.get(f"{measure}_{place}")) for measure in shown)])
    with page.fold(f"Every layer after step {last['step']:,}"):
        page.table(["layer", *(_ABOUT[measure][0] for measure in shown)], rows)


def _after(steps: Sequence[dict[str, Any]], prefix: str) -> list[str]:
    keys = dict.fromkeys(key for record in steps for key in record if key.startswith(prefix))
    return [key.removeprefix(prefix) for key in keys]


def _running(name: str, steps: Sequence[dict[str, Any]]) -> Series:
    means: list[float] = []
    for record in steps:
        last = means[-1] if means else record[LOSS + name]
        means.append(last + SMOOTHED * (record[LOSS + name] - last))
    return Series(name, [record["step"] for record in steps], means)


def _or_gap(value: float | None) -> float:
    return float("nan") if value is None else value


def _told(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
