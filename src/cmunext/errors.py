"""The two errors that mean "what was given cannot be used". Each carries one sentence: the value, and the remedy."""


class InputError(ValueError):
    """A file or its content cannot be used: the work failed (the command's exit code 1)."""


class UsageError(InputError):
    """The call itself was wrong: a name, an option or a path (the command's exit code 2)."""
