"""Machine code that Numba kept holds only while no file of the folder has changed."""

import shutil
import subprocess
import sys
from pathlib import Path

from stablelm.kernels.text import compilation

CALLEE = """
from kept.compilation import compiled
@compiled
def callee(x):
    return x + {}
"""
CALLER = """
from kept.callee import callee
from kept.compilation import compiled
@compiled
def caller(x):
    return callee(x) * 10
"""


def test_a_change_in_another_file_is_seen(tmp_path):
    package = tmp_path / "kept"
    package.mkdir()
    shutil.copy(Path(compilation.__file__), package)
    (package / "__init__.py").touch()
    (package / "caller.py").write_text(CALLER)
    results = []
    for number in (1, 1, 2):
        (package / "callee.py").write_text(CALLEE.format(number))
        script = (
            "from kept.caller import caller; print(caller(3), sum(caller.stats.cache_hits.values()), end='')"
        )
        run = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        results.append(run.stdout)
    assert results == ["40 0", "40 1", "50 0"]
