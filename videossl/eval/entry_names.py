"""Names out of data that become names of files: they must stay inside of the folder that they are written to."""

from videossl.errors import UserError


def check_entry_name(name: str, what: str) -> None:
    """Raises UserError unless the name, of such a thing as `what` says, can be that of one entry of a folder."""
    is_visible = bool(name) and not name.startswith(".")  # "." and ".." begin so
    if not is_visible or any(c in "/\\" or not c.isprintable() for c in name):
        raise UserError(
            f"{what} {name!r} may not be empty, begin with a dot or hold / or \\, for files are named after it"
        )
