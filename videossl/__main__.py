"""`videossl COMMAND ...`, the same as `python -m videossl` and `torchrun ... -m videossl`.

Each file in `videossl/commands/` is one command: HELP, add_arguments(parser), run(args). Only the command asked for
is imported, so that `scan` never waits for torch.
"""

import argparse
import importlib
import logging
import pkgutil
import sys
from collections.abc import Sequence

from videossl import commands
from videossl.commands.printing import stdout_for_result
from videossl.errors import Preempted, RankLost, UserError
from videossl.version import __version__

COMMANDS = {
    "scan": "list the videos of folders in a manifest: size, rate, length, sound or broken",
    "pack": "transcode the videos of a manifest into tar shards that decode fast",
    "train": "train an encoder on pretext tasks, on one process or under torchrun",
    "pretext-eval": "judge a run's pretext tasks on videos it never trained on",
    "audit": "try to cheat on each pretext task before believing its accuracy",
    "track": "propagate first-frame masks with an encoder and score J and F",
    "track-points": "propagate points and joints with an encoder: BADJA, JHMDB, TAP-Vid",
    "tune": "search the settings of label propagation on a train list",
    "attend": "show where a pixel looks when labels are propagated",
    "score": "score mask PNGs of any method: J, F, mean, recall, decay",
    "doctor": "say what works on this machine, what does not, and how to mend it",
    "synthesize": "render the embedded synthetic videos and a DAVIS-layout tree",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 the user's input must change, 75 preempted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="videossl",
        description="Learn video representations without labels; score them by tracking.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    available = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    for name, help_text in COMMANDS.items():
        module_name = name.replace("-", "_")
        if module_name not in available:
            continue
        subparser = subparsers.add_parser(
            name,
            help=help_text,
            description=help_text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if arguments[:1] == [name]:
            module = importlib.import_module(f"videossl.commands.{module_name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    namespace = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("videossl").setLevel(logging.INFO)
    try:
        with stdout_for_result(namespace):
            return namespace.run(namespace) or 0
    except UserError as error:
        print(f"videossl {namespace.command}: {error}", file=sys.stderr)
        return 2
    except Preempted as stop:
        print(f"videossl {namespace.command}: {stop}", file=sys.stderr)
        return Preempted.EXIT_CODE
    except RankLost as lost:
        if str(lost):
            print(f"videossl {namespace.command}: {lost}", file=sys.stderr)
        return RankLost.EXIT_CODE
    except KeyboardInterrupt:
        print(f"videossl {namespace.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
