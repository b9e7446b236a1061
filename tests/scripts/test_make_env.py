"""The installation's script, with a Python that only talks."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.conftest import ROOT

PIP = r"""#!/bin/bash
case "$*" in
    "-c "*) exit @old@ ;;
    "-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    *--version) exit 0 ;;
    "-m pip install"*)
        echo "Looking in indexes: nowhere"
        echo "Collecting torch==2.11.* (from fadam==0.1)"
        echo "  Downloading torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl (530.7 MB)"
        echo "Collecting filelock (from torch)"
        echo "  Downloading filelock-3.20.0-py3-none-any.whl (16 kB)"
        echo "Installing collected packages: filelock, torch"
        echo "ERROR: no space" >&2
        exit @status@ ;;
esac
"""


def make(tmp_path: Path, status: int = 0, old: int = 0) -> subprocess.CompletedProcess[str]:
    python = tmp_path / "python"
    python.write_text(PIP.replace("@status@", str(status)).replace("@old@", str(old)))
    python.chmod(0o755)
    line = [ROOT / "scripts" / "make_env.sh", python, tmp_path / "venv"]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_the_installation_shows_what_it_does(tmp_path: Path) -> None:
    done = make(tmp_path)
    packages = sum("==" in line for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"1 of 3: the environment {tmp_path}/venv",
        "2 of 3: the packages, about 6 GB, most of it torch; a few minutes",
        f"  1 of about {packages}: torch==2.11.*",
        "    fetches torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl (530.7 MB)",
        f"  2 of about {packages}: filelock",
        "3 of 3: unpacks them, a minute or two",
        f"Installed into {tmp_path}/venv. For commands that begin with python: . {tmp_path}/venv/bin/activate",
    ]


def test_an_installation_that_fails_says_so(tmp_path: Path) -> None:
    done = make(tmp_path, status=1)
    assert done.returncode == 1
    assert "ERROR: no space" in done.stderr
    assert "Installed" not in done.stdout


def test_an_old_python_is_a_sentence(tmp_path: Path) -> None:
    done = make(tmp_path, old=1)
    assert done.returncode == 2
    assert "is missing or older than Python 3.11; name another one: make install PYTHON=python3.11" in done.stderr
