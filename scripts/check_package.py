"""Build the optimizer's sdist and wheel, look at what is in them, and try the wheel in an environment of its own.

    python -m scripts.check_package                        # torch as pip finds it
    python -m scripts.check_package --torch "torch==2.6.*" --index <url>    # another one, from elsewhere
    python -m scripts.check_package --contents --out dist  # build, look and keep, a minute

Python's own modules are enough: tools are installed into environments that are made here and thrown away.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("fadam/__init__.py", "fadam/py.typed", "fadam/fused/cpu.cpp", "fadam/lightning.py")
WHEEL = re.compile(r"fadam/(\w+/)*(\w+\.py|cpu\.cpp|py\.typed|README\.md)|fadam-[^/]+\.dist-info/.*")
# Of a source distribution, without the folder in which everything lies.
SDIST = re.compile(
    r"(fadam/(\w+/)*(\w+\.py|cpu\.cpp|py\.typed|README\.md)|fadam\.egg-info/.*|README\.md|CHANGELOG\.md"
    r"|CITATION\.cff|LICENSE|MANIFEST\.in|PKG-INFO|pyproject\.toml|setup\.cfg)"
)
# In the new environment: 20 steps on every path, each against the reference.
TRIAL = """
import warnings
import torch
import fadam
from fadam.reference import State, reference_step
warnings.simplefilter("error")
x, y = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 4


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))


def gradients(model):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    return loss, torch.autograd.grad(loss, list(model.parameters()))


by_hand = model()
states = [State.initial(p.detach()) for p in by_hand.parameters()]
for _ in range(20):
    for i, (p, g) in enumerate(zip(by_hand.parameters(), gradients(by_hand)[1])):
        p.data, states[i] = reference_step(p.detach(), g, states[i], eta=1e-2)
paths = {"single": {"foreach": False, "fused": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
for name, options in {**paths, "capturable": {"capturable": True, "fused": False}, "default": {}}.items():
    trained = model()
    optimizer = fadam.FAdam(trained.parameters(), lr=1e-2, **options)
    for _ in range(20):
        loss, found = gradients(trained)
        for p, g in zip(trained.parameters(), found):
            p.grad = g
        optimizer.step()
    for p, q in zip(trained.parameters(), by_hand.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    taken = {t.path for by_device in optimizer.paths() for t in by_device.values()}
    print(f"{name}: 20 steps on {'+'.join(sorted(taken))}, loss {loss.item():.4f}")
print(f"fadam {fadam.__version__}, torch {torch.__version__}")
"""


def wrong_names(names: Iterable[str], allowed: re.Pattern[str], prefix: str = "") -> list[str]:
    """What is missing from a distribution, and what should not be there, in words."""
    there = {name.removeprefix(prefix) for name in names if not name.endswith("/") and name != prefix.rstrip("/")}
    found = [f"{name} is missing" for name in NEEDED if name not in there]
    return found + [f"{name} should not be there" for name in sorted(there) if not allowed.fullmatch(name)]


def contents(path: Path) -> list[str]:
    """The names of all files in a wheel or source distribution."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with tarfile.open(path) as tar:
        return [member.name for member in tar.getmembers() if member.isfile()]


def environment(folder: Path, *packages: str) -> Path:
    """A new environment with some packages in it; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def check(folder: Path) -> Path:
    """Build into `folder` and look; returns the wheel.

    Raises:
        SystemExit: something is wrong; names it.
    """
    tools = environment(folder / "tools", "-c", str(ROOT / "constraints.txt"), "build", "twine")
    # The wheel is made from the sdist, which knows no git.
    done = subprocess.run(
        [tools, "-m", "build", "--outdir", folder / "dist", ROOT], capture_output=True, text=True
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"error: it cannot be built\n{done.stdout}{done.stderr}")
    (wheel,), (sdist,) = (list((folder / "dist").glob(kind)) for kind in ("*.whl", "*.tar.gz"))
    wrong = [f"{wheel.name}: {words}" for words in wrong_names(contents(wheel), WHEEL)]
    root = f"{sdist.name.removesuffix('.tar.gz')}/"
    wrong += [f"{sdist.name}: {words}" for words in wrong_names(contents(sdist), SDIST, root)]
    if wrong:
        raise SystemExit("error: " + "\n".join(wrong))
    subprocess.run([tools, "-m", "twine", "check", "--strict", wheel, sdist], check=True)
    print(f"{sdist.name} and {wheel.name} hold what they should", flush=True)
    return wheel


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.check_package", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--torch", default="torch", help="what pip installs beside the wheel (default: torch)")
    parser.add_argument("--index", help="where pip finds torch, such as one for CPUs alone (default: pip's own)")
    parser.add_argument("--contents", action="store_true", help="build and look alone")
    parser.add_argument("--out", type=Path, help="where sdist and wheel are kept (default: nowhere)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = check(folder)
        if not options.contents:
            index = ["-i", options.index] if options.index else []
            python = environment(folder / "user", options.torch, *index)
            subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
            # From a folder that holds no fadam.
            done = subprocess.run([python, "-c", TRIAL], cwd=folder)
            if done.returncode:
                raise SystemExit("error: the wheel does not work in an environment of its own")
        if options.out is not None:
            shutil.copytree(folder / "dist", options.out, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
