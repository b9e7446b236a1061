"""FAdam: Adam as natural gradient descent with a diagonal empirical Fisher information matrix.

Source: Dongseong Hwang, arXiv:2405.12807, Algorithm 1.
"""

from fadam.diagnostics import diagnose
from fadam.functional import fadam
from fadam.optimizer import FAdam
from fadam.options import Options

__version__ = "0.1.0"

__all__ = ["FAdam", "Options", "__version__", "diagnose", "fadam"]
