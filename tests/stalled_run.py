"""`videossl train` whose rank 1 fails at step 3: python stalled_run.py sleep|data|die|stop train ARGUMENTS..."""

import os
import signal
import sys
import time

from videossl.__main__ import main
from videossl.data.dataset import ClipDataset
from videossl.engine.trainer import Trainer

KIND, IS_BAD = sys.argv[1], os.environ["RANK"] == "1"
lr, decode = Trainer.lr, ClipDataset.decode


def bad_lr(self):  # asked for at the beginning of each step
    if self.step == 3:
        if KIND == "sleep":
            time.sleep(1000)
        os.kill(os.getpid(), {"die": signal.SIGKILL, "stop": signal.SIGSTOP}[KIND])
    return lr(self)


def bad_decode(self, position, attempt, into=None):
    if position >= 3 * 4:
        time.sleep(1000)
    return decode(self, position, attempt, into)


if IS_BAD and KIND == "data":
    ClipDataset.decode = bad_decode
elif IS_BAD:
    Trainer.lr = bad_lr
sys.exit(main(sys.argv[2:]))
