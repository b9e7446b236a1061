"""The pipelines. `python -m` with a Python that has none of their packages is told so in a sentence."""

import importlib.util
import sys

if sys.argv[:1] == ["-m"] and importlib.util.find_spec("hydra") is None:  # "-m" while `python -m` looks for its module
    print(
        f"error: {sys.executable} lacks the project's packages. `make install` puts them into .venv; after "
        "`. .venv/bin/activate`, python is that one",
        file=sys.stderr,
    )
    sys.exit(2)
