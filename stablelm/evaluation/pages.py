"""What an evaluation found, as a console table and as one HTML page."""

import math
from collections.abc import Sequence
from typing import Any

from stablelm.evaluation import published
from stablelm.evaluation.comparison import Difference
from stablelm.evaluation.published import RULES, SEED, TITLES, Cell, average, cells, published_average
from stablelm.evaluation.suites import SAFETY, Evaluation, Suite
from stablelm.reporting import Page, bar_chart

RULE_NOTE = (
    "Three averages of one run of StableLM-3B-4E1T are published: 66.93 (nine tasks, HellaSwag by "
    "acc_norm, the "
    "others by acc: the rule of this table), 66.65 (ARC by acc_norm too) and 64.18 (SIQA as a tenth task)."
)


def columns(evaluation: Evaluation, suite: Suite) -> list[Cell]:
    """The suite's numbers, in percent; every accuracy of named tasks."""
    results = evaluation.results["results"]
    if suite.name == "stablelm-3b-4e1t":
        return cells(results)
    found = []
    for task, values in results.items():
        wanted = next(
            (metric for name, _, metric in suite.tasks if name == task and suite.name != "tasks"), None
        )
        for key, value in values.items():
            metric = key.split(",")[0]
            if not isinstance(value, float) or metric.endswith("_stderr") or (wanted and metric != wanted):
                continue
            error = values.get(key.replace(metric, f"{metric}_stderr", 1))
            scale = 1.0 if "perplexity" in metric else 100.0
            spread = scale * error if isinstance(error, float) else None
            found.append(Cell(task, metric, scale * value, spread))
    return found


def table(evaluations: Sequence[Evaluation], suite: Suite) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row for each task, a column for each model, the published one beside it."""
    seed = suite.name == "stablelm-3b-4e1t"
    header = ["task", "metric", *(evaluation.model for evaluation in evaluations)]
    header += [f"{SEED}, published"] if seed else []
    found = [columns(evaluation, suite) for evaluation in evaluations]
    rows = []
    for line, cell in enumerate(found[0]):
        row = [cell.task, cell.metric, *(_shown(one[line]) for one in found)]
        if seed:
            row.append(f"{published.PUBLISHED[SEED][published.TASKS.index(cell.task)]:.2f}")
        rows.append(row)
    means = [average(one) for one in found] if seed else []
    if means and all(mean is not None for mean in means):
        rows.append(
            ["average", "", *(_shown(mean) for mean in means if mean), f"{published_average(SEED):.2f}"]
        )
    return header, rows


def _shown(cell: Cell) -> str:
    known = cell.stderr is not None and math.isfinite(cell.stderr)
    return f"{cell.value:.2f} ± {cell.stderr:.2f}" if known else f"{cell.value:.2f}"


def difference_table(differences: Sequence[Difference]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a comparison, narrow enough for a terminal of 80 columns."""
    rows = []
    for one in differences:
        low, high = one.interval
        shown = f"{one.difference:+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append(
            [
                one.task if one.ordered else one.metric, f"{one.items:,}", f"{one.changed:,}",
                f"{one.first:.2f}", f"{one.second:.2f}", shown, one.verdict,
            ]
        )  # fmt: skip
    return ["task", "items", "changed", "first", "second", "difference (95 % interval)", "verdict"], rows


def page(
    evaluations: Sequence[Evaluation],
    suite: Suite,
    differences: Sequence[tuple[str, str, Sequence[Difference]]] = (),
) -> Page:
    """The page of one or several models; `differences` holds (first, second, per task)."""
    names = ", ".join(evaluation.model for evaluation in evaluations)
    report = Page(f"Evaluation of {names}", f"suite {suite.name}")
    report.facts(_facts(evaluations[0], suite))
    for note in dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes):
        of = [evaluation.model for evaluation in evaluations if note in evaluation.notes]
        report.paragraph(note if len(of) == len(evaluations) else f"{', '.join(of)}: {note}")
    report.heading("Results")
    report.table(*table(evaluations, suite), caption="Percent, with the standard error over items.")
    seed = suite.name == "stablelm-3b-4e1t"
    found = columns(evaluations[0], suite)
    if seed:
        report.paragraph(RULE_NOTE)
        for rule in RULES[1:]:
            mean = average(cells(evaluations[0].results["results"], rule), rule)
            if mean is not None:
                report.paragraph(
                    f"By the rule of {rule.where}: {mean.value:.2f} ± {mean.stderr or math.nan:.2f}."
                )
    if found:
        groups = {
            evaluation.model: [c.value for c in columns(evaluation, suite)] for evaluation in evaluations
        }
        if seed:
            groups[f"{SEED}, published"] = [
                published.PUBLISHED[SEED][published.TASKS.index(cell.task)] for cell in found
            ]
        safety = suite.name == SAFETY  # whose sets have several numbers each
        labels = [cell.metric if safety else TITLES.get(cell.task, cell.task) for cell in found]
        report.chart(bar_chart(labels, groups, title="Results by task", y_label="percent"))
    if suite.name == SAFETY:
        from stablelm.evaluation.safety.page import sections

        sections(report, evaluations)
    for first, second, parts in differences:
        report.heading(f"{second} minus {first}")
        report.paragraph(
            "Paired: the difference is taken item by item; items that both models answer alike add no noise."
        )
        report.table(*difference_table(parts), caption="Percent points.")
    if seed:
        report.heading("Beside the published table")
        rows = [[name, f"{published_average(name):.2f}", *(f"{v:.2f}" for v in row)]
                for name, row in published.PUBLISHED.items()]  # fmt: skip
        for evaluation in evaluations:
            own = cells(evaluation.results["results"])
            mean = average(own)
            if mean is not None:
                rows.append([evaluation.model, f"{mean.value:.2f}", *(f"{cell.value:.2f}" for cell in own)])
        rows.sort(key=lambda row: -float(row[1]))
        report.table(["model", "average", *(TITLES[task] for task in published.TASKS)], rows)
    return report


def _facts(evaluation: Evaluation, suite: Suite) -> dict[str, Any]:
    counts = evaluation.results.get("n-samples", {})
    items = sum(int(count.get("effective", 0)) for count in counts.values() if isinstance(count, dict))
    facts: dict[str, Any] = {"Tasks": len(evaluation.samples) or len(suite.tasks), "Items": items}
    if suite.name == "stablelm-3b-4e1t":
        mean = average(cells(evaluation.results["results"]))
        if mean is not None:
            facts["Average"] = f"{mean.value:.2f}"
        facts["Published 3B"] = f"{published_average(SEED):.2f}"
    return facts
