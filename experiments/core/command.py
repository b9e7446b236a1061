"""How a command ends: with a sentence and a status, or with a traceback where the mistake is ours."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hydra.errors import CompactHydraException
from omegaconf.errors import OmegaConfBaseException

from experiments.core import stopping
from experiments.core.choices import unknown_keys
from experiments.core.errors import UserError

MISTAKE = 2
# What a full disk, a quota and folders without permission answer.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def in_a_sentence(error: BaseException) -> str | None:
    """What to tell the person whose mistake, or whose disk, it was; None where the mistake is ours."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in _STORAGE:
            where = f"{cause.filename}: " if cause.filename is not None else ""
            return f"{where}{os.strerror(cause.errno).lower()}"
        cause = cause.__cause__
    if isinstance(error, CompactHydraException):
        return _of_hydra(error)
    if isinstance(error, OmegaConfBaseException):
        if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
            return f"{missing[1]} must be given: {missing[1]}=..."
        key = f"{error.full_key}: " if error.full_key else ""
        return key + str(error).partition("\n")[0]
    return None


def told(error: Exception) -> int:
    """Tells a person's mistake; returns the status for it.

    Raises:
        Exception: `error` itself, where the mistake is ours.
    """
    sentence = in_a_sentence(error)
    if sentence is None:
        raise error
    print(f"error: {sentence}", file=sys.stderr)
    return MISTAKE


def _of_hydra(error: CompactHydraException) -> str:
    """What Hydra says, without where it has looked and how one would add what is misspelled."""
    text, cause = str(error), error.__cause__
    choice = re.search(r"Could not find '([\w/]+)/([^/']+)'", text)
    options = re.findall(r"^\t(\S+)$", text.partition("Config search path")[0], re.MULTILINE)
    if choice and options:
        near = difflib.get_close_matches(choice[2], options, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return f"{choice[1]}={choice[2]} is not allowed; {choice[1]} must be one of {', '.join(options)}{meant}"
    if cause is not None and "is not in struct" in str(cause):
        return text.partition("\n")[0]  # `unknown_keys` names the options
    return "\n".join(str(one) for one in (error, cause) if one is not None)


def leave(main: Callable[[], Any]) -> NoReturn:
    """Calls a Hydra command and leaves: with 2 after a person's mistake, 130 after Ctrl-C, 143 after SIGTERM."""
    # Hydra then hands errors on, where it would leave with status 1 for all of them.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Its parser takes a flag that stands among the options for an option of its own.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    stopping.watch()
    try:
        main()
    except KeyboardInterrupt:
        print(stopping.INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if end.code == stopping.TERMINATED:
            print(stopping.INTERRUPTED, file=sys.stderr)
        raise
    except Exception as error:
        status = told(error)
        if isinstance(error, CompactHydraException):
            for hint in unknown_keys(sys.argv[1:]):
                print(hint, file=sys.stderr)
        sys.exit(status)
    sys.exit(0)
