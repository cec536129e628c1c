"""The one exception that a user's mistake raises."""


class BitwrightError(ValueError):
    """Bad input, in one sentence: what was found, what was expected, what to do.

    The command line prints the sentence and exits with code 2; a library user catches it as a ``ValueError``.
    """
