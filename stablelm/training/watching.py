"""`stablelm watch`: the page of a run, live on this machine.

A server of the standard library on 127.0.0.1 that answers for two addresses, the page and its version, and
reads nothing but the one run. It opens no file for writing and takes no lock, so a run never notices it and
any number may watch. The name a browser asked for must be this machine's own (a page elsewhere cannot reach
it by a name that it makes point here). The page is made when its run has changed and someone asks for it, and
takes at most a tenth of one core's time however long the run is."""

import contextlib
import errno
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

from stablelm.config import InputError
from stablelm.interchange.native import FOLDER
from stablelm.reporting import Page
from stablelm.reporting.live import live_html
from stablelm.training.goodput import GOODPUT
from stablelm.training.metrics import METRICS
from stablelm.training.report import run_page

HOST = "127.0.0.1"
PORTS = range(8765, 8785)
"""Tried in turn where no port is asked for."""
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_WATCHED = (METRICS, GOODPUT, "plan.json", "run.json", "accounting.json", "guard.json", f"{FOLDER}/latest")


class LivePage:
    """The newest page of a run; what watches may ask for it at once."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._made: tuple[str, str] | None = None
        self._state, self._next = "", 0.0

    def newest(self) -> tuple[str, str]:
        """Version and HTML."""
        with self._lock:
            state, now = self._stamp(), time.monotonic()
            if self._made is None or (state != self._state and now >= self._next):
                page = self._page()
                self._state = state
                self._made = state, live_html(page, state)
                self._next = time.monotonic() + 9 * (time.monotonic() - now)
            return self._made

    def _stamp(self) -> str:
        """Changes whenever a file of the run does."""
        parts = [str(int(self.run.is_dir()))]
        for name in _WATCHED:
            with contextlib.suppress(OSError):
                found = (self.run / name).stat()
                parts.append(f"{found.st_mtime_ns:x}-{found.st_size:x}")
                continue
            parts.append("0")
        return ".".join(parts)

    def _page(self) -> Page:
        for again in (True, False):
            try:
                return run_page(self.run)
            except (InputError, OSError) as error:
                if not _begun(self.run):
                    return self._waiting()
                if not again:
                    page = Page(f"Training run {self.run.name}", "cannot be read just now")
                    page.paragraph(str(error))
                    page.paragraph("This page tries again when a file of the run changes.")
                    return page
                time.sleep(0.1)  # a file was exchanged between two looks
        raise AssertionError

    def _waiting(self) -> Page:
        page = Page(f"Training run {self.run.name}", "has made no step yet")
        there = "is there, but" if self.run.is_dir() else "is not there yet:"
        page.paragraph(
            f"{self.run.absolute()} {there} no step has been recorded. This page waits for the first."
        )
        return page


def _begun(run: Path) -> bool:
    with contextlib.suppress(OSError):
        return (run / METRICS).stat().st_size > 0
    return False


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the page, its version, and nothing else."""

    timeout = 30
    server: "Dashboard"

    def do_GET(self) -> None:
        """The page, its version, or a plain sentence why not."""
        name = self.headers.get("Host", "").rsplit(":", 1)[0] if self.headers.get("Host") else ""
        path = self.path.split("?", 1)[0]
        if name.lower() not in _NAMES:
            self._answer(403, "This dashboard answers to localhost and 127.0.0.1 only.\n")
        elif path == "/":
            self._answer(200, self.server.page.newest()[1], "text/html")
        elif path == "/version":
            self._answer(200, self.server.page.newest()[0])
        elif path == "/favicon.ico":
            self._answer(204, "")
        else:
            self._answer(404, "There is only the page at / here.\n")

    do_HEAD = do_GET

    def _answer(self, status: int, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for header, value in (
            ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"), ("Cross-Origin-Resource-Policy", "same-origin"),
        ):  # fmt: skip
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            with contextlib.suppress(ConnectionError):  # the reader went away
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing on the console."""


class Dashboard(ThreadingHTTPServer):
    """The server of one run's page; `address` is what a browser opens."""

    daemon_threads = True

    def __init__(self, run: Path, port: int) -> None:
        self.page = LivePage(run)
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        """Binds without asking a name server who 127.0.0.1 is, which can take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that goes away in the middle is no news."""


@contextlib.contextmanager
def dashboard(run: Path, port: int | None = None) -> Iterator[Dashboard]:
    """A server for the run in a directory, which may not be there yet; call its `serve_forever`.

    On `port`, or the first free one of PORTS. `InputError` for a port that cannot be had."""
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; give the directory of a run, its `out`.")
    if (run / "run" / "run.json").is_file():
        raise InputError(f"{run}: holds a demo; its run is {run / 'run'}.")
    server = None
    for number in PORTS if port is None else (port,):
        try:
            server = Dashboard(run, number)
            break
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port is None:
                continue
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is in use" if error.errno == errno.EADDRINUSE else "is not for this user"
            raise InputError(
                f"port {number} {why}. Choose another with --port, or leave it out: the next free one is "
                "taken."
            ) from None
    if server is None:
        raise InputError(
            f"ports {PORTS.start} to {PORTS.stop - 1} are all in use. Name a free one with --port."
        )
    try:
        yield server
    finally:
        server.server_close()
