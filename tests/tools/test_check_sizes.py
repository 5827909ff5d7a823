"""The size check counts as it says and lets nothing pass by accident."""

from pathlib import Path

import pytest

from tools import check_sizes
from tools.check_sizes import check, lines


def tree(root: Path, **sizes: int) -> Path:
    for name, size in sizes.items():
        path = root / name.replace("__", "/")
        path = path.with_name(path.name + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n" * size)
    return root


def test_blank_lines_count(tmp_path):
    (tmp_path / "a.py").write_text('"""Doc.\n\n\nMore."""\n\nx = 1')
    assert lines(tmp_path / "a.py") == 5


def test_at_the_limit_is_within_it(tmp_path):
    faults, totals = check(
        tree(tmp_path, stablelm__model__a=400, stablelm__demo__b=10, tests__c=400, tools__d=1)
    )
    assert faults == []
    assert totals == {"core path": 400, "package": 410}


def test_one_line_more_is_not(tmp_path):
    faults, _ = check(tree(tmp_path, stablelm__cli__a=401, tests__b=402, benchmarks__c=500))
    assert [fault.split(":")[0] for fault in faults] == ["stablelm/cli/a.py", "tests/b.py", "benchmarks/c.py"]
    assert "401 lines, the limit is 400" in faults[0]


def test_an_exception_has_its_own_limit_and_ends_when_not_needed(tmp_path):
    tree(tmp_path, stablelm__a=450, stablelm__b=300)
    assert check(tmp_path, {"stablelm/a.py": (450, "why")})[0] == []
    assert len(check(tmp_path, {"stablelm/a.py": (449, "why")})[0]) == 1
    assert (
        "needs no exception"
        in check(tmp_path, {"stablelm/a.py": (450, "x"), "stablelm/b.py": (500, "x")})[0][0]
    )
    assert (
        "needs no exception"
        in check(tmp_path, {"stablelm/a.py": (450, "x"), "stablelm/gone.py": (500, "x")})[0][0]
    )


@pytest.mark.parametrize(("limit", "said"), [("CORE_LIMIT", "core path"), ("PACKAGE_LIMIT", "package")])
def test_the_totals_have_limits(tmp_path, monkeypatch, limit, said):
    tree(tmp_path, stablelm__config__a=100, stablelm__data__mixture=100, stablelm__data__sources=100)
    monkeypatch.setattr(check_sizes, limit, 199)
    faults, totals = check(tmp_path)
    assert totals == {"core path": 200, "package": 300}
    assert [fault.split(":")[0] for fault in faults] == [said]


def test_the_core_path_exists(root):
    """A renamed file must not leave the core path silently."""
    for part in check_sizes.CORE:
        assert (root / check_sizes.PACKAGE / part).exists(), part


def test_this_checkout_is_within_its_limits(root):
    assert check(root)[0] == []
