"""What a folder of checkpoints holds after the disk refused, or the folder went."""

import os
import shutil

import pytest
import torch

from videossl.engine.checkpoint import CheckpointWriter, load_checkpoint, save_checkpoint
from videossl.errors import StorageFull, UserError

STATE = {"weights": torch.arange(1000.0)}


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A folder, and a way to give its disk a size: what does not fit is refused when it is to reach the disk."""
    room = [2**40]
    fsync = os.fsync

    def fsync_if_it_fits(file: int) -> None:
        if sum(path.stat().st_size for path in tmp_path.iterdir()) > room[0]:
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", fsync_if_it_fits)
    size = save_checkpoint(tmp_path, STATE, step=0, keep=1).stat().st_size
    (tmp_path / "step_00000000.pt").unlink()

    def with_room_for(count: float) -> None:
        room[0] = int(count * size)

    return tmp_path, with_room_for


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_with_room_for_two_the_oldest_is_given_up_before_a_new_one_fails(disk, caplog):
    folder, with_room_for = disk
    with_room_for(2.5)
    for step in range(1, 5):
        save_checkpoint(folder, STATE, step=step, keep=3)
    assert names(folder) == ["step_00000003.pt", "step_00000004.pt"]
    given_up = [r.getMessage() for r in caplog.records]
    assert [text.split(": ")[1] for text in given_up] == [
        "step_00000001.pt is given up for it",
        "step_00000002.pt is given up for it",
    ]


def test_the_last_good_checkpoint_is_never_given_up(disk):
    folder, with_room_for = disk
    save_checkpoint(folder, STATE, step=1, keep=3)
    save_checkpoint(folder, STATE, step=2, keep=3)
    with_room_for(1.5)
    with pytest.raises(
        StorageFull, match=f"step_00000003.pt .*No space left.*make room in {folder}"
    ):
        save_checkpoint(folder, STATE, step=3, keep=3)
    assert names(folder) == ["step_00000002.pt"]
    assert load_checkpoint(folder / "step_00000002.pt")["step"] == 2


def test_a_damaged_checkpoint_ahead_of_the_run_pushes_no_sound_one_out(tmp_path):
    save_checkpoint(tmp_path, STATE, step=10, keep=1)
    (tmp_path / "step_00000020.pt").write_bytes(b"damaged")
    save_checkpoint(tmp_path, STATE, step=12, keep=1)
    assert names(tmp_path) == ["step_00000012.pt"]


def test_training_goes_on_past_a_full_disk_and_ends_with_its_message(disk, caplog):
    folder, with_room_for = disk
    writer = CheckpointWriter(folder, keep=1)
    writer.save(STATE, step=1)
    writer.finish()
    with_room_for(1.5)
    for step in (2, 3):
        writer.save(STATE, step=step)
    with pytest.raises(StorageFull, match="step_00000003"):
        writer.finish()
    assert [r.getMessage().count("No space left") for r in caplog.records] == [1, 1]
    with_room_for(9)
    writer.save(STATE, step=4)
    writer.finish()
    writer.close()
    assert names(folder) == ["step_00000004.pt"]


def test_a_folder_that_is_gone_or_refuses_ends_the_run(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    writer = CheckpointWriter(folder, keep=1)

    def refuse(file: int) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        writer.save(STATE, step=1)
        with pytest.raises(UserError, match=r"step_00000001\.pt cannot be written: Read-only"):
            writer.finish()
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="checkpoints cannot be written: it is gone"):
        writer.save(STATE, step=2)
    writer.close()
    assert not folder.exists()
