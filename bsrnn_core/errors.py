"""The one exception that means: the user's input is wrong, and here is what to do."""


class BadInput(ValueError):
    """One sentence that names the file or option, what is wrong with it and what to do."""
