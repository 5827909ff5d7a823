"""The page about one run: what it is, how the loss fell, what was read. Works while the run is still going
on."""

from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.interchange.native import finished_checkpoints
from stablelm.reporting import Page, Series, line_chart
from stablelm.reporting.text import counted
from stablelm.storage import read_json
from stablelm.training.console import duration
from stablelm.training.goodput import read_goodput
from stablelm.training.metrics import METRICS, read_metrics
from stablelm.training.report_goodput import goodput_fact, time_section
from stablelm.training.report_health import layers_on, memory_on, sources_on
from stablelm.training.report_tuning import answers_chart, lowest, samples_of, verdict
from stablelm.training.rollback import RECORD

EPOCHS_SHOWN = 12


def run_page(run: Path, title: str | None = None) -> Page:
    """The report of the run in a directory; `InputError` when there is no run, or no step yet."""
    records = read_metrics(run)
    steps = [record for record in records if "kind" not in record]
    if not steps:
        raise InputError(
            f"{run / METRICS}: no step yet. A report needs the directory of a run that has begun."
        )
    try:
        return _page(run, title, records, steps)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{run}: a file of this run (metrics.jsonl, plan.json, run.json, accounting.json) is damaged: "
            f"{error!r}."
        ) from None


def _page(run: Path, title: str | None, records: list[dict[str, Any]], steps: list[dict[str, Any]]) -> Page:
    plan, config = read_json(run / "plan.json"), read_json(run / "run.json")
    saved = finished_checkpoints(run)
    about = read_json(saved[-1] / "about.json") if saved else {}
    evaluations = [record for record in records if record.get("kind") == "evaluation"]

    page = Page(title or f"Training run {run.name}", _subtitle(config, about))
    facts = _facts(plan, steps, evaluations) | goodput_fact(account := read_goodput(run))
    if branch := config.get("branch"):
        facts["Branched off"] = branch["checkpoint"]
    if rejected := sum(record.get("kind") == "rejected" for record in records):
        facts["Rejected steps"] = rejected
    if (run / RECORD).is_file():
        facts["Gone back"] = "; ".join(
            f"from step {each['from']:,} to {each['to']:,}, without samples {each['skip'][0]:,} to "
            f"{each['skip'][1]:,}"
            for each in read_json(run / RECORD)["rollbacks"]
        )
    page.facts(facts)
    page.heading("Loss")
    page.chart(
        _loss_chart(steps, evaluations), "Mean cross-entropy in nats a token; points are held-out text."
    )
    if sentence := verdict(steps, evaluations):
        page.paragraph(sentence)
    sources_on(page, steps)
    if evaluations:
        answers_chart(page, evaluations)
        page.chart(
            _over_steps(_by_source(evaluations, "bits_per_byte"), "Held-out bits per byte", "bits per byte"),
            "Lower is better; comparable between tokenizers and with compressors.",
        )
        if all("ece" in record for record in evaluations):  # runs before calibration was measured lack it
            page.chart(
                _over_steps(_by_source(evaluations, "ece"), "Calibration error", "ECE"),
                "How far confidence in the likeliest token is from how often it comes: 0 is calibrated.",
            )
    _changes(page, evaluations)
    _preferences(page, steps, records)
    samples_of(page, records)
    _suite(page, records)
    page.heading("Learning rate and gradient norm")
    page.chart(_over_steps([_series("learning rate", steps, "lr")], "Learning rate", "learning rate"))
    page.chart(
        _over_steps([_series("gradient norm", steps, "grad_norm")], "Gradient norm before clipping", "norm")
    )
    page.heading("Throughput")
    page.chart(
        _over_steps([_series("tokens/s", steps, "tokens_per_second")], "Tokens per second", "tokens/s"),
        f"Without evaluation and saving. FLOPs by 6N + 12·L·h·s: {plan['flops_per_token'] / 1e6:,.1f} "
        "MFLOP a token; MFU "
        "is against the matrix-product rate measured when the run started.",
    )
    memory_on(page, steps)
    time_section(page, account, steps)
    layers_on(page, records)
    _what_was_read(page, run, plan, config["batch"]["sequence_length"], about)
    return page


