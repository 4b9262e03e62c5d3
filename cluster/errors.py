"""What this package raises."""


class ClusterError(Exception):
    """A target that cannot run what was asked for."""

    exit_code = 2
