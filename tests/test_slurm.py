"""tools/slurm.sbatch with stand-ins for SLURM's own commands: asked to end, it saves, asks for the queue, and goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_fault_tolerance import CONFIG, assert_same_run, wait_for_step
from test_train import arguments

from videossl.__main__ import main

SCRIPT = Path(__file__).parents[1] / "tools/slurm.sbatch"
SRUN = """#!/usr/bin/env bash
[ "$1" = --kill-on-bad-exit=0 ] || exit 99
shift
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
case "$*" in
    "show hostnames here") echo localhost ;;
    "requeue 4711") echo requeued >> "$REQUEUED" ;;
    *) exit 98 ;;
esac
"""
TORCHRUN = f'#!/usr/bin/env bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """The environment of a job."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "here",
        "NPROC_PER_NODE": "1",
        "MAX_RESTARTS": "0",
        "OMP_NUM_THREADS": "1",
        "REQUEUED": str(tmp_path / "requeued"),
    }


def test_a_job_that_is_warned_saves_is_requeued_and_ends_as_if_it_had_not_been(
    cluster, video_folder, tmp_path
):
    (tmp_path / "c.yaml").write_text(CONFIG)
    assert main(arguments(tmp_path / "c.yaml", video_folder, tmp_path / "whole")) == 0
    out = tmp_path / "run"
    command = ["bash", str(SCRIPT), *arguments(tmp_path / "c.yaml", video_folder, out)[1:]]
    job = subprocess.Popen(command, env=cluster, stderr=subprocess.PIPE, text=True)
    wait_for_step(job, out, 6)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 0, said
    assert "stopped by SIGUSR1 at step" in said
    assert (tmp_path / "requeued").read_text() == "requeued\n"
    assert not (out / "checkpoints/step_00000024.pt").exists()
    subprocess.run(command, env=cluster, check=True, capture_output=True)
    assert (tmp_path / "requeued").read_text() == "requeued\n"  # a run that is done is not
    assert_same_run(out, tmp_path / "whole")


def test_a_job_that_fails_is_not_requeued(cluster, video_folder, tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    run = arguments(tmp_path / "c.yaml", video_folder, tmp_path / "run", "optim.lrr=1")[1:]
    job = subprocess.run(
        ["bash", str(SCRIPT), *run], env=cluster, capture_output=True, text=True, check=False
    )
    assert job.returncode == 1
    assert "optim.lrr is not a setting; did you mean optim.lr?" in job.stderr
    assert not (tmp_path / "requeued").exists()


def test_shell_scripts_pass_shellcheck():
    scripts = [*SCRIPT.parent.glob("*.sh"), SCRIPT]
    checker = Path(sys.executable).with_name("shellcheck")
    command = [str(checker), "-x", *map(str, scripts)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
