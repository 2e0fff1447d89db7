"""How to use jugfiles, as a file that programs can read."""

from __future__ import annotations

import shutil
from pathlib import Path

NAME = "jug-notebook"
_HERE = Path(__file__).parent


def install(output: Path, force: bool) -> Path:
    """Put it into the folder ``output``; answers where. Raises FileExistsError unless ``force``."""
    target = output.expanduser().absolute() / NAME
    if target.exists() and not force:
        raise FileExistsError(17, "it is there already; --force replaces it", str(target))
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_HERE / "SKILL.md", target / "SKILL.md")
    return target
