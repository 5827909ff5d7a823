"""A page is one file that needs nothing and lets nothing in."""

import re
from html.parser import HTMLParser

import pytest

from stablelm.reporting import Page, Series, line_chart

EVIL = "</pre></title><script>alert(1)</script><img src=x onerror=alert(1)> \" ' & \x00\ud800 javascript:x"


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that what opens also closes."""

    VOID = ("meta", "br", "wbr")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def full_page(text: str) -> Page:
    """A page with `text` in every place that takes one."""
    page = Page(text, text)
    for _ in range(4):
        page.heading(text)
    page.paragraph(text)
    page.facts({text: text, "steps": 480})
    page.table([text, "n"], [[text, 1], [text, None]], caption=text)
    chart = line_chart([Series(text, [1, 2], [1, 2])], title=text, x_label=text, y_label=text)
    page.chart(chart, caption=text)
    page.text_block(text, caption=text)
    return page


def test_everything_is_escaped_everywhere():
    reader = Reader(full_page(EVIL).html())
    assert reader.open == []
    assert not {"script", "img", "iframe", "object", "link"} & set(reader.tags)
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert reader.text.count("<script>alert(1)</script>") >= 12


def test_nothing_comes_from_outside():
    page = full_page("plain").html()
    reader = Reader(page)
    references = [
        (t, n, v) for t, n, v in reader.attributes if n in ("src", "href", "xlink:href", "action", "data")
    ]
    assert references
    assert all(tag == "a" and value.startswith("#section-") for tag, _, value in references)
    assert set(re.findall(r"https?://[^\"'<>\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert "url(" not in page
    policy = [v for t, n, v in reader.attributes if t == "meta" and n == "content" and "default-src" in v]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_both_themes_and_paper():
    style = re.search(r"<style>(.*?)</style>", Page("T").html(), re.S)
    assert style is not None
    for part in ("prefers-color-scheme: dark", "@media print", "screen and (prefers-color-scheme: dark)"):
        assert part in style[1]
    light, dark = style[1].split("@media screen", 1)
    assert set(re.findall(r"--[a-z]+(?=:)", light)) <= set(re.findall(r"--[a-z]+(?=:)", dark))
    assert set(re.findall(r"--series-\d", dark)) == {f"--series-{i}" for i in range(8)}


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_have_contrast_in_both_themes():
    """WCAG 2.1: 4.5 for text, 3 for lines of a chart."""
    style = Page("T").html()
    dark = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", style.split("@media screen", 1)[1]))
    chart = line_chart(
        [Series(str(i), [0, 1], [i, i]) for i in range(8)], title="T", x_label="x", y_label="y"
    )
    light = dict(re.findall(r"var\(--([a-z0-9-]+), (#[0-9a-f]{6})\)", chart)) | {"paper": "#ffffff"}
    for theme in (light, dark):
        for name in ("ink", "muted"):
            assert contrast(theme[name], theme["paper"]) >= 4.5
        for i in range(8):
            assert contrast(theme[f"series-{i}"], theme["paper"]) >= 3


def test_columns_of_numbers_are_to_the_right():
    page = Page("T")
    page.table(["name", "loss", "share", "mixed"], [["a", 1.5, "3 %", 1], ["b", None, "12.5 %", "x"]])
    cells = re.findall(r"<td( class=\"n\")?>([^<]*)</td>", page.html())
    assert [(text, bool(mark)) for mark, text in cells] == [
        ("a", False), ("1.5", True), ("3 %", True), ("1", False),
        ("b", False), ("–", True), ("12.5 %", True), ("x", False),
    ]  # fmt: skip


def test_errors_intervals_and_gaps_are_numbers_too():
    page = Page("T")
    page.table(["mean", "difference", "left", "empty"], [["1.5 ± 0.2", "+0.1 (-2.0 to +2.2)", 3, ""]] * 2)
    page.table(["left", "text"], [[3, "1 (of 2)"], ["", "a ± b"]])
    marks = [bool(mark) for mark in re.findall(r"<td( class=\"n\")?>", page.html())]
    assert marks == [True, True, True, False] * 2 + [True, False] * 2


def test_a_table_may_be_empty_but_not_ragged():
    page = Page("T")
    page.table(["a", "b"], [])
    assert "<tbody></tbody>" in page.html()
    with pytest.raises(ValueError, match="a row of 1 cells under a header of 2"):
        page.table(["a", "b"], [[1]])


def test_contents_only_on_long_pages():
    short, long = Page("T"), Page("T")
    short.heading("one")
    for name in ("one", "two", "one", "four"):
        long.heading(name)
    assert "<nav" not in short.html()
    ids = re.findall(r'id="([^"]+)"', long.html())
    assert re.findall(r'href="#([^"]+)"', long.html()) == ids
    assert len(set(ids)) == 4


def test_only_charts_are_let_through():
    for text in ("<script>", "<p>", "", "<svg >", "<svg onload=x>"):
        with pytest.raises(ValueError, match="a chart is an <svg> element"):
            Page("T").chart(text)


def test_text_blocks_keep_their_spaces():
    page = Page("T")
    page.text_block("a\n    b\t c\n\n")
    assert "<pre>a\n    b\t c\n\n</pre>" in page.html()


def test_writing_is_atomic_and_utf8(tmp_path):
    path = tmp_path / "new" / "report.html"
    page = full_page("é×→中")
    page.write(path)
    assert path.read_text("utf-8") == page.html()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_folds_and_small_charts():
    page = Page("T")
    chart = line_chart([Series("a", [1, 2], [1, 2])], title=EVIL, x_label="x", y_label="y")
    with page.fold(EVIL):
        page.subheading(EVIL)
        page.charts([chart, chart], EVIL)
    reader = Reader(page.html())
    assert reader.open == [] and reader.tags.count("details") == 1 and reader.tags.count("svg") == 2
    assert "script" not in reader.tags and not [n for _, n, _ in reader.attributes if n.startswith("on")]
    with pytest.raises(ValueError, match="a chart is an <svg> element"):
        page.charts(["<script>"])


def test_a_long_path_may_go_on_in_the_next_line():
    page = Page("T")
    page.table(["file"], [["a/<b>/c"]])
    assert "<td>a/<wbr>&lt;b&gt;/<wbr>c</td>" in page.html()
