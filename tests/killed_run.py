"""`videossl train` that kills itself: python killed_run.py MARKERS KILLS train ARGUMENTS...

KILLS is a comma-separated list of rank:step, or rank:step:save for the moment a checkpoint of that step or a later one is
half written. Each happens once: a file in the folder MARKERS says that it has.
"""

import os
import signal
import sys
from pathlib import Path

from videossl.__main__ import main
from videossl.engine import checkpoint
from videossl.engine.trainer import Trainer

MARKERS, KILLS = Path(sys.argv[1]), sys.argv[2].split(",")
RANK = os.environ.get("RANK", "0")
train_step, fsync = Trainer.train_step, os.fsync
current = {"step": 0}


def die_if_due(step: int, moment: str) -> None:
    for kill in KILLS:
        rank, at, *where = kill.split(":")
        if rank == RANK and where == ([moment] if moment else []) and step >= int(at):
            marker = MARKERS / kill.replace(":", "-")
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)


def dying_train_step(self, *arguments):
    current["step"] = self.step
    die_if_due(self.step, "")
    return train_step(self, *arguments)


def dying_fsync(file) -> None:
    die_if_due(current["step"], "save")
    fsync(file)


Trainer.train_step = dying_train_step
checkpoint.os.fsync = dying_fsync
sys.exit(main(sys.argv[3:]))
