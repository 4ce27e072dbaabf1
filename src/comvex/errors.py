"""The one exception for what a person got wrong."""


class UserError(ValueError):
    """A mistake in what the user gave: one sentence that names the thing, the value and what is allowed.

    The command line prints the sentence and exits with code 2; in Python it is an ordinary ``ValueError``.
    """
