"""The page about a prepared directory: what was read, what became of it and why, with real documents.

Everything comes from OUT's own files: manifest.json (the account), report.json (examples, distributions,
clusters, repeated lines) and decontamination.json; no text is read again, so a page of any corpus takes
seconds. What was not measured is said to be so and never shown as 0. The two accounts are compared before
anything is shown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stablelm.config import InputError
from stablelm.data.manifest import SIDES, Dataset
from stablelm.data.report_cleaning import cut, decontamination, described, personal_data, repetitions
from stablelm.data.report_data import REPORT, REPORT_VERSION, lower_edge
from stablelm.reporting import Page, bar_chart, histogram_chart
from stablelm.reporting.text import counted
from stablelm.storage import read_json

FATES = ("dropped", "errors")
_FILES, _VALUES, _CHARTED = 12, 12, 24


def dataset_page(dataset: Dataset, title: str | None = None) -> Page:
    """The report of a prepared directory; `InputError` when it has no report.json, or a damaged one."""
    path = dataset.path / REPORT
    if not path.is_file():
        raise InputError(f"{dataset.path}: has no {REPORT}: an older version prepared it. {_again(dataset)}")
    shown = read_json(path)
    if not isinstance(shown, dict) or shown.get("version") != REPORT_VERSION:
        version = shown.get("version") if isinstance(shown, dict) else None
        raise InputError(
            f"{path}: version {version!r}, this one shows version {REPORT_VERSION}. {_again(dataset)}"
        )
    try:
        return _page(dataset, shown, title)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(f"{path}: damaged: {error!r}. {_again(dataset)}") from None


def _again(dataset: Dataset) -> str:
    return (
        f"Remove {dataset.path} and run `stablelm data prepare` with its recipe again; what the work "
        "directory still holds is not done again."
    )


def _page(dataset: Dataset, shown: Mapping[str, Any], title: str | None) -> Page:
    manifest, sources = dataset.manifest, {name: dataset.info(name) for name in dataset.sources}
    if list(shown["sources"]) != list(sources) and set(shown["sources"]) != set(sources):
        raise ValueError("its sources are not the manifest's")
    for name, about in sources.items():
        _compare(name, about, shown["sources"][name])
    recipe = manifest["recipe"]
    page = Page(title or f"Prepared data: {dataset.path.resolve().name}", f"{dataset.path}")
    page.facts(_facts(dataset, sources))
    page.heading("What became of it")
    _account(page, sources)
    page.heading("Sources")
    _sources(page, recipe, sources)
    page.heading("What could not be read")
    _errors(page, manifest["on_error"], shown["sources"])
    page.heading("Repetitions")
    repetitions(page, recipe["deduplication"], shown["repetitions"])
    page.heading("Evaluation sets")
    found = dataset.path / "decontamination.json"
    decontamination(page, recipe["decontamination"], read_json(found) if found.is_file() else None, sources)
    page.heading("Personal data")
    personal_data(page, recipe["sources"], shown["sources"])
    for name, about in shown["sources"].items():
        page.heading(f"Source {name}")
        _reasons(page, about)
        _changes(page, sources[name])
        _signals(page, about["histograms"])
    page.heading("How it was made")
    _made(page, manifest)
    return page


def share(part: float, whole: float) -> str:
    """A share in per cent; one that is not 0 never looks like 0, and one of nothing is none."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if percent in (0, 100):
        return f"{percent:.0f} %"
    return "< 0.01 %" if 0 < percent < 0.01 else "> 99.99 %" if 99.99 < percent < 100 else f"{percent:.2f} %"


