"""The folder of a run, while several ranks open it and when its making was interrupted."""

import time
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from videossl.config import Config, read_yaml
from videossl.engine.run_folder import check_run_folder, open_run_folder
from videossl.errors import UserError
from videossl.io.output_files import temporary_name


def config(out: Path) -> Config:
    return Config(out=str(out), tasks={"arrow_of_time": {}})


def open_late(rank: int, out: Path) -> None:
    """The main rank takes long over each thing it writes; the other comes in the middle of it."""
    dist.init_process_group("gloo", f"file://{out}.store", rank=rank, world_size=2)

    def write_slowly(path: Path, text: str, **how: str) -> int:
        time.sleep(0.5)
        return path.write_bytes(text.encode())

    Path.write_text = write_slowly
    time.sleep(0.2 * rank)
    open_run_folder(config(out), is_main=rank == 0)
    assert (out / "checkpoints").is_dir()
    dist.destroy_process_group()


def test_a_rank_that_comes_late_does_not_take_the_new_folder_for_a_foreign_one(tmp_path):
    mp.spawn(open_late, (tmp_path / "run",), nprocs=2)
    assert read_yaml(tmp_path / "run/config.yaml")["out"] == str(tmp_path / "run")


def test_a_folder_whose_making_was_interrupted_is_made_again(tmp_path):
    begun = temporary_name(tmp_path / "config.yaml")
    begun.write_text("out: /half")
    open_run_folder(config(tmp_path), is_main=True)
    assert read_yaml(tmp_path / "config.yaml")["out"] == str(tmp_path)
    assert not begun.exists()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for refuse in (check_run_folder, lambda c: open_run_folder(c, is_main=True)):
        with pytest.raises(UserError, match="is not empty and holds no run: name a new folder"):
            refuse(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
