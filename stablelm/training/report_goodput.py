"""The part of a run's page that says where its wall time went, and how well the device was used."""

from typing import Any

from stablelm.reporting import Page, Series, line_chart, share_chart
from stablelm.reporting.text import counted
from stablelm.training.console import duration
from stablelm.training.goodput import PHASES, Goodput


def time_section(page: Page, account: Goodput | None, steps: list[dict[str, Any]]) -> None:
    """Goodput over all starts, and MFU over time. A run from before there was an account has only the
    latter."""
    if account is not None and account.wall > 0:
        page.heading("Where the time went")
        shares = account.shares()
        page.chart(
            share_chart(
                {PHASES[name][0]: share for name, share in shares.items()}, title="Wall time by phase"
            ),
            f"Goodput {100 * account.share:.1f} %: the share of {_time(account.wall)} of wall time in which "
            f"steps were computed that the run kept. {_history(account.starts, account.rollbacks)}",
        )
        rows: list[list[object]] = [
            [PHASES[name][0], _time(account.seconds[name]), f"{100 * share:.1f} %", PHASES[name][1]]
            for name, share in shares.items()
        ]
        page.table(["phase", "time", "share", "what it is"], rows)
    page.heading("Model FLOPs utilization")
    lines = [
        Series(name, [r["step"] for r in found], [100 * r[key] for r in found])
        for name, key in (("MFU", "mfu"), ("HFU, with recomputation", "hfu"))
        if (found := [record for record in steps if record.get(key) is not None])
        and (key == "mfu" or any(record[key] != record["mfu"] for record in found))
    ]
    page.chart(
        line_chart(lines, title="MFU", x_label="step", y_label="% of the peak rate"),
        "Of each step by itself: without evaluation, saving and restarts, which goodput counts.",
    )


def goodput_fact(account: Goodput | None) -> dict[str, object]:
    """Goodput for the cards at the top of a page, where there is an account."""
    return {} if account is None else {"Goodput": f"{100 * account.share:.1f} %"}


def _history(starts: int, rollbacks: int) -> str:
    back = f", and went back {counted(rollbacks, 'time')}" if rollbacks else ""
    return f"The run was started {counted(starts, 'time')}{back}; goodput.jsonl has the account."


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
