"""Text and numbers in reports: always safe, always short."""

import html
import math
import string
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.reporting.text import escape, log_labels, number, shorten, tick_labels


@given(st.text(st.characters(exclude_categories=(), exclude_characters="\r")))
def test_any_text_survives_as_xml_and_as_utf8(text):
    """Also control characters and half surrogates, as in file names that are no UTF-8."""
    written = f'<a b="{escape(text)}">{escape(text)}</a>'
    element = ElementTree.fromstring(written.encode("utf-8"))
    assert len(element) == 0
    read = element.text or ""
    assert len(read) == len(text)
    assert all(now == before or now == "\ufffd" for now, before in zip(read, text, strict=True))
    assert all(
        now == before for now, before in zip(read, text, strict=True) if before in string.printable[:-3]
    )


@given(st.text("<>&\"'ab;#x3c"))
def test_escaping_is_undone_by_reading(text):
    assert html.unescape(escape(text)) == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1_234_567, "1,234,567"), (0, "0"), (-5, "−5"), (np.int64(12_345), "12,345"), (True, "yes"),
        (np.bool_(False), "no"), (None, "–"), ("3 GB", "3 GB"),
        (1.0, "1"), (0.5, "0.5"), (1.93214, "1.932"),
        (0.00032, "0.00032"), (3.2e-5, "3.2e−5"), (12_345.678, "12,346"), (-0.1, "−0.1"),
        (0.0, "0"), (1e20, "1e20"),
        (float("nan"), "not a number"), (float("inf"), "∞"), (-math.inf, "−∞"), (np.float32(2.5), "2.5"),
        (999_999.9, "1,000,000"), (5e-324, "4.941e−324"),
    ],
)  # fmt: skip
def test_numbers(value, shown):
    assert number(value) == shown


def test_shortening_marks_the_cut():
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abcde…"
    assert shorten("abc", 0) == "a…"


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0.0, 0.5, 1.0], ["0", "0.5", "1.0"]),
        ([0.0, 100.0, 200.0], ["0", "100", "200"]),
        ([0.0, 5_000.0], ["0", "5,000"]),
        ([-20_000.0, 0.0, 20_000.0], ["−20k", "0", "20k"]),
        ([1_000_000.0, 1_500_000.0], ["1.0M", "1.5M"]),
        ([0.0, 2e12, 4e12], ["0", "2T", "4T"]),
        ([0.0, 1e-4, 2e-4], ["0", "0.0001", "0.0002"]),
        ([1e-5, 2e-5], ["1e−5", "2e−5"]),
        ([], []),
        ([0.0], ["0"]),
        ([3.25], ["3.25"]),
    ],
)
def test_one_axis_one_style(ticks, labels):
    assert tick_labels(ticks) == labels


def test_logarithmic_labels_do_not_mix_styles():
    assert log_labels([1.0, 2.0, 5.0, 10.0]) == ["1", "2", "5", "10"]
    assert log_labels([5e-5, 1e-4, 1e-3]) == ["5e−5", "1e−4", "1e−3"]
    assert log_labels([]) == []
