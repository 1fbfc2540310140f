"""What a user caused and can mend: printed as one line by the command line, never as a traceback."""


class UserError(ValueError):
    """Says what was got, what is allowed, and the remedy, in one line."""
