"""What a run writes for programs and for TensorBoard, read back by their own readers."""

import errno
import json
import logging
import os
import resource
import shutil
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videossl.engine.metrics import RunLogger
from videossl.errors import UserError
from videossl.io.output_files import WholeRecords


def read(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tb"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_reads_curves_and_pictures(tmp_path):
    picture = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    with RunLogger(tmp_path, is_main=True, first_step=0, total_steps=9) as logger:
        for step in (1, 2):
            logger.write(step, "line", {"tasks": {"a": {"loss": step / 2}}, "lr": 0.1}, "train/")
        logger.draw(2, "val", {"colours": picture})
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/tasks/a/loss")] == [(1, 0.5), (2, 1.0)]
    (image,) = events.Images("val/colours")
    assert (image.step, image.width, image.height) == (2, 30, 20)
    from torchvision.io import decode_png

    stored = torch.frombuffer(bytearray(image.encoded_image_string), dtype=torch.uint8)
    assert torch.equal(decode_png(stored), picture)


def test_steps_made_again_replace_those_of_the_killed_run(tmp_path):
    for first, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        with RunLogger(tmp_path, is_main=True, first_step=first, total_steps=9) as logger:
            for step in steps:
                logger.write(step, "", {"lr": first + step})
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("lr")] == [
        (1, 1),
        (2, 2),
        (3, 5),
        (4, 6),
        (5, 7),
    ]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["metrics.jsonl", "tb", "train.log"])
def test_a_disk_that_refuses_is_said_once(name, tmp_path, caplog, capsys, monkeypatch):
    class Full:
        def write(self, data) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

        def flush(self) -> None: ...

    with (
        caplog.at_level(logging.INFO, "videossl"),
        RunLogger(tmp_path, is_main=True, first_step=0, total_steps=9) as logger,
    ):
        if name == "metrics.jsonl":
            logger._jsonl = Full()
        elif name == "tb":
            logger._tensorboard._records = Full()
        else:
            logger._file.stream = Full()
        for step in (1, 2):
            logger.write(step, f"line {step}", {"lr": 0.1})
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == 1
    assert name in said[0]
    assert "No space left on device" in said[0]
    assert "Traceback" not in capsys.readouterr().err


def test_a_log_that_never_fits_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "train.log").symlink_to("/dev/full")
    caplog.set_level(logging.INFO, "videossl")
    with RunLogger(tmp_path, is_main=True, first_step=0, total_steps=9) as logger:
        logger.write(1, "line 1", {"lr": 0.1})
    assert [r.getMessage().count("No space left") for r in caplog.records] == [1, 0]


def test_a_record_that_a_full_disk_cuts_off_is_taken_back(tmp_path):
    path = tmp_path / "records"
    file, limits = WholeRecords(path), resource.getrlimit(resource.RLIMIT_FSIZE)
    file.write(b"first\n")
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            file.write(b"second\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    file.write(b"third\n")
    assert path.read_bytes() == b"first\nthird\n"


@pytest.mark.parametrize("error", [errno.EROFS, errno.EIO])
def test_a_folder_that_refuses_for_another_reason_ends_the_run(error, tmp_path):
    class Refusing:
        def write(self, data) -> None:
            raise OSError(error, os.strerror(error))

        def close(self) -> None: ...

    with RunLogger(tmp_path, is_main=True, first_step=0, total_steps=9) as logger:
        logger._jsonl = Refusing()
        with pytest.raises(
            UserError, match=rf"metrics\.jsonl cannot be written: {os.strerror(error)}"
        ):
            logger.write(1, "line 1", {"lr": 0.1})


def test_a_folder_that_is_gone_ends_the_run(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with RunLogger(out, is_main=True, first_step=0, total_steps=9) as logger:
        shutil.rmtree(out)
        with pytest.raises(UserError, match="run cannot be written: it is gone"):
            logger.write(1, "line 1", {"lr": 0.1})
    assert not out.exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "train.log", "tb"])
def test_a_file_that_cannot_be_begun_is_named(name, tmp_path):
    (tmp_path / name).symlink_to("/dev/null/nothing")
    with pytest.raises(
        UserError, match=rf"{name} cannot be written: (Not a directory|File exists)"
    ):
        RunLogger(tmp_path, is_main=True, first_step=0, total_steps=9)


def test_records_of_a_resumed_run_that_are_not_text_cost_themselves(tmp_path):
    lines = [b'{"step": 1}\n', b'{"step": \xff\xfe2}\n', b"7\n", b'{"step": 2}\n', b'{"step": 3}\n']
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    RunLogger(tmp_path, is_main=True, first_step=2, total_steps=9).__exit__(None, None, None)
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines[0] + lines[3]