def _changes(page: Page, evaluations: list[dict[str, Any]]) -> None:
    """What was learnt and what was forgotten, where the initial weights were measured too."""
    rows: list[list[object]] = []
    for first in (record for record in evaluations if record["step"] == 0):
        later = [r["loss"] for r in evaluations if r["source"] == first["source"] and r["step"]]
        if later:
            change = f"{later[-1] - first['loss']:+.4f}"
            values = (first["loss"], min(later), later[-1])
            rows.append([first["source"], *(f"{value:.4f}" for value in values), change])
    if rows:
        page.table(
            ["held-out source", "initial weights", "lowest", "now", "change"],
            rows,
            "Loss in nats a token. Sources that begin with replay: are those of the older run; where their "
            "loss rises, something is forgotten: a larger data.replay.share or a lower optimizer.lr keeps "
            "more.",
        )


def _preferences(page: Page, steps: list[dict[str, Any]], records: list[dict[str, Any]]) -> None:
    """The curves of preference tuning."""
    held = [record for record in records if record.get("kind") == "preference"]
    sides = (("", steps, "line"), ("held-out ", held, "points"))

    def chart(title: str, label: str, names: tuple[str, ...], note: str) -> None:
        lines = [
            _series(f"{side}{name}", found, f"{title.lower()}/{name}", style)
            for side, some, style in sides
            for name in names
            if (found := [record for record in some if f"{title.lower()}/{name}" in record])
        ]
        if lines:
            page.chart(_over_steps(lines, f"{title}: {', '.join(names)}", label), note)

    if any(key.startswith("rewards/") for record in steps for key in record):
        page.heading("Preferences")
        about = (
            "A reward is β times how much likelier the model makes an answer than its reference did, in nats."
        )
        chart("Rewards", "reward", ("chosen", "rejected", "margins"), about)
        chart(
            "Rewards", "share of pairs", ("accuracies",), "Pairs whose chosen answer has the higher reward."
        )
        likely = "ln p of whole answers; that of chosen ones may fall, too: what is learnt is the difference."
        chart("Logps", "nats an answer", ("chosen", "rejected"), likely)


def _suite(page: Page, records: list[dict[str, Any]]) -> None:
    """The curves of what a run measures beside held-out text (`evaluating.py`)."""
    copied, filled, tasks = ([r for r in records if r.get("kind") == k] for k in ("copying", "cloze", "task"))
    if not (copied or filled or tasks):
        return
    page.heading("Small tasks")
    if copied:
        page.chart(
            _over_steps(
                [_series("second time", copied, "loss"), _series("first time", copied, "first_loss")],
                "Copying", "nats a token",
            ),
            f"Random ids, {copied[-1]['period']} twice in a row; "
            f"{100 * copied[-1]['accuracy']:.1f} % of the second time right at the end.",
        )  # fmt: skip
    kinds = (("choice_accuracy", "continuation"), ("word_accuracy", "last word"))
    lines = [
        _series(f"{name}, {kind}", chosen, key)
        for name in dict.fromkeys(record["source"] for record in filled)
        for key, kind in kinds
        if (chosen := [r for r in filled if r["source"] == name and key in r])
    ]
    if lines:
        chances = {record["chance"] for record in filled if "chance" in record}
        page.chart(
            _over_steps(lines, "Cloze, from held-out documents", "share right"),
            "The true continuation of a passage among those of others"
            + (f" ({100 * min(chances):.0f} % by chance)" if chances else "")
            + ", and its last word.",
        )
    if tasks:
        named = dict.fromkeys((record["task"], record["metric"]) for record in tasks)
        series = [
            _series(f"{task} {metric}", [r for r in tasks if r["task"] == task], "value")
            for task, metric in named
        ]
        last = tasks[-1]
        error = f", {last['task']} ± {last['standard_error']:.3f}" if "standard_error" in last else ""
        page.chart(
            _over_steps(series, "lm_eval tasks", "value"),
            f"At most {max(record['items'] for record in tasks):,} items of each{error}; for results, use "
            "stablelm evaluate on a checkpoint.",
        )


