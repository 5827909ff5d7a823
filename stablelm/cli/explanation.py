"""What `stablelm config explain` says of a file: every key with its verdict."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stablelm.config.errors import InputError
from stablelm.config.neox import is_neox, read_neox
from stablelm.config.run import RunConfig, from_reading, has_key
from stablelm.config.schema import Schema, apply_overrides, read_yaml, section_of, validate


def explain_config(
    path: str | Path, overrides: Sequence[str] = (), gpus: int | None = None
) -> dict[str, Any]:
    """{format, keys: [{key, value, verdict, ours, ours_value, why, given}], faults: [sentence]}. `given` is
    False for a key that the file leaves to its default.

    A file of ours has the verdicts used and default; a faulty GPT-NeoX file is explained all the same. Raises
    `InputError` for a file that is no mapping, and for a fault in ours."""
    values = read_yaml(path)
    if not is_neox(values, list(RunConfig.model_fields)):
        changed = apply_overrides(values, overrides)
        run = validate(RunConfig, changed, str(path))
        return {"format": "stablelm", "keys": _our_rows(run, changed, ""), "faults": []}
    reading = read_neox(values, str(path), overrides, gpus)
    faults = list(reading.faults)
    if not faults:
        try:
            from_reading(reading, overrides)
        except InputError as error:
            faults = [line.removeprefix(f"{path}: ") for line in str(error).splitlines()]
    rows = []
    for row in reading.rows:
        sets = row.verdict == "mapped" and reading.origin.get(row.ours) == row.key
        ours = row.ours if row.verdict == "mapped" or row.why.endswith(" decides") else ""
        if sets and not has_key(row.ours):  # a section that is not built
            row, sets = row._replace(verdict="ignored", why=f"there is no {row.ours} here yet"), False
        why = row.why or (described(row.ours) if sets else "left blank: ours has its default")
        why = why if row.given else f"not given: GPT-NeoX's default. {why}".removesuffix(". ")
        value = reading.ours.get(row.ours) if sets else None
        rows.append(row._asdict() | {"ours": ours, "ours_value": value, "why": why})
    return {"format": "gpt-neox", "keys": rows, "faults": faults}


def described(key: str) -> str:
    """The first sentence of what is documented of a key of ours (dotted)."""
    schema: type[Schema] = RunConfig
    *sections, last = key.split(".")
    for name in sections:
        schema = section_of(schema.model_fields[name]) or schema
    text = " ".join((schema.model_fields[last].description or "").split())
    return re.split(r"[.;](?:\s|$)", text)[0]


def _our_rows(section: Schema, values: Any, above: str) -> list[dict[str, Any]]:
    rows = []
    for name, field in type(section).model_fields.items():
        value, given = getattr(section, name), isinstance(values, dict) and name in values
        if isinstance(value, Schema):
            rows += _our_rows(value, values[name] if given else {}, f"{above}{name}.")
            continue
        rows.append({
            "key": f"{above}{name}", "value": section.model_dump(mode="json", include={name})[name],
            "verdict": "used" if given else "default", "ours": "", "why": field.description or "",
            "given": given, "ours_value": None,
        })  # fmt: skip
    return rows
