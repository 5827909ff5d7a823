"""How reports write text and numbers: safe in HTML and SVG whatever the text holds, numbers short.

Escaping is done here and nowhere else. Characters that no XML document may hold (most controls, half
surrogates) become U+FFFD, so that a file name or a model's output can neither break the page nor its
encoding."""

import html
import math
import re
from itertools import pairwise
from numbers import Integral, Real

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def escape(text: object) -> str:
    """`str(text)` for an element's content or a quoted attribute, in HTML or XML."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(text)), quote=True)


def shorten(text: str, length: int) -> str:
    """At most `length` characters, the cut marked with an ellipsis."""
    return text if len(text) <= length else text[: max(1, length - 1)].rstrip() + "…"


def number(value: object, digits: int = 4) -> str:
    """A cell's value as text: 1234567 → "1,234,567", 0.123456 → "0.1235", True → "yes", None → "–"."""
    if value is None:
        return "–"
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}".replace("-", "−")
    if isinstance(value, Real):
        return _real(float(value), digits)
    return str(value)


def counted(count: int, noun: str) -> str:
    """1 and "document" → "1 document", 2,000 → "2,000 documents"."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def _real(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "−∞" if value < 0 else "∞"
    if value and not 1e-4 <= abs(value) < 1e15:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_trim(mantissa)}e{int(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return _trim(f"{value:,.{decimals}f}").replace("-", "−")


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def log_labels(ticks: list[float]) -> list[str]:
    """Labels of a logarithmic axis: plain numbers, or all as powers of ten when some would be long."""
    if ticks and (min(ticks) < 1e-3 or max(ticks) >= 1e7):
        powers = (f"{tick:.2e}".split("e") for tick in ticks)
        return [f"{_trim(mantissa)}e{int(exponent)}".replace("-", "−") for mantissa, exponent in powers]
    return [number(tick) for tick in ticks]


def tick_labels(ticks: list[float]) -> list[str]:
    """Labels of one axis in one style, with just enough decimals to tell neighbours apart."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if not largest:
        return ["0" for _ in ticks]
    if largest < 1e-3 or largest >= 1e15 or len(ticks) < 2:
        return [number(tick, 3) if tick else "0" for tick in ticks]
    scale, suffix = next(((s, x) for s, x in _SUFFIXES if largest >= s * (1 if s > 1e3 else 10)), (1.0, ""))
    gaps = [abs(b - a) / scale for a, b in pairwise(ticks) if b != a]
    decimals = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 0
    labels = [f"{tick / scale:,.{min(decimals, 12)}f}".replace("-", "−") for tick in ticks]
    return [("0" if not tick else label + suffix) for tick, label in zip(ticks, labels, strict=True)]
