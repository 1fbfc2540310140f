"""`videossl completion SHELL`: what makes a shell complete commands, options and file names."""

import argparse

SHELLS = ("bash", "zsh", "tcsh")
EXAMPLE = """Written to where the shell looks for it, it holds for each new shell. After an update of videossl,
write it again. zsh needs `fpath+=~/.zfunc` before `compinit` in ~/.zshrc; tcsh
`source ~/.videossl.tcsh` in ~/.tcshrc.

examples:
  videossl completion bash > ~/.local/share/bash-completion/completions/videossl
  videossl completion zsh > ~/.zfunc/_videossl
  videossl completion tcsh > ~/.videossl.tcsh
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="whose language it is written in")
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    import shtab

    from videossl.__main__ import COMMANDS
    from videossl.commands.arguments import build_parser, subparsers_of
    from videossl.tracking.protocol import PRESETS

    parser = build_parser(COMMANDS, imported=COMMANDS)
    words = {"preset": tuple(PRESETS), "device": ("auto", "cpu", "cuda")}
    for subparser in subparsers_of(parser).values():
        for action in subparser._actions:
            if action.choices is None and action.nargs != 0:
                action.choices = words.get(action.dest)
                if action.choices is None:  # most of what is free to say is a path
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=args.shell))
    return 0
