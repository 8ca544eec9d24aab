"""The one error that is the user's to mend."""


class InputError(Exception):
    """Something given is at fault. The message is one line that names the field or file, and the mend.

    The command prints it and exits with status 2.
    """
