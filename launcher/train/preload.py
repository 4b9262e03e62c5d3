"""What the forkserver imports once per node, so that a rank starts from a fork instead of from imports.

Importing this module makes the forkserver a good citizen of the run: a stop signal to it is a notice, and it does not
outlive its agent. No CUDA context may be made here: a forked rank could not use it.
"""

from __future__ import annotations

import signal

from cluster.preemption import Notice, handle_signals, hold_stop_signals_in_forks
from cluster.processes import die_with_parent

die_with_parent(signal.SIGKILL)
handle_signals(Notice.from_environment())
hold_stop_signals_in_forks()
