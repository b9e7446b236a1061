"""Errors that a user caused and can mend: their message is one sentence, shown without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Base of the errors that the commands print as a sentence, leaving with status 2."""


class DataError(UserError, RuntimeError):
    """Data are missing or so bad that training on the rest would be wrong. The message names the file."""


class ConfigError(UserError, ValueError):
    """An option has a value that is not allowed. The message names the option, the value and the choices."""


class AnalysisError(UserError):
    """Something that the tables and figures are made from is missing or not as it must be. The message names it."""


class StorageError(UserError):
    """A file cannot be written. The message names it and the reason."""


class DivergedError(UserError):
    """A number is not finite that was asked to be. The message names it."""
