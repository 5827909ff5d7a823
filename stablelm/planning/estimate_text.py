"""An estimate for a reader, as plain lines."""

from collections.abc import Sequence

from stablelm.planning.devices import GIB
from stablelm.planning.estimate import Estimate, Setting
from stablelm.planning.flops import COUNTS
from stablelm.planning.memory import FRAGMENTED, RESERVED, usable

COMPONENTS = {
    "weights": "weights, this GPU's shard",
    "moments": "AdamW's moments, this GPU's shard",
    "gradients": "gradients",
    "gathered": "weights gathered for the computation",
    "activations": "activations",
    "passing": "logits, head's gradient, communication, block at work",
    "average": "moving average of the weights, this GPU's shard",
}
NAMES = {"mfu": "MFU", "mfu_causal": "MFU, causal", "hfu": "HFU"}


def estimate_lines(estimate: Estimate) -> list[str]:
    """Everything that `stablelm plan` says."""
    return [
        *_run(estimate), "", *_memory(estimate), "", *_time(estimate), "", *_traffic(estimate), "",
        *_advice(estimate),
    ]  # fmt: skip


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows as aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        return f"{indent}{'  '.join([f'{row[0]:<{widths[0]}}', *cells[1:]])}".rstrip()

    return [line(row) for row in rows]


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _run(estimate: Estimate) -> list[str]:
    parts, layout = estimate.parameters(), estimate.asked.layout
    about = (
        f"  embedding {parts['embedding']:,}, {estimate.model.num_hidden_layers} blocks {parts['blocks']:,}, "
        f"last norm {parts['final_norm']:,}, head {parts['head']:,}"
    )
    length = (
        "steps: not known (steps is null, no data at data.path); --set steps=N gives days and cost"
        if estimate.steps is None or estimate.tokens is None
        else f"{estimate.steps:,} steps × {estimate.step_tokens:,} tokens = {estimate.tokens:,} tokens"
        if estimate.tokens == estimate.steps * estimate.step_tokens
        else f"{estimate.steps:,} steps, {estimate.tokens:,} tokens (data.phases change the batch)"
    )
    return [
        f"{parts['total']:,} parameters", about, length,
        f"{layout.world:,} × {estimate.device.lines()[0]}", *estimate.device.lines()[1:],
        f"as configured: {layout.describe()}",
    ]  # fmt: skip


def _memory(estimate: Estimate) -> list[str]:
    memory, device = estimate.asked.memory, estimate.device
    rows = [(title, _gib(getattr(memory, name))) for name, title in COMPONENTS.items()
            if name != "average" or memory.average]  # fmt: skip
    rows += [("context, NCCL, workspaces (assumed)", _gib(RESERVED)), ("needed", _gib(memory.needed))]
    kinds = list(dict.fromkeys(setting.layout.recompute for setting in estimate.table))
    cells = {(s.layout.zero, s.layout.recompute): s for s in estimate.table}
    heads = ["ZeRO \\ recompute", *(f"every {k}" if isinstance(k, int) else k for k in kinds)]
    grid = [[str(zero), *(_cell(cells[zero, kind]) for kind in kinds)] for zero in range(4)]
    spare, layout = f"{100 * FRAGMENTED:.0f} % left to fragmentation", estimate.asked.layout
    batch = f"{layout.micro_sequences} × {layout.micro_batches}"
    return [
        f"Memory of one GPU at the worst moment of a step, GiB ({_gib(usable(device))} usable: {spare})",
        *columns(rows),
        f"Each stage and kind of recomputation at micro-batch {batch}; * does not fit",
        *columns([heads, *grid]),
    ]  # fmt: skip


def _cell(setting: Setting) -> str:
    return f"{_gib(setting.memory.needed)}{' ' if setting.fits else '*'}"


def _time(estimate: Estimate) -> list[str]:
    asked, flops = estimate.asked, estimate.flops()
    lines = [
        f"Speed: {asked.tokens_per_second:,.0f} tokens/s a GPU, {estimate.step_seconds:,.3g} s a step",
        f"  {estimate.speed_source}",
    ]
    rows = [
        (f"{NAMES[name]}: {COUNTS[name]}", f"{flops[name] / 1e9:,.2f} GFLOP a token",
         f"{100 * getattr(estimate.utilization, name):.1f} %")
        for name in COUNTS
    ]  # fmt: skip
    return [*lines, *columns(rows), f"  {_length(asked)}"]


def _length(setting: Setting) -> str:
    if setting.days is None or setting.gpu_hours is None:
        return "days: not known without the number of steps"
    cost = "" if setting.cost is None else f", cost {setting.cost:,.0f} at the price given"
    return f"{setting.days:,.1f} days, {setting.gpu_hours:,.0f} GPU-hours{cost}"


def _traffic(estimate: Estimate) -> list[str]:
    if not estimate.traffic:
        return ["Network: nothing is sent, one device"]
    rows = [("collective", "calls", "GB from a GPU", "GB from a node")]
    for row in estimate.traffic:
        sent, node_sent = f"{row.sent / 1e9:,.3f}", f"{row.node_sent / 1e9:,.3f}"
        rows.append((f"{row.kind} of {row.what} ({row.axis})", f"{row.calls:,}", sent, node_sent))
    seconds, device = estimate.step_seconds, estimate.device
    out = sum(row.node_sent for row in estimate.traffic)
    inside = sum(row.sent for row in estimate.traffic if not row.node_sent)
    lines = ["Network in one step", *columns(rows)]
    if out:
        lines.append(
            f"  to hide it behind the computation each node needs {8 * out / seconds / 1e9:,.0f} Gb/s"
        )
    if inside:
        lines.append(
            f"  inside a node: {1e3 * inside / device.link:,.0f} ms at {device.link / 1e9:,.0f} GB/s"
        )
    return lines


def _advice(estimate: Estimate) -> list[str]:
    asked, best, without = estimate.asked, estimate.recommended, estimate.unrecomputed
    verdict = "fits" if asked.fits else "DOES NOT FIT"
    lines = [
        f"As configured it {verdict}: {_gib(asked.memory.needed)} of {_gib(usable(estimate.device))} GiB."
    ]
    if without is not None and without.tokens_per_second > asked.tokens_per_second:
        gain = without.tokens_per_second / asked.tokens_per_second
        saved = ""
        if without.days is not None and asked.days is not None:
            saved = f", {without.days:,.1f} days instead of {asked.days:,.1f}"
        lines.append(
            f"Without recomputation, at the same hardware utilisation: {gain:.2f}× the speed, "
            f"{without.tokens_per_second:,.0f} tokens/s a GPU{saved}; it needs "
            f"{_gib(without.memory.needed)} GiB at this micro-batch and "
            f"{'fits' if without.fits else 'does not fit'}."
        )
    if best is None:
        return [*lines, "Nothing fits: take more GPUs, GPUs with more memory, or parallel.tensor above 1."]
    keys = (
        f"batch.micro_sequences={best.layout.micro_sequences} parallel.zero={best.layout.zero} "
        f"recompute={best.layout.recompute}"
    )
    return [
        *lines,
        f"Recommended: {best.layout.describe()}",
        f"  {_gib(best.memory.needed)} GiB, {best.tokens_per_second:,.0f} tokens/s a GPU, {_length(best)}",
        f"  {' '.join(f'--set {key}' for key in keys.split())}",
    ]
