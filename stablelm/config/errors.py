"""The one error a user's mistake raises.

It is a `ValueError`, so library callers need not know it; the command line prints its text alone and exits
with 2. A bug of ours is never an `InputError`: it stays an assertion or whatever Python raised."""


class InputError(ValueError):
    """What is wrong, where (file, key, line, tensor), and what to do about it."""


class RunError(RuntimeError):
    """A run that was set up right had to stop: what happened, what was kept, how to go on."""
