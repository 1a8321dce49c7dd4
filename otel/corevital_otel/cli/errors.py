"""The one exception that a command raises for the user."""


class CommandError(Exception):
    """A failure as one line for the user, which names the cause and the fix.

    Attributes:
        code: the exit status: 1, or 2 for wrong usage.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
