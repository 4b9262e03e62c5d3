"""A sample of what scripts/campaign/malice does at length: malicious checkpoints, exported and resumed by commands."""

from __future__ import annotations

import pytest
from support.attacked import make_template, wrongs

SAMPLE = ("the shard is a FIFO",)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("attacked"))


@pytest.mark.parametrize("case", SAMPLE)
def test_a_malicious_checkpoint_is_exported_and_resumed_without_harm(template, tmp_path, case):
    assert wrongs(template, case, tmp_path) == []
