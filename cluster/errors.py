"""What this package raises."""


class ClusterError(Exception):
    """A target that cannot run what was asked for."""

    exit_code = 2


class Refused(ClusterError):
    """The target has looked at the job and would not run it."""

    exit_code = 3


class NoCapacity(Refused):
    """The target has not got the machines now, and may have them later."""
