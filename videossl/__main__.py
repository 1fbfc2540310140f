"""`videossl COMMAND ...`, the same as `python -m videossl` and `torchrun ... -m videossl`.

Each file in `videossl/commands/` is one command: add_arguments(parser), check(args), run(args). Only the command asked for
is imported, so that `scan` never waits for torch; and what can be refused without torch is refused by `check`, before `run`
loads it, which takes seconds.
"""

import os
import sys
from collections.abc import Sequence

from videossl.workers import signals  # and nothing that takes time before `take`

COMMANDS = {
    "scan": "list the videos of folders in a manifest: size, rate, length, sound or broken",
    "pack": "transcode the videos of a manifest into tar shards that decode fast",
    "train": "train an encoder on pretext tasks, on one process or under torchrun",
    "pretext-eval": "judge a run's pretext tasks on videos it never trained on",
    "probe": "judge frozen or fine-tuned features on labelled videos",
    "detect": "train Faster R-CNN on an encoder's frames: pretrained against random",
    "embed": "compute one feature for each video of a manifest",
    "export": "write an encoder for others: safetensors, torch.export or ONNX, with a model card",
    "audit": "set shortcut baselines beside each pretext task, and look for leaks",
    "track": "propagate first-frame masks with an encoder and score J and F",
    "track-points": "propagate points and joints with an encoder: BADJA, JHMDB, TAP-Vid",
    "score": "score mask PNGs of any method: J, F, mean, recall, decay",
    "report": "put runs on one page: curves, pictures, probes, tracking, settings",
    "completion": "print what a shell needs to complete commands and options",
    "doctor": "say what works on this machine, what does not, and how to mend it",
    "synthesize": "render the embedded synthetic videos and a DAVIS-layout tree",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 the input must change, 75 preempted, 70 unexpected, 130 Ctrl-C.

    Without `argv` it is the whole process, whose arguments and signals it takes.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if argv is None:
        signals.take(command)
    signals.watch_agent()
    code = _ended_well_or_said(arguments, command)
    if argv is None:
        signals.finish(code)
    return code


def _ended_well_or_said(arguments: Sequence[str], command: str) -> int:
    from videossl.commands import output
    from videossl.errors import Preempted, RankLost, UserError

    try:
        return _run(arguments)
    except UserError as error:
        return _end(command, str(error), 2)
    except Preempted as stop:
        return _end(command, str(stop), stop.exit_code)
    except RankLost as lost:
        return _end(command, str(lost), RankLost.EXIT_CODE)
    except KeyboardInterrupt:
        return _end(command, "interrupted" if signals.speaks() else "", signals.EXIT_CODE)
    except Exception as error:  # nothing is above that could say it better
        if isinstance(error, BrokenPipeError) and output.is_reader_gone():
            output.drop_output()
            return output.READER_GONE
        if signals.is_agent_gone():  # and with it the store that this rank was asking
            signals.end_without_agent()
        output.report_unexpected(error, command, arguments)
        return output.UNEXPECTED


def _run(arguments: Sequence[str]) -> int:
    import logging

    from videossl.commands.arguments import parse
    from videossl.commands.given import check_given_paths
    from videossl.commands.output import print_any_name, stdout_for_result

    # Before torch is loaded: its threads else spin while they wait for each other, and what shares their cores takes much
    # longer (docs/performance.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        namespace = parse(arguments, COMMANDS)
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("videossl").setLevel(logging.INFO)
        print_any_name()
        namespace.check(namespace)
        check_given_paths(namespace)
        with stdout_for_result(namespace):
            return namespace.run(namespace) or 0
    finally:
        sys.stdout.flush()  # here a reader that has left is noticed, not at Python's exit


def _end(command: str, text: str, exit_code: int) -> int:
    """Prints the one line, none if it has been said elsewhere."""
    if text:
        print(f"videossl {command}: " + text.replace("\n", "\\n"), file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
