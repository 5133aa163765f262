"""Errors that users can mend. A file of their own, so that what needs no JAX can raise them without importing it."""


class TrimtabError(Exception):
    """An error the user can mend. Its text is one line that names the fix, printed without a traceback."""


class UsageError(TrimtabError):
    """The request cannot be carried out as given (unknown name, wrong shape, bad flag). Exit status 2."""


class RunError(TrimtabError):
    """A run failed on its way (environment, disk, checkpoint). Exit status 1."""


class Interrupted(TrimtabError):
    """Ctrl-C or SIGTERM. The text says how to go on; `status` is the exit status of the shell convention."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status