def _compare(name: str, about: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """The manifest's account of a source beside the report's: each must add up, and they must be one."""
    for unit, dropped, errors in (("", "dropped", "errors"), ("_bytes", "dropped_bytes", "error_bytes")):
        left_out = sum(about[dropped].values()) + sum(about[errors].values())
        if about[f"read{unit}"] != about[f"kept{unit}"] + left_out:
            raise ValueError(f"{name}: the manifest's account does not add up")
        told = sum(each["bytes" if unit else "documents"] for each in shown["reasons"])
        if not about[f"read{unit}"] == shown[f"read{unit}"] == told:
            raise ValueError(f"{name}: it is of another preparation than the manifest")


def _facts(dataset: Dataset, sources: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    def total(key: str) -> int:
        values = (about[key] for about in sources.values())
        return sum(sum(value.values()) if isinstance(value, dict) else value for value in values)

    read = total("read")
    made = [about[side] for about in sources.values() for side in SIDES]
    return {
        "Documents read": read,
        "Kept": f"{total('kept'):,} ({share(total('kept'), read)})",
        "Dropped": f"{total('dropped'):,} ({share(total('dropped'), read)})",
        "Errors": f"{total('errors'):,} ({share(total('errors'), read)})",
        "Bytes read": total("read_bytes"),
        "Bytes of text made": sum(side["bytes"] for side in made),
        "Tokens": sum(side["tokens"] for side in made),
        "Fingerprint": dataset.fingerprint[:16],
    }


def _account(page: Page, sources: Mapping[str, Mapping[str, Any]]) -> None:
    rows, sizes = [], []
    for name, about in sources.items():
        lost = [sum(about[fate].values()) for fate in FATES]
        rows.append([name, about["read"], about["kept"], *lost, share(about["kept"], about["read"])])
        lost = [sum(about[fate].values()) for fate in ("dropped_bytes", "error_bytes")]
        whole = about["read_bytes"]
        sizes.append([name, whole, about["kept_bytes"], *lost, share(about["kept_bytes"], whole)])
    for unit, table in (("Documents", rows), ("Bytes of input", sizes)):
        total = [sum(row[i] for row in table) for i in range(1, 5)]
        body = [*table, ["all", *total, share(total[1], total[0])]] if len(table) > 1 else table
        header = [unit.lower(), "read", "= kept", "+ dropped", "+ errors", "kept"]
        page.table(header, body)
    page.paragraph("Every row adds up, and so does every file's: inputs in manifest.json.")
    charted = list(sources)[:_CHARTED]
    groups = {
        fate: [
            100
            * (n if isinstance(n := sources[name][fate], int) else sum(n.values()))
            / sources[name]["read"]
            if sources[name]["read"]
            else float("nan")
            for name in charted
        ]
        for fate in ("kept", *FATES)
    }
    page.chart(
        bar_chart(charted, groups, title="Share of the documents read", y_label="%"),
        "" if len(charted) == len(sources) else f"The first {_CHARTED} of {len(sources):,} sources.",
    )
    reasons: Counter[tuple[str, str]] = Counter()
    lost_bytes: Counter[tuple[str, str]] = Counter()
    for about in sources.values():
        for fate, size in zip(FATES, ("dropped_bytes", "error_bytes"), strict=True):
            for reason, count in about[fate].items():
                reasons[fate, reason] += count
                lost_bytes[fate, reason] += about[size][reason]
    read = sum(about["read"] for about in sources.values())
    if not reasons:
        page.paragraph("Nothing was left out.")
        return
    page.table(
        ["reason, all sources", "fate", "documents", "of all read", "bytes"],
        [
            [reason, fate.removesuffix("s"), count, share(count, read), lost_bytes[fate, reason]]
            for (fate, reason), count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        ],
        "Each document has the first reason that applied.",
    )


def _sources(page: Page, recipe: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> None:
    settings = {source["name"]: source for source in recipe["sources"]}
    page.table(
        ["source", "licence", "address", "epochs"],
        [
            [name, about["licence"] or "not stated", about["url"] or "not stated", about["epochs"]]
            for name, about in sources.items()
        ],
        "As the recipe says.",
    )
    counts = [
        [name, len(about["inputs"]), len(about["empty_files"])]
        + [about[side][unit] for side in SIDES for unit in ("documents", "tokens")]
        for name, about in sources.items()
    ]
    page.table(
        ["source", "files", "empty", "training", "tokens", "held out", "tokens"],
        counts,
        "Training and held out: documents.",
    )
    for name, about in sources.items():
        inputs = about["inputs"]
        with page.fold(f"{name}: {counted(len(inputs), 'file')} from {', '.join(about['paths'])}"):
            if excluded := settings[name]["exclude"]:
                page.paragraph(f"Left out by label: {', '.join(excluded)}.")
            if excluded and about["unlabelled"]:
                page.paragraph(f"{about['unlabelled']:,} documents have no label to go by.")
            if about["ignored"]:
                most = sorted(about["ignored"].items(), key=lambda pair: (-pair[1], pair[0]))
                listed = ", ".join(f"{count:,} × {suffix}" for suffix, count in most[:_FILES])
                more = f", and {len(most) - _FILES:,} more kinds" if len(most) > _FILES else ""
                page.paragraph(f"Files there that were not taken for input: {listed}{more}.")
            worst = sorted(inputs, key=lambda file: (file["kept"] - file["read"], file["path"]))[:_FILES]
            page.table(
                ["file", "read", "kept", "dropped", "errors", "bytes"],
                [
                    [
                        file["path"] + (" (empty)" if file["empty"] else ""), file["read"], file["kept"],
                        sum(file["dropped"].values()), sum(file["errors"].values()), file["bytes"],
                    ]
                    for file in worst
                ],
                "" if len(worst) == len(inputs) else f"The {_FILES} that lost most documents.",
            )  # fmt: skip


def _errors(page: Page, on_error: str, sources: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [
        (name, each)
        for name, about in sources.items()
        for each in about["reasons"]
        if each["fate"] == "errors"
    ]
    if rows:
        page.table(
            ["source", "what", "documents", "bytes"],
            [[name, each["reason"], each["documents"], each["bytes"]] for name, each in rows],
        )
        for name, each in rows:
            with page.fold(f"{name}: {each['reason']} – first at {each['places'][0]}"):
                page.text_block("\n".join(each["places"]), _first_of(each))
    else:
        means = (
            "such a document stops the preparation" if on_error == "stop" else "such documents are skipped"
        )
        page.paragraph(f"Every document could be read (on_error: {on_error}, {means}).")


def _reasons(page: Page, about: Mapping[str, Any]) -> None:
    """The reasons of one source, and real documents of each."""
    page.table(
        ["fate", "reason", "documents", "of those read", "bytes", "of those read"],
        [
            [
                each["fate"].removesuffix("s"), each["reason"], each["documents"],
                share(each["documents"], about["read"]), each["bytes"],
                share(each["bytes"], about["read_bytes"]),
            ]
            for each in _by_count(about["reasons"])
        ],
    )  # fmt: skip
    for each in _by_count(about["reasons"]):
        if not each["documents"]:
            continue
        fate = {"kept": "Kept", "dropped": "Dropped: ", "errors": "Error: "}[each["fate"]]
        with page.fold(f"{fate}{each['reason']} – {counted(each['documents'], 'document')}"):
            if each["places"]:
                page.text_block("\n".join(each["places"]), _first_of(each))
            if not each["examples"]:
                page.paragraph("Settled by the reader, before a text was stored: there is none to show.")
            for one in each["examples"]:
                _example(page, one)


def _first_of(each: Mapping[str, Any]) -> str:
    shown, count = len(each["places"]), each["documents"]
    return "File and line." if shown == count else f"File and line, the first {shown} of {count:,}."


def _by_count(reasons: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    order = {"kept": 0, "dropped": 1, "errors": 2}
    return sorted(reasons, key=lambda each: (order[each["fate"]], -each["documents"], each["reason"]))


def _example(page: Page, one: Mapping[str, Any]) -> None:
    page.text_block(cut(one["text"], one["bytes"]), described(one))
    if "changed" in one:
        after = f"The same after changes: {one['changed_bytes']:,} bytes"
        page.text_block(cut(one["changed"], one["changed_bytes"]) or "(nothing)", after)


def _changes(page: Page, about: Mapping[str, Any]) -> None:
    changed, kept = about["changed"], about["kept"]
    if changed["documents"]:
        page.paragraph(
            f"Of {counted(kept, 'document')} kept, {changed['documents']:,} changed: {changed['before']:,} "
            f"bytes of text in all before, {changed['after']:,} after."
        )


def _signals(page: Page, histograms: Mapping[str, Mapping[str, Any]]) -> None:
    page.subheading("Signals")
    if not histograms:
        page.paragraph("Not measured: the source has no filters.")
        return
    charts, truths = [], []
    for name, one in histograms.items():
        counts = one["counts"]
        if one["kind"] in ("count", "ratio"):
            charts.append(_histogram(name, one["kind"], counts))
        elif one["kind"] == "truth":
            yes, no = counts.get("true", 0), counts.get("false", 0)
            truths.append([name, yes, no, share(yes, yes + no)])
        else:
            most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            rows = [[value or "none", n, share(n, sum(counts.values()))] for value, n in most[:_VALUES]]
            page.table([name, "documents", "share"], rows)
    if truths:
        page.table(["signal", "yes", "no", "share of yes"], truths)
    with page.fold(f"{len(charts)} distributions, over all documents that were read, also those dropped"):
        page.charts(
            charts, "Bars of one width; those of counts, and of ratios above 1, begin at powers of 2^¼."
        )


def _histogram(name: str, kind: str, counts: Mapping[str, int]) -> str:
    places = sorted(map(int, counts))
    edges: list[float] = []
    heights: list[int] = []
    for place in range(places[0], places[-1] + 1) if places else ():
        low, high = lower_edge(kind, place), lower_edge(kind, place + 1)
        if kind == "count":  # whole numbers: many of the low bins can hold none
            low, high = -(-low // 1), -(-high // 1)
            if low == high:
                continue
        edges, heights = [*edges[: len(heights)], low, high], [*heights, counts.get(str(place), 0)]
    total = sum(counts.values())
    return histogram_chart(
        edges or [0.0], heights, title=name, x_label="a ratio" if kind == "ratio" else "a count",
        y_label=f"documents, of {total:,}",
    )  # fmt: skip


def _made(page: Page, manifest: Mapping[str, Any]) -> None:
    tokenizer, recipe = manifest["tokenizer"], manifest["recipe"]
    page.table(
        ["what", "value"],
        [
            ["tokenizer", f"{tokenizer['size']:,} ids, sha256 {tokenizer['sha256'][:16]}…"],
            ["end of document", f"id {tokenizer['eod_id']}" if manifest["append_eod"] else "not written"],
            ["held out", f"{manifest['held_out']:.4g} of the origins"],
            ["seed", str(manifest["seed"])],
            ["recipe", f"sha256 {manifest['recipe_sha256'][:16]}…"],
        ],
    )
    with page.fold("The recipe, every key"):
        import yaml

        page.text_block(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100))
