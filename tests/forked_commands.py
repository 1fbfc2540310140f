"""Runs commands without waiting for torch each time: python forked_commands.py imports it once, and forks for each.

A line of standard input is the JSON list of a command's words; a line of standard output the number of its process, then,
when that has ended, its number and its exit code (negative: the signal).
"""

import importlib
import json
import os
import sys

from videossl.__main__ import main

IMPORTED = (
    *("videossl.audit.battery", "videossl.engine.trainer"),
    *("videossl.tracking.tracking", "videossl.probe.protocols"),
)

if __name__ == "__main__":  # and not in a spawned worker, which imports this file
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = ["videossl", *json.loads(line)]
            os._exit(main())
        print(pid, flush=True)
        print(pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
