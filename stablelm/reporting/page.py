"""A report as one HTML file that opens anywhere, for ever: nothing comes from outside.

Everything that comes from the run (titles, cells, samples, file names) is escaped, and a content policy in
the page forbids scripts and network besides, so that a text a model wrote can show up in a report and do
nothing. Light and dark follow the reader's setting; printing is always light."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from stablelm.reporting.text import escape, number
from stablelm.storage import write_text

CONTENTS_FROM = 4  # headings; a shorter page needs no table of contents
_NUMERIC = re.compile(
    r"([<>] )?[+\-−]?[\d.,]*\d(e[+\-−]?\d+)?( ?(%|×|s|ms|[kMGT]i?B|[kMBT]))?( ± [\d.]+)?( \([+\-−]?[\d.]+ to "
    r"[+\-−]?[\d.]+\))?$|–$"
)
"""A number with its unit, its error or its interval."""


class Page:
    """A report, built from top to bottom; `write` puts it on the disk at once or not at all."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._parts: list[str] = []
        self._headings: list[str] = []

    def heading(self, text: str) -> None:
        """Opens a section."""
        self._headings.append(text)
        self._parts.append(f'<h2 id="section-{len(self._headings)}">{escape(text)}</h2>')

    def subheading(self, text: str) -> None:
        """Opens a part of a section."""
        self._parts.append(f"<h3>{escape(text)}</h3>")

    @contextmanager
    def fold(self, summary: str) -> Iterator[None]:
        """What is added inside is closed until a reader opens it; printed, it is there."""
        self._parts.append(f"<details><summary>{escape(summary)}</summary>")
        yield
        self._parts.append("</details>")

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def facts(self, facts: Mapping[str, object]) -> None:
        """A few named values at a glance, as cards."""
        cards = []
        for name, value in facts.items():
            text = number(value)
            mark = ' class="long"' if len(text) > 14 else ""
            cards.append(f"<div><dt>{escape(name)}</dt><dd{mark}>{escape(text)}</dd></div>")
        self._parts.append(f'<dl class="facts">{"".join(cards)}</dl>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        """A table; numbers are formatted and columns of numbers aligned to the right."""
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {list(row)!r}")
        cells = [[number(cell) for cell in row] for row in rows]
        right = [
            any(row[i].strip() for row in cells)
            and all(_NUMERIC.match(row[i].strip()) or not row[i].strip() for row in cells)
            for i in range(len(header))
        ]
        mark = [' class="n"' if numeric else "" for numeric in right]
        top = "".join(f'<th scope="col"{m}>{escape(name)}</th>' for m, name in zip(mark, header, strict=True))
        body = "".join(
            "<tr>"
            + "".join(f"<td{m}>{_breakable(cell)}</td>" for m, cell in zip(mark, row, strict=True))
            + "</tr>"
            for row in cells
        )
        below = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="wide"><table>{below}<thead><tr>{top}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def chart(self, svg: str, caption: str = "") -> None:
        """A chart made by `reporting.charts`, the one thing that is not escaped again."""
        self._parts.append(f"<figure>{_checked(svg)}{_figcaption(caption)}</figure>")

    def charts(self, svgs: Sequence[str], caption: str = "") -> None:
        """Small charts side by side."""
        grid = "".join(f"<div>{_checked(svg)}</div>" for svg in svgs)
        self._parts.append(f'<figure><div class="charts">{grid}</div>{_figcaption(caption)}</figure>')

    def text_block(self, text: str, caption: str = "") -> None:
        """Text as it is, its spaces and line breaks kept: samples, configurations, logs."""
        self._parts.append(f"<figure><pre>{escape(text)}</pre>{_figcaption(caption)}</figure>")

    def html(self) -> str:
        """The whole page."""
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        contents = ""
        if len(self._headings) >= CONTENTS_FROM:
            links = (
                f'<li><a href="#section-{i}">{escape(h)}</a></li>' for i, h in enumerate(self._headings, 1)
            )
            contents = f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>'
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header>"
            f"<h1>{escape(self.title)}</h1>{subtitle}</header>\n{contents}<main>\n"
            + "\n".join(self._parts)
            + "\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> None:
        """Writes the page atomically."""
        write_text(path, self.html())


def _checked(svg: str) -> str:
    if not svg.startswith("<svg ") or not svg.endswith("</svg>"):
        raise ValueError("a chart is an <svg> element, as line_chart and bar_chart return it")
    return svg


def _breakable(cell: str) -> str:
    """Paths and addresses may go on in the next line."""
    return escape(cell).replace("/", "/<wbr>")


def _figcaption(caption: str) -> str:
    return f"<figcaption>{escape(caption)}</figcaption>" if caption else ""


_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { --ink: #1d2430; --muted: #5b6575; --rule: #dde2ea; --paper: #fff; --card: #f5f7fa; --link: #1f5fbf; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ef; --muted: #9aa5b6; --rule: #303846; --paper: #14181f; --card: #1d232d;
    --link: #7db0ff;
    --series-0: #6ea8fe; --series-1: #ff9d5c; --series-2: #4fd1b3; --series-3: #cf97f5;
    --series-4: #ff7d9d; --series-5: #e0c04a; --series-6: #b4c0d0; --series-7: #55c8e8; }
}
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; }
body { font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  max-width: 46rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
header { border-bottom: 1px solid var(--rule); margin-bottom: 2rem; padding-bottom: 1.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 0.75rem; overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; line-height: 1.4; margin: 1.75rem 0 0.5rem; overflow-wrap: anywhere; }
.subtitle { color: var(--muted); margin: 0.5rem 0 0; }
p { margin: 0 0 1rem; overflow-wrap: anywhere; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: 2px; }
nav ul { list-style: none; margin: 0 0 2rem; padding: 0; display: flex; flex-wrap: wrap;
  gap: 0.25rem 1.25rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 0.75rem;
  margin: 0 0 1.5rem; }
.facts div { background: var(--card); border-radius: 8px; padding: 0.7rem 0.9rem; }
dt { color: var(--muted); font-size: 0.8rem; line-height: 1.4; }
dd { margin: 0.15rem 0 0; font-size: 1.1rem; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
dd.long { font-size: 0.85rem; font-weight: 500; line-height: 1.4; }
.wide { overflow-x: auto; margin: 0 0 1.5rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; line-height: 1.45; }
caption { caption-side: bottom; text-align: left; padding-top: 0.6rem; }
caption, figcaption { color: var(--muted); font-size: 0.85rem; line-height: 1.5; }
th { color: var(--muted); font-weight: 600; font-size: 0.82rem; text-align: left; vertical-align: bottom; }
th, td { padding: 0.45rem 1rem 0.45rem 0; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
td { vertical-align: top; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 0 0 1.75rem; }
details figure { margin: 0 0 0.6rem; }
figcaption { margin-top: 0.4rem; overflow-wrap: anywhere; }
svg { display: block; overflow: visible; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.25rem; }
details { border-bottom: 1px solid var(--rule); padding: 0.5rem 0; }
details[open] { padding-bottom: 0.75rem; }
summary { cursor: pointer; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
details[open] > summary { font-weight: 600; margin-bottom: 0.75rem; }
pre { background: var(--card); border-radius: 8px; margin: 0; padding: 0.9rem 1.1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 0.85rem/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  figure, tr, .facts div { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
  pre, .facts div { border: 1px solid var(--rule); background: none; }
}
"""
