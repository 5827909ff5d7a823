"""Machine code that Numba kept holds only while no file of the folder has changed."""

import shutil
import subprocess
import sys
from pathlib import Path

from stablelm.kernels.text import compilation

CALLEE = """
from kept.compilation import compiled, inlined
@inlined
def step(x):
    return x + {}
@compiled
def callee(x):
    return step(x)
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


def test_where_nothing_can_be_kept_it_is_compiled_anew(tmp_path):
    package = tmp_path / "kept"
    package.mkdir()
    shutil.copy(Path(compilation.__file__), package)
    (package / "__init__.py").touch()
    (package / "callee.py").write_text(CALLEE.format(5))
    nowhere = "import numba.core.caching as c; c.CacheImpl._locator_classes = []"
    script = f"{nowhere}; from kept.callee import callee; print(callee(3), end='')"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout == "8"


def test_every_loop_over_text_samples_and_ids_is_stamped(root):
    folder = root / "stablelm" / "kernels"
    files = [*(folder / "text").glob("*.py"), folder / "order.py", folder / "spelling.py"]
    loose = [path.name for path in files if "njit" in path.read_text("utf-8")]
    assert loose == ["compilation.py"] and len(files) > 15


def test_the_stamp_is_that_of_the_function_s_own_folder():
    from stablelm.kernels import order
    from stablelm.kernels.text import minhash

    stamps = [each._cache._cache_file._source_stamp[0] for each in (order.pack, minhash.sign)]
    folders = [Path(each.__file__).parent for each in (order, minhash)]
    assert stamps == [compilation.sources(folder) for folder in folders] and stamps[0] != stamps[1]


def test_a_wait_for_the_compiler_is_told(monkeypatch, caplog):
    """A step of the CPU decoder that nobody has compiled yet; and one that is kept."""
    from stablelm.inference import cpu_runner
    from stablelm.kernels.cpu import compilation as of_cpu
    from stablelm.kernels.cpu import decoder

    @of_cpu.compiled()
    def fresh(x):
        return x + 1

    assert not of_cpu.is_kept(fresh)
    monkeypatch.setattr(decoder, "_run", fresh)
    for expected in (1, 0):
        cpu_runner._tell_of_compilation.cache_clear()
        caplog.clear()
        cpu_runner._tell_of_compilation()
        assert [record.message for record in caplog.records] == [
            "compiling the CPU kernels for this processor; this takes half a minute, once"
        ] * expected
        assert fresh(1) == 2
        assert of_cpu.is_kept(fresh)
