"""The commands of a page of the documentation, for tests that run them."""

import re
import shlex
from pathlib import Path


def commands(page: Path) -> list[list[str]]:
    """Each line of the page's bash blocks as its words; comments and empty lines are left out."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
