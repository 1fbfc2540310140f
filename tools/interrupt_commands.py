"""Sends Ctrl-C to commands at random moments, their start included, and counts how they end.

    python tools/interrupt_commands.py --signals 60

Each signal goes to the whole process group, as a terminal sends it. Right is: exit code 130, one line of videossl, no
traceback, no process left. A signal that comes before Python has come to videossl, or while Python ends itself after the
result, is Python's own business and counted apart; one that comes when the command is already over is sent again.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

CONFIG = """
encoder: {name: tiny}
data: {short_side: 48, videos_per_step: 4, num_workers: 2, val_fraction: 0.3}
tasks: {arrow_of_time: {crop_size: 32}}
optim: {warmup_steps: 5}
train: {steps: 60, log_every: 5, save_every: 10, eval_every: 10, eval_batches: 2, threads_per_process: 1}
"""
VIDEOSSL = [sys.executable, "-m", "videossl"]
TOO_LATE = "too late"
ENDING_SECONDS = (
    0.15  # that Python takes to end itself, deaf to signals: no command does anything in them
)
NAMES = ("scan", "pack", "train", "embed", "track", "audit", "probe")


def make_inputs(folder: Path) -> None:
    """Videos in two classes, their manifest, a run, and a DAVIS tree."""
    from videossl.data.synthetic import render_video

    for seed in range(16):
        path = folder / "videos" / "ab"[seed % 2] / f"{seed}.mp4"
        render_video(path, seed=seed, seconds=4, height=48, width=64)
    (folder / "c.yaml").write_text(CONFIG)
    once = [
        f"scan {folder}/videos -o {folder}/m.parquet --labels folder --workers 1",
        f"train --config {folder}/c.yaml data.manifest={folder}/m.parquet out={folder}/run train.steps=5",
        f"synthesize -o {folder}/synthetic",
    ]
    for words in once:
        subprocess.run([*VIDEOSSL, *words.split()], check=True, capture_output=True)


def commands(folder: Path, out: Path) -> dict[str, list[str]]:
    """The words of each command, which writes to `out`."""
    davis = next(folder.glob("synthetic/**/JPEGImages")).parent
    m = folder / "m.parquet"
    words = {
        "scan": f"scan {folder}/videos -o {out}/s.parquet --deep --workers 2",
        "pack": f"pack {m} -o {out}/p --workers 2 --videos-per-shard 2",
        "train": f"train --config {folder}/c.yaml data.manifest={m} out={out}/r",
        "embed": f"embed {m} --checkpoint {folder}/run -o {out}/e.parquet",
        "track": f"track --checkpoint {folder}/run --davis {davis} --workers 2 -o {out}/t",
        "audit": f"audit --config {folder}/c.yaml --manifest {m} -o {out}/a --control-videos 0",
        "probe": f"probe --manifest {m} --protocol linear --checkpoint {folder}/run -o {out}/q --cache {out}/c",
    }
    return {name: text.split() for name, text in words.items()}


def start(command: list[str], output: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Starts it in a session of its own, with a Ctrl-C that works whatever started us."""
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def left_of(session: int) -> list[str]:
    """The command lines of the living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append((stat.parent / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


def interrupted(words: list[str], delay: float) -> tuple[str, str]:
    """How a command ends that gets Ctrl-C after `delay` seconds, and what it said."""
    process = start([*VIDEOSSL, *words])
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay)
        return TOO_LATE, ""
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    try:
        said, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return "LOST", process.communicate()[0]
    seconds = time.monotonic() - begin
    time.sleep(0.2)
    if left := left_of(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
        return f"LEFT {len(left)} processes", said
    lines = [line for line in said.splitlines() if line.startswith(f"videossl {words[0]}: ")]
    if process.returncode == 130 and len(lines) == 1 and "Traceback" not in said:
        return f"right{' and saved' if 'is saved' in lines[0] else ''}", f"{seconds:.1f} s"
    is_done = any(word in said for word in ("wrote ", "written to ", " features of "))
    if is_done and (
        process.returncode == -signal.SIGINT
        or (process.returncode == 0 and seconds < ENDING_SECONDS)
    ):
        return "after its result", said[-80:]
    if "videossl" not in said.replace("__editable___videossl", "") and delay < 0.3:
        return "before videossl", said
    return f"WRONG: exit code {process.returncode}, {len(lines)} lines", said


def duration_of(name: str, folder: Path) -> float:
    """Seconds that a command takes that nobody interrupts."""
    begin = time.monotonic()
    out = folder / f"whole_{name}"
    subprocess.run([*VIDEOSSL, *commands(folder, out)[name]], check=True, capture_output=True)
    return time.monotonic() - begin


def main() -> None:
    """Prints each end and the counts; exits with 1 where one was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--signals", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", metavar="NAME")
    args = parser.parse_args()
    chooser, counts = random.Random(args.seed), Counter[str]()
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        names = args.commands or NAMES
        seconds = {name: duration_of(name, folder) for name in names}
        print(", ".join(f"{name} takes {took:.1f} s" for name, took in seconds.items()), flush=True)
        while counts.total() < args.signals:
            command = names[counts.total() % len(names)]
            delay = chooser.uniform(0, seconds[command])
            out = folder / f"{time.monotonic_ns()}"
            ending, said = interrupted(commands(folder, out)[command], delay)
            if ending == TOO_LATE:
                continue
            counts[ending] += 1
            print(f"{command} after {delay:.2f} s: {ending} ({said.strip()})", flush=True)
    print("; ".join(f"{count} {ending}" for ending, count in counts.most_common()))
    sys.exit(any(ending[0].isupper() for ending in counts))


if __name__ == "__main__":
    main()
