"""Places that people know from elsewhere, and that are no targets here."""

from __future__ import annotations

from cluster.errors import ClusterError

_AWS_BATCH = (
    "is no target: AWS Batch never starts a job of several nodes on spot machines, and torchx has given its scheduler "
    "for it up; use --on sky sky.cloud=aws for one node, --on kubernetes for several"
)
_ABSENT = dict.fromkeys(("aws_batch", "aws-batch", "batch"), _AWS_BATCH)


def refuse_absent(name: str, words: str) -> None:
    """Raises ClusterError for the name of such a place; words: what names it."""
    if name in _ABSENT:
        raise ClusterError(f"{words} {_ABSENT[name]}")
