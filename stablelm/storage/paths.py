"""Paths that stay where they belong."""

from pathlib import Path

from stablelm.config.errors import InputError


def confined(root: str | Path, name: str) -> Path:
    """`root/name`, refused when it leads out of `root` (absolute, `..`, or through a symbolic link)."""
    root = Path(root)
    target = root / name
    try:
        inside = target.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of symbolic links
        inside = False
    if not inside or Path(name).is_absolute():
        raise InputError(f"{root}: the name {name!r} leads outside this directory; it is not opened.")
    return target
