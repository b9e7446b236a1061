"""FAdam: Adam as natural gradient descent with a diagonal empirical Fisher information matrix.

Source: Dongseong Hwang, arXiv:2405.12807, Algorithm 1.
"""

from importlib.metadata import PackageNotFoundError, version

from fadam.diagnostics import diagnose
from fadam.functional import fadam
from fadam.optimizer import FAdam
from fadam.options import Options

try:
    __version__ = version("fadam")
except PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0+unknown"

__all__ = ["FAdam", "Options", "__version__", "diagnose", "fadam"]
