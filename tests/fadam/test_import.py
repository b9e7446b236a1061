"""The package stands beside torch alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import fadam

CHECK = """
import sys
import torch
before = set(sys.modules)
import fadam
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names) - {"torch"}))
print(fadam.__version__, [name for name in fadam.__all__ if not hasattr(fadam, name)])
"""


def test_importing_it_brings_in_torch_and_the_standard_library_only() -> None:
    root = Path(fadam.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=root, capture_output=True, text=True, check=True)
    new, version = done.stdout.splitlines()
    assert new == "['fadam']"
    # Of the last tag, as it was installed; a checkout that nobody installed has none.
    assert re.fullmatch(r"\d+\S* \[\]", version)


def test_it_is_typed() -> None:
    assert (Path(fadam.__file__).parent / "py.typed").is_file()
