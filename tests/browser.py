"""A headless Chromium for tests of pages, driven through chromedriver by its HTTP protocol (WebDriver).

Debian's packages `chromium` and `chromium-driver`; where they are missing the tests that ask for a browser
are skipped."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
MISSING = next(
    (f"no {name} on this machine" for name in ("chromium", "chromedriver") if not shutil.which(name)), ""
)


class Browser:
    """One window."""

    def __init__(self, base):
        self._base = base

    def _call(self, method, path, value=None):
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(
            self._base + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"].splitlines()[0]) from None

    def open(self, address):
        self._call("POST", "/url", {"url": address})

    def run(self, script, *arguments):
        """What a script's `return` gives; arguments are `arguments[0]` and so on."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, condition, seconds=30):
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return !!({condition})"):
            assert time.monotonic() < end, f"never came: {condition}"
            time.sleep(0.05)

    def complaints(self):
        """What the console holds at level SEVERE: errors, refused content."""
        return [
            e["message"] for e in self._call("POST", "/se/log", {"type": "browser"}) if e["level"] == "SEVERE"
        ]

    def size(self, width, height):
        self._call("POST", "/window/rect", {"width": width, "height": height})

    def picture(self, path):
        """A screenshot of the window as PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))


@contextlib.contextmanager
def browser(profile, *, javascript=True, width=1000, height=900, dark=False):
    """A `Browser` with an empty profile in a new directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}", "--silent"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    base, window = f"http://127.0.0.1:{port}", None
    try:
        for _ in range(400):
            with contextlib.suppress(OSError), urllib.request.urlopen(base + "/status", timeout=2) as answer:
                if json.load(answer)["value"]["ready"]:
                    break
            time.sleep(0.05)
        flags = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        if dark:
            flags.append("--force-dark-mode")
        options = {"binary": shutil.which("chromium"), "args": flags}
        if not javascript:
            options["prefs"] = {"profile.managed_default_content_settings.javascript": 2}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "SEVERE"}}
        session = Browser(base)._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        window = Browser(f"{base}/session/{session['sessionId']}")
        yield window
    finally:
        if window is not None:
            with contextlib.suppress(OSError, AssertionError):
                window._call("DELETE", "")
        driver.terminate()
        driver.wait(timeout=20)
