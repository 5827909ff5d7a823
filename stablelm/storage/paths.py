"""Paths that stay where they belong."""

import os
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


def refuse_dead_link(path: str | Path) -> None:
    """Refuses a symbolic link that leads nowhere or in a circle, which else looks like no file at all."""
    if os.path.islink(path) and not os.path.exists(path):
        raise InputError(
            f"{path}: a symbolic link that leads nowhere, or in a circle. Repair it, or give the real path."
        )
