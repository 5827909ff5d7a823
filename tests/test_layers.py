"""What an import costs and needs: the package is cheap to import, and the core works without any extra."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stablelm

OF_AN_EXTRA = {"triton": ("stablelm", "kernels", "gpu")}
"""Folders that are an extra: their files are written in its language, and nobody imports them at his top."""
MODULE_OF = {"pyyaml": "yaml", "huggingface_hub": "huggingface_hub"}  # where the names differ


def declared(root: Path) -> tuple[set[str], set[str]]:
    """Importable names of the core dependencies, and of those of all extras."""
    text = (root / "pyproject.toml").read_text("utf-8")
    core, extras = text.split("[project.optional-dependencies]")
    extras = extras.split("[project.scripts]")[0]

    def names(part: str) -> set[str]:
        found = {name.lower() for name in re.findall(r'"([\w-]+)>=', part)}
        return {MODULE_OF.get(name, name.replace("-", "_")) for name in found}

    return names(core.split("\ndependencies")[1]), names(extras)


def modules(root: Path) -> list[Path]:
    return sorted((root / "stablelm").rglob("*.py"))


def imports(tree: ast.AST, top: bool = True) -> list[tuple[str, bool]]:
    """(package, whether it is imported with the module) for every import of a file."""
    found = []
    for node in ast.iter_child_nodes(tree):
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            found.append(((node.module or "").split(".")[0], top))
        found += imports(node, top and not inside)
    return found


def of_an_extra(path: Path, root: Path) -> set[str]:
    parts = path.relative_to(root).parts
    return {name for name, folder in OF_AN_EXTRA.items() if parts[: len(folder)] == folder}


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_cheap():
    loaded = python("import sys, stablelm; print(*sys.modules)").split()
    heavy = {"torch", "numpy", "pydantic", "yaml", "tokenizers", "safetensors", "typer", "rich"}
    assert "stablelm" in loaded
    assert not heavy & set(loaded)


def test_the_low_rooms_need_no_torch():
    rooms = "stablelm.config, stablelm.storage, stablelm.reporting"
    code = f"import sys, {rooms}; print(*sys.modules)"
    assert "torch" not in python(code).split()


def test_every_public_name_is_there():
    for name in stablelm.__all__:
        assert getattr(stablelm, name).__module__.startswith("stablelm.")
    assert set(stablelm.__all__) <= set(dir(stablelm))
    with pytest.raises(AttributeError, match="no attribute 'StableML'"):
        stablelm.StableML  # noqa: B018


def test_every_module_imports_without_the_extras(root):
    """With each extra made impossible to import, as after a plain `pip install stablelm`."""
    core, extras = declared(root)
    names = [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in modules(root)
        if path.name == "__init__.py" or not of_an_extra(path, root)
    ]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = """
import importlib, sys
blocked, names = sys.argv[1].split(), sys.argv[2].split()
for name in blocked:
    sys.modules[name] = None
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    assert python(code, " ".join(sorted(extras - core)), " ".join(names)) == f"{len(names)}\n"


def test_only_declared_packages_are_imported(root):
    """At the top of a module only core dependencies, inside functions also those of extras; nothing else."""
    core, extras = declared(root)
    assert {"torch", "yaml", "numpy"} <= core
    assert {"pyarrow", "zstandard", "tensorboard"} <= extras
    known = set(sys.stdlib_module_names) | {"stablelm"}
    for path in modules(root):
        for name, top in imports(ast.parse(path.read_text("utf-8"))):
            allowed = known | core | (of_an_extra(path, root) if top else extras)
            assert name in allowed, f"{path.relative_to(root)} imports {name}{' at its top' if top else ''}"


def test_every_core_dependency_is_used(root):
    """A dependency that nothing imports waits in docs/dependencies.md until something does."""
    core, _ = declared(root)
    used = {name for path in modules(root) for name, _ in imports(ast.parse(path.read_text("utf-8")))}
    assert core - used == set()


def test_every_dependency_is_pinned_and_explained(root):
    core, extras = declared(root)
    pinned = {
        name.lower().replace("-", "_")
        for name in re.findall(r"^([\w-]+)==", (root / "constraints.txt").read_text(), re.M)
    }
    pinned = {MODULE_OF.get(name, name) for name in pinned}
    explained = (root / "docs" / "dependencies.md").read_text("utf-8").lower().replace("-", "_")
    for name in core | extras:
        assert name in pinned, f"{name} has no version in constraints.txt"
        package = {module: package for package, module in MODULE_OF.items()}.get(name, name)
        assert f"`{package}`" in explained, f"{package} is not in docs/dependencies.md"


def test_the_public_names_are_not_shadowed():
    """`stablelm.train` is a function, not the module that happens to be imported last."""
    for name in stablelm.__all__:
        importlib.import_module(stablelm._HOME[name])
        assert callable(getattr(stablelm, name))