def _subtitle(config: dict[str, Any], about: dict[str, Any]) -> str:
    where = f"{config['precision']}, seed {config['seed']}"
    if machine := about.get("hardware"):
        where += f", {machine['name']}, {counted(machine['threads'], 'thread')}, PyTorch {machine['torch']}"
    return where


def _facts(
    plan: dict[str, Any], steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> dict[str, object]:
    last = steps[-1]
    rates = sorted(record["tokens_per_second"] for record in steps)
    facts: dict[str, object] = {
        "Parameters": plan["parameters"],
        "Steps": f"{last['step']:,} of {plan['steps']:,}",
        "Tokens": last["tokens"],
        "Training loss": round(last["loss"], 4),
        "Tokens a second": round(rates[len(rates) // 2]),
        "MFU": f"{100 * sorted(record['mfu'] for record in steps)[len(steps) // 2]:.1f} %",
        "Time in steps": duration(sum(record["seconds"] for record in steps)),
    }
    newest = {record["source"]: record for record in evaluations}
    return facts | {
        f"Bits per byte, {name}": round(record["bits_per_byte"], 4) for name, record in newest.items()
    }


def _series(name: str, records: list[dict[str, Any]], key: str, style: str = "line") -> Series:
    return Series(
        name,
        [r["step"] for r in records],
        [r[key] for r in records],
        "points" if style == "points" else "line",
    )


def _by_source(evaluations: list[dict[str, Any]], key: str, style: str = "line") -> list[Series]:
    names = dict.fromkeys(record["source"] for record in evaluations)
    return [_series(f"held-out {n}", [r for r in evaluations if r["source"] == n], key, style) for n in names]


def _loss_chart(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> str:
    smooth, mean = [], steps[0]["loss"]
    for record in steps:
        mean += 0.1 * (record["loss"] - mean)
        smooth.append({"step": record["step"], "loss": mean})
    series = [_series("each step", steps, "loss"), _series("smoothed", smooth, "loss")]
    series += _by_source(evaluations, "loss", "points")
    if verdict(steps, evaluations):
        low = lowest(evaluations)
        series.append(_series(f"lowest held-out, step {low['step']:,}", [low], "loss", "points"))
    return _over_steps(series, "Loss", "nats a token")


def _over_steps(series: list[Series], title: str, label: str) -> str:
    return line_chart(series, title=title, x_label="step", y_label=label)


def _what_was_read(page: Page, run: Path, plan: dict[str, Any], window: int, about: dict[str, Any]) -> None:
    """Per source and epoch, up to the newest checkpoint: windows read, and tokens that no window holds."""
    page.heading("What was read")
    accounting = read_json(run / "accounting.json")
    rows: list[list[object]] = []
    for name in plan["sources"]:
        left = about["data"][name]["samples"] if about else 0
        epochs = accounting[name]["epochs"]
        for entry in epochs[:EPOCHS_SHOWN]:
            read = min(left, entry["windows"])
            left -= read
            rows.append([name, entry["epoch"] + 1, entry["windows"], read, entry["remainder"]])
        if rest := epochs[EPOCHS_SHOWN:]:
            rows.append([name, f"{len(rest)} more", sum(entry["windows"] for entry in rest), left, ""])
    page.table(
        ["source", "epoch", "windows to read", "windows read", "tokens left over"],
        rows,
        f"A window is {window:,} tokens. Each window of an epoch is read once; the tokens left over are too "
        "few for one, lie elsewhere in each epoch, and are listed by document in accounting.json. Counted "
        "up to the newest checkpoint.",
    )
