"""What a process needs before torch is loaded, to train fast and in little memory. It knows nothing of training."""

from __future__ import annotations

from slm.native.heap import restart_with_whole_blocks
from slm.native.threads import TRAINING_SPINS, settle_openmp
from slm.terminal.console import is_program


def prepare_process() -> None:
    """Settle OpenMP's threads, and begin a program again where its malloc needs to be told something."""
    if is_program():
        restart_with_whole_blocks()
    settle_openmp(TRAINING_SPINS)
