from __future__ import annotations

import os

from support.runs_for_tests import tensorboard_steps

from launcher.train.metrics import _TENSORBOARD_NAMES, Metrics


def test_a_start_right_after_another_one_is_read_after_it(run, monkeypatch):
    for pid, start in ((9990, 0), (10010, 3)):  # as texts these have the other order
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        metrics = Metrics(run, start)
        for step in range(start + 1, start + 4):
            metrics.add({"step": step, **dict.fromkeys(_TENSORBOARD_NAMES, 1.0)})
        metrics.flush()
    assert tensorboard_steps(run.folder, "train/loss") == [1, 2, 3, 4, 5, 6]
