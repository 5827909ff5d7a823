"""How every configuration is declared, read and refused.

Policy: a configuration is a frozen Pydantic model whose field docstrings are its documentation; the commented
reference YAML is generated from them. Unknown keys are refused with the nearest valid name, duplicate YAML
keys are refused, and `1e-4` is a number (YAML 1.1 reads it as a string). `--set a.b=c` edits the parsed
mapping and passes the same checks. Rejected: OmegaConf (its type limits shape the code), a command-line flag
per option (every flag is a promise)."""

import difflib
import re
import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from stablelm.config.errors import InputError


class Schema(BaseModel):
    """Base of every configuration section: frozen, no unknown keys, documented by field docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


S = TypeVar("S", bound=Schema)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-4` as a float and refuses duplicate keys."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *base`; the keys it brings may be overridden
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise InputError(f"{_place(key_node.start_mark)}: a key must be a name or a number, not {key!r}.")
        if key in seen:
            raise InputError(f"{_place(key_node.start_mark)}: key {key!r} is given twice; keep one of them.")
        seen.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def _place(mark: Any) -> str:
    return f"{mark.name}, line {mark.line + 1}"


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; `source` names it in errors."""
    loader = None
    try:
        loader = _Loader(text)
        loader.name = source
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark) if error.problem_mark else source
        raise InputError(f"{place}: not valid YAML: {error.problem}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{source}: not valid YAML: {error}.") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; a missing, unreadable or non-mapping file is an `InputError`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; a YAML file is wanted.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; a YAML text file is wanted.") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: a mapping of keys to values is wanted, found {type(value).__name__}.")
    return dict(value)


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=value` applied; values are parsed as YAML, so `1e-4` is a float."""
    result: dict[str, Any] = _deep_copy(values)
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise InputError(f"--set {override}: write it as key=value, for example --set optimizer.lr=1e-4.")
        node = result
        for depth, key in enumerate(keys[:-1]):
            child = node.setdefault(key, {})
            if child is None:
                child = node[key] = {}
            if not isinstance(child, dict):
                raise InputError(
                    f"--set {override}: {'.'.join(keys[: depth + 1])} is a value, not a section."
                )
            node = child
        node[keys[-1]] = parse_yaml(text, f"--set {override}")
    return result


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    return [_deep_copy(item) for item in value] if isinstance(value, list) else value


def validate(schema: type[S], values: Mapping[str, Any], source: str) -> S:
    """`values` as a frozen `schema`; every fault of the mapping in one `InputError`, one line each."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        faults = {_location(fault): fault for fault in reversed(error.errors(include_url=False))}
        lines = [f"{source}: {_explain(schema, faults[place], place)}" for place in reversed(faults)]
        raise InputError("\n".join(lines)) from None


def _location(fault: Any) -> tuple[str | int, ...]:
    """The user's keys alone; Pydantic also names the branch of a union that it tried, and marks keys."""
    location = [part for part in fault["loc"] if not (isinstance(part, str) and "[" in part)]
    return tuple(location[:-1] if location and location[-1] in ("float", "str") else location)


def _explain(schema: type[Schema], fault: Any, location: Sequence[str | int]) -> str:
    where = ".".join(map(str, location)) + ": " if location else ""
    if fault["type"] == "extra_forbidden":
        return f"{where}unknown key{suggest(str(location[-1]), _valid_names(schema, location[:-1]))}"
    if fault["type"] == "missing":
        return f"{where}this key is required."
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if isinstance(fault["input"], dict) else f" (given: {fault['input']!r})"
    if fault["input"] is None and location and ":" in str(location[-1]):
        given += "; YAML wants a space after a colon"
    return f"{where}{message}{given}"


def suggest(name: str, valid: Sequence[str]) -> str:
    """`; did you mean …?` for the nearest valid name, else the list of valid names."""
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; valid: {', '.join(valid)}."


def _valid_names(schema: type[Schema], location: Sequence[Any]) -> list[str]:
    current = schema
    for part in location:
        field = current.model_fields.get(str(part))
        nested = section_of(field) if field else None
        if nested is not None:
            current = nested
    return list(current.model_fields)


def section_of(field: FieldInfo) -> type[Schema] | None:
    """The section a field holds (directly, optionally, in a list or mapping), if it holds one."""
    for candidate in (field.annotation, *_arguments(field.annotation)):
        if isinstance(candidate, type) and not get_args(candidate) and issubclass(candidate, Schema):
            return candidate
    return None


def _arguments(annotation: Any) -> Iterator[Any]:
    for argument in get_args(annotation):
        yield argument
        yield from _arguments(argument)


def commented_yaml(schema: type[Schema], heading: str, values: Mapping[str, Any] | None = None) -> str:
    """A YAML document with every key of `schema`: sentence, type and default as comments above each key.

    `values` replaces defaults and fills keys that have none (nested mappings follow the sections)."""
    lines = [*(f"# {line}".rstrip() for line in heading.strip().splitlines()), ""]
    lines += _commented_section(schema, values or {}, indent=0)
    return "\n".join(lines).rstrip() + "\n"


def _commented_section(schema: type[Schema], values: Mapping[str, Any], indent: int) -> list[str]:
    pad, lines = "  " * indent, []
    for name, field in schema.model_fields.items():
        nested = section_of(field)
        if nested is not None and get_origin(field.annotation) is list:
            items = values.get(name, [])
            lines += [
                *_comment(field.description or "", pad),
                f"{pad}{name}:" if items else f"{pad}{name}: []",
            ]
            for number, item in enumerate(items):
                lines += _commented_item(nested, item, indent, documented=number == 0)
            if indent == 0:
                lines.append("")
            continue
        if nested is not None and isinstance(field.annotation, type):
            lines += [*_comment(field.description or "", pad), f"{pad}{name}:"]
            lines += _commented_section(nested, values.get(name, {}), indent + 1)
            if indent == 0:
                lines.append("")
            continue
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        value = values.get(name, default)
        shown = "required" if field.is_required() else f"default {_scalar(default)}"
        lines += _comment(f"{field.description or ''} ({_type_name(field.annotation)}, {shown})", pad)
        lines += f"{pad}{name}: {_scalar(value)}".splitlines()
        if indent == 0:
            lines.append("")
    return lines


def _commented_item(
    schema: type[Schema], values: Mapping[str, Any], indent: int, documented: bool
) -> list[str]:
    """One entry of a list of sections; only the first carries the comments and the keys left at their
    defaults."""
    pad = "  " * (indent + 1)
    lines = [f"{pad}{key}: {_scalar(value)}" for key, value in values.items()]
    if documented:
        lines = _commented_section(schema, values, indent + 1)
    first = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
    lines[first] = f"{pad[:-2]}- {lines[first].lstrip()}"
    return lines


def _comment(text: str, pad: str) -> list[str]:
    return [f"{pad}# {line}" for line in textwrap.wrap(" ".join(text.split()), 108 - len(pad))]


def _scalar(value: Any) -> str:
    if isinstance(value, Schema):
        value = value.model_dump()
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()


def _type_name(annotation: Any) -> str:
    text = (
        annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    )
    text = re.sub(r"\b(?:typing|stablelm\.[\w.]+)\.(?=\w)", "", text).replace("NoneType", "None")
    literal = re.match(r"Literal\[(.*)\]$", text)
    return " or ".join(part.strip(" '") for part in literal[1].split(",")) if literal else text
