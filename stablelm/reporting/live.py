"""A report that a browser keeps up to date while it is open, without flicker and without losing its place.

A small script asks for the page's version every two seconds (never while its tab is hidden), and when there
is a new one fetches the page and exchanges only the pieces that differ: what a reader has scrolled to, opened
or selected stays. The content policy allows this one script, by its hash, and the page's own address; a text
that a model wrote still can do nothing. Without JavaScript the page reloads itself every ten seconds."""

import base64
import hashlib

from stablelm.reporting.page import Page
from stablelm.reporting.text import escape

SECONDS = 2.0
"""Between two looks at the version."""
_RELOAD = 10
_SCRIPT = """"use strict";
(() => {
  const root = document.documentElement, status = document.getElementById("live");
  let since = Date.now(), gone = false;
  const say = (text, state) => { status.textContent = text; status.className = "live " + state; };
  const age = () => {
    const s = Math.round((Date.now() - since) / 1000);
    return s < 60 ? s + " s" : s < 3600 ? Math.floor(s / 60) + " min" : Math.floor(s / 3600) + " h";
  };
  const all = (node, query) => [...(node.matches(query) ? [node] : []), ...node.querySelectorAll(query)];
  function exchange(old, now) {
    const scrolled = all(old, ".wide").map(w => w.scrollLeft);
    const open = new Set(all(old, "details[open]").map(d => d.firstElementChild.textContent));
    for (const d of all(now, "details")) d.open = open.has(d.firstElementChild.textContent);
    if (old.outerHTML === now.outerHTML) return;
    old.replaceWith(now);
    all(now, ".wide").forEach((w, i) => { if (scrolled[i]) w.scrollLeft = scrolled[i]; });
  }
  function update(next) {
    const x = scrollX, y = scrollY;
    document.title = next.title;
    for (const name of ["header", "nav", "main"]) {
      const old = document.querySelector(name), now = next.querySelector(name);
      if (!old || !now) {
        if (now) document.querySelector("main").before(now); else if (old) old.remove();
        continue;
      }
      const before = [...old.children], after = [...now.children];
      for (let i = 0; i < Math.max(before.length, after.length); i++) {
        if (!after[i]) before[i].remove();
        else if (!before[i]) old.append(after[i]);
        else if (before[i] !== status) exchange(before[i], after[i]);
      }
    }
    root.dataset.version = next.documentElement.dataset.version;
    if (scrollX !== x || scrollY !== y) scrollTo({left: x, top: y, behavior: "instant"});
  }
  async function look() {
    try {
      if (!document.hidden) {
        const version = await (await fetch("/version", {cache: "no-store"})).text();
        if (version !== root.dataset.version) {
          const text = await (await fetch("/", {cache: "no-store"})).text();
          const next = new DOMParser().parseFromString(text, "text/html");
          if (next.documentElement.dataset.version !== root.dataset.version) {
            update(next);
            since = Date.now();
          }
        }
        gone = false;
        say("live; last change " + age() + " ago", "on");
      }
    } catch (error) {
      if (!gone) { gone = true; say("the dashboard does not answer; this is what it showed last", "off"); }
    }
    setTimeout(look, @MILLISECONDS@);
  }
  look();
})();
"""
_STYLE = """<style>
.live { display: inline-flex; align-items: center; gap: 0.45rem; margin: 0.75rem 0 0; color: var(--muted);
  font-size: 0.85rem; }
.live::before { content: ""; width: 0.55rem; height: 0.55rem; border-radius: 50%; background: var(--muted); }
.live.on::before { background: #1a9a5c; }
.live.off::before { background: #c4500a; }
@media print { .live { display: none; } }
</style>"""


def live_html(page: Page, version: str) -> str:
    """The page with what keeps it up to date; `version` names its content."""
    script = _SCRIPT.replace("@MILLISECONDS@", str(round(SECONDS * 1000)))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = f'{_STYLE}<noscript><meta http-equiv="refresh" content="{_RELOAD}"></noscript>'
    html = page.html()
    for old, new in (
        ('<html lang="en">', f'<html lang="en" data-version="{escape(version)}">'),
        (policy, f"{policy}; script-src 'sha256-{digest}'; connect-src 'self'"),
        ("</style>\n</head>", f"</style>\n{head}\n</head>"),
        ("</header>", '<p class="live" id="live">reloads itself</p></header>'),
        ("</body>", f"<script>{script}</script>\n</body>"),
    ):
        html = html.replace(old, new, 1)  # each stands before anything that a run could have written
    return html
