"""`stablelm watch`: what the server answers and refuses, and the page in a browser while the run goes on."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from stablelm.config import InputError
from stablelm.training import train, watching
from stablelm.training.goodput import GOODPUT
from stablelm.training.metrics import METRICS, read_metrics
from stablelm.training.watching import PORTS, dashboard
from tests.browser import MISSING, browser
from tests.training.conftest import Recorder

needs_browser = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@contextmanager
def watched(run, port=None):
    """A dashboard that answers in a thread of its own."""
    with dashboard(run, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path="/", method="GET", host=None):
    """Status, headers and body of an answer."""
    port = server.server_address[1]
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    link.request(method, path, headers={"Host": host or f"localhost:{port}"})
    answer = link.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode()
    link.close()
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the run of these tests is, once the first has made it."""
    return tmp_path_factory.mktemp("watched") / "run"


@pytest.fixture
def run(made, make_config, tmp_path):
    """A finished run of ten steps."""
    if not made.exists():
        train(
            make_config(evaluation={"every": 4, "copying": 0, "cloze": 0}, out=str(made)), console=Recorder()
        )
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def grows(run):
    """Appends a step to the run, as training does."""

    def grow():
        last = [record for record in read_metrics(run) if "kind" not in record][-1]
        with (run / METRICS).open("a") as file:
            file.write(json.dumps({**last, "step": last["step"] + 1}) + "\n")
        return last["step"] + 1

    return grow


def test_the_page_follows_the_run_and_changes_nothing_of_it(run, grows, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with watched(run) as server:
        status, headers, page = ask(server)
        assert status == 200 and "10 of 10" in page and "Where the time went" in page
        assert headers["Cache-Control"] == "no-store" and headers["X-Frame-Options"] == "DENY"
        version = ask(server, "/version")[2]
        assert f'data-version="{version}"' in page
        assert ask(server, "/version")[2] == version
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
        server.page._next = 0.0
        step = grows()
        assert ask(server, "/version")[2] != version and f"{step} of 10" in ask(server)[2]


def test_only_the_page_and_only_by_this_machines_names(run):
    with watched(run) as server:
        for path in ("/metrics.jsonl", "/../run.json", "/%2e%2e/", "//etc/passwd", "/run.json"):
            assert ask(server, path)[0] == 404, path
        for host in (
            "evil.example",
            "evil.example:8765",
            "127.0.0.1.evil.example",
            "localhost.evil.example:1",
        ):
            status, _, body = ask(server, host=host)
            assert status == 403 and "Training run" not in body, host
        for host in ("127.0.0.1", "LOCALHOST:9", "[::1]:9"):  # ssh -L may use another port
            assert ask(server, host=host)[0] == 200
        assert ask(server, method="POST")[0] == 501
        status, headers, body = ask(server, method="HEAD")
        assert status == 200 and int(headers["Content-Length"]) > 1000 and body == ""
        assert server.server_address[0] == "127.0.0.1"


def test_two_dashboards_on_one_run_and_a_port_in_use(run):
    with watched(run) as first, watched(run) as second:
        assert first.address != second.address
        assert ask(first)[2] == ask(second)[2]
        port = first.server_address[1]
        with pytest.raises(InputError, match=rf"port {port} is in use.*--port"), dashboard(run, port):
            pass


def test_no_port_is_left(run, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(watching, "PORTS", range(port, port + 1))
        with pytest.raises(InputError, match=rf"ports {port} to {port} are all in use"), dashboard(run):
            pass
    assert 8765 in PORTS


def test_what_is_no_run(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"), dashboard(tmp_path / "file"):
        pass
    (tmp_path / "demo" / "run").mkdir(parents=True)
    (tmp_path / "demo" / "run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match="holds a demo; its run is"), dashboard(tmp_path / "demo"):
        pass


def test_a_run_that_has_not_begun_or_is_damaged(run, tmp_path):
    later = tmp_path / "later"
    with watched(later) as server:
        assert f"{later} is not there yet" in ask(server)[2]
        later.mkdir()
        server.page._next = 0.0
        assert f"{later} is there, but no step has been recorded" in ask(server)[2]
        for name in (METRICS, GOODPUT, "plan.json", "run.json", "accounting.json"):
            (later / name).write_bytes((run / name).read_bytes())
        server.page._next = 0.0
        assert "10 of 10" in ask(server)[2]
        (later / "plan.json").write_text("{")
        server.page._next = 0.0
        page = ask(server)[2]
        assert "cannot be read just now" in page and "plan.json, line 1" in page


def test_the_command_ends_cleanly(run):
    line = [sys.executable, "-u", "-m", "stablelm", "watch", str(run)]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell that runs the tests in the background has them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    said = process.stdout.readline()
    address = said.split("live at ")[1].split()[0].rstrip(".")
    link = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=30)
    link.request("GET", "/")
    assert link.getresponse().status == 200
    os.kill(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "") and "stopped watching" in out


@needs_browser
def test_in_a_browser_the_page_is_exchanged_where_it_changed(run, grows, tmp_path, monkeypatch):
    """Scroll position, an unchanged piece and what is open stay; a text of a model does nothing."""
    monkeypatch.setattr("stablelm.reporting.live.SECONDS", 0.1)
    hostile = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
    sample = {"step": 4, "kind": "sample", "number": 0, "prompt": hostile, "wanted": "", "text": hostile,
              "ended": True}  # fmt: skip
    with (run / METRICS).open("a") as file:
        file.write(json.dumps(sample) + "\n")
    with browser(tmp_path / "profile", width=500) as window:
        with watched(run) as server:
            window.open(server.address)
            window.until("document.getElementById('live').className == 'live on'")
            assert "10 of 10" in window.run("return document.querySelector('.facts').textContent")
            assert window.run("return document.title") == "Training run run"
            assert window.run("return document.documentElement.scrollWidth <= innerWidth")
            window.run("scrollTo(0, 900); window.marked = document.querySelector('h2');"
                       "for (const d of document.querySelectorAll('details')) d.open = true;")  # fmt: skip
            for _ in range(2):
                server.page._next = 0.0
                step = grows()
                window.until(f"document.querySelector('.facts').textContent.includes('{step} of 10')")
            assert window.run("return scrollY") == 900
            assert window.run("return window.marked.isConnected")
            assert window.run("return [...document.querySelectorAll('details')].every(d => d.open)")
            assert window.complaints() == []
        window.until("document.getElementById('live').className == 'live off'")  # the server has gone


@needs_browser
def test_without_javascript_the_page_reloads_itself(run, tmp_path):
    with watched(run) as server, browser(tmp_path / "profile", javascript=False) as window:
        window.open(server.address)
        assert window.run("return document.querySelector('noscript meta').httpEquiv") == "refresh"
        assert window.run("return document.getElementById('live').textContent") == "reloads itself"
