"""The parts of the report on what stages after the filters found: repetitions, leaks, personal data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stablelm.reporting import Page
from stablelm.reporting.text import counted

_ITEMS = 20
_KINDS = {"email": ("email",), "ip": ("ipv4", "ipv6"), "phone": ("phone",), "secret": ("secret",)}
_STEPS = {
    "exact": ("Equal documents", "equal up to case, white space and Unicode's compatible spellings"),
    "near": ("Nearly equal documents", "sharing most of their word n-grams"),
}


def cut(text: str, size: int) -> str:
    """The beginning of a text of `size` bytes, marked as such."""
    return text if len(text.encode()) >= size else f"{text}…"


def described(one: Mapping[str, Any]) -> str:
    """Where a document stands, what it is called, and its size."""
    path = one["place"].rpartition(":")[0]
    details = [one["place"], "" if path.endswith(one["id"]) else one["id"], one["label"], one["url"]]
    return " · ".join([*dict.fromkeys(filter(None, details)), f"{one['bytes']:,} bytes"])


def repetitions(page: Page, settings: Mapping[str, Any] | None, found: Mapping[str, Any]) -> None:
    """Clusters of equal and nearly equal documents, with members; repeated lines."""
    if settings is None:
        page.paragraph("Not looked for: the recipe has no deduplication.")
        return
    named = settings["precedence"]
    order = f"{', '.join(named)}, then the recipe's order" if named else "the recipe's order"
    if settings["scope"] == "across":
        page.paragraph(f"Looked for across all sources; what is repeated stays in the first ({order}).")
    else:
        page.paragraph("Looked for within each source; what is repeated stays where it was read first.")
    for step, (title, means) in _STEPS.items():
        page.subheading(title)
        if settings[step] is None:
            page.paragraph("Not looked for: the recipe leaves this step out.")
            continue
        _clusters(page, found[step], means, f"clusters-{step}.jsonl")
    page.subheading("Repeated lines")
    if settings["lines"] is None:
        page.paragraph("Not looked for: the recipe leaves this step out.")
        return
    _lines(page, settings["lines"], found["lines"])


def _clusters(page: Page, about: Mapping[str, Any], means: str, file: str) -> None:
    if not about["clusters"]:
        page.paragraph(f"None: no two documents are {means}.")
        return
    page.paragraph(
        f"{counted(about['clusters'], 'cluster')} of {about['documents']:,} documents {means}; "
        f"{about['dropped']:,} of them were dropped. All are listed in {file}."
    )
    rows = [[pair["dropped"], pair["kept"], pair["documents"]] for pair in about["between"]]
    page.table(["dropped from", "for one kept in", "documents"], rows)
    for number, cluster in enumerate(about["examples"], 1):
        kept, *rest = cluster["members"]
        with page.fold(
            f"Cluster {number}: {counted(cluster['documents'], 'document')}, kept {kept['place']}"
        ):
            page.text_block(cut(kept["text"], kept["bytes"]), f"kept: {kept['source']} · {described(kept)}")
            same = [one for one in rest if (one["text"], one["bytes"]) == (kept["text"], kept["bytes"])]
            if same:
                listed = "\n".join(f"{one['source']} · {described(one)}" for one in same)
                page.text_block(listed, "dropped, and beginning as the one that is kept")
            for one in rest:
                if one not in same:
                    where = f"dropped: {one['source']} · {described(one)}"
                    page.text_block(cut(one["text"], one["bytes"]), where)
            if more := cluster["documents"] - len(cluster["members"]):
                page.paragraph(f"And {more:,} more.")


def _lines(page: Page, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    unit, most = settings["unit"], settings["max_documents"]
    if not about["common"]:
        page.paragraph(f"None: no {unit} is in more than {most:,} documents.")
        return
    rows = [[name, cut["cuts"], cut["bytes"]] for name, cut in about["sources"].items()]
    page.table(
        ["source", f"{unit}s cut", "bytes cut"],
        rows,
        f"A {unit} of at least {settings['min_characters']:,} characters that more than {most:,} documents "
        "have; documents of which too little was left are dropped, and not counted here.",
    )
    for one in about["common"]:
        page.text_block(
            cut(one["text"], one["bytes"]).rstrip("\n"),
            f"In {one['documents']:,} documents, as {one['place']}",
        )


def decontamination(
    page: Page,
    settings: Mapping[str, Any] | None,
    found: Mapping[str, Any] | None,
    sources: Mapping[str, Mapping[str, Any]],
) -> None:
    """What was found of each evaluation set, removed, and where."""
    if settings is None or found is None:
        page.paragraph("Not looked for: the recipe names no evaluation set.")
        return
    removed: Counter[str] = Counter()
    for about in sources.values():
        removed.update(about["dropped"])
    action = {
        "drop": "which were dropped", "cut": "out of which it was cut", "report": "which were left alone",
    }[found["action"]]  # fmt: skip
    page.paragraph(
        f"Looked for: {settings['n']} words in a row of an evaluation item (of a text of "
        f"{settings['min_words']} to {settings['n']} words, all). "
        f"Found in {counted(found['documents'], 'document')}, {action}."
    )
    page.table(
        ["evaluation set", "items", "too short", "items found", "in documents", "documents removed"],
        [
            [
                name, about["items"], about["too_short"], len(about["items_hit"]), about["documents"],
                removed[f"decontamination: {name}"],
            ]
            for name, about in found["sets"].items()
        ],
        "Items that are too short are not looked for. A document that holds items of several sets is found "
        "in each, and removed for one of them.",
    )  # fmt: skip
    for name, about in found["sets"].items():
        if not about["documents"]:
            continue
        hit = counted(len(about["items_hit"]), "item")
        with page.fold(f"{name}: {hit} in {counted(about['documents'], 'document')}"):
            items = ", ".join(f"{line:,}" for line in about["items_hit"][:_ITEMS])
            more = len(about["items_hit"]) - _ITEMS
            page.paragraph(f"Lines of {about['path']}: {items}{f' and {more:,} more' if more > 0 else ''}.")
            for one in about["examples"]:
                where = f"{one['source']} · {one['place']} · {one['id']}"
                page.text_block(one["context"], f"{where}: item {one['item']:,}, found “{one['found']}”")


def personal_data(
    page: Page, settings: Sequence[Mapping[str, Any]], sources: Mapping[str, Mapping[str, Any]]
) -> None:
    """By source and kind: what was found in all documents, and written instead in those that are kept."""
    rows = []
    for source in settings:
        if (pii := source["filters"]["pii"]) is None:
            continue
        about = sources[source["name"]]
        for kind, keys in _KINDS.items():
            if kind not in pii["kinds"]:
                rows.append([source["name"], kind, None, None, "not looked for"])
                continue
            placeholders = [pii[key] for key in keys]
            written = sum(about["replaced"].get(text, 0) for text in dict.fromkeys(placeholders))
            histogram = about["histograms"].get(f"pii.{kind}")
            found = histogram["sum"] if histogram else 0 if not about["read"] else None
            rows.append([source["name"], kind, found, written, ", ".join(placeholders)])
    if not rows:
        page.paragraph("Not looked for: no source has the filter `pii`.")
        return
    page.table(
        ["source", "kind", "found", "replaced", "by"],
        rows,
        "Found in all documents that were read; replaced in those that are kept. Kinds that a recipe gives "
        "one placeholder are counted together as replaced.",
    )
