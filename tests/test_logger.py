"""What a run writes for programs and for TensorBoard, read back by their own readers."""

import json
import logging

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videossl.engine.logger import RunLogger


def read(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tb"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_reads_curves_and_pictures(tmp_path):
    picture = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    with RunLogger(tmp_path, is_main=True, first_step=0, total_steps=9) as logger:
        for step in (1, 2):
            logger.write(step, "line", {"tasks": {"a": {"loss": step / 2}}, "lr": 0.1}, "train/")
        logger.draw(2, "heldout", {"colours": picture})
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/tasks/a/loss")] == [(1, 0.5), (2, 1.0)]
    (image,) = events.Images("heldout/colours")
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
    assert "cannot be written: [Errno 28] No space left on device" in said[0]
    assert "Traceback" not in capsys.readouterr().err
