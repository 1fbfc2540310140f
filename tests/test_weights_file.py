"""Weights that cannot be read say so in our words, and nothing of them is run."""

import os
import pickle

import pytest
import torch

from videossl.engine.checkpoint import load_checkpoint
from videossl.errors import UserError
from videossl.export.state_dicts import load_weights
from videossl.models.encoder_file import read_weights
from videossl.tracking.baselines import _load


class Runs:
    def __init__(self, function) -> None:
        self.function = function

    def __reduce__(self):
        return self.function, ("mkdir gotcha",)


REFUSED = {
    "a call": lambda path: torch.save({"a": Runs(os.system)}, path),
    "a call, as pickled": lambda path: path.write_bytes(pickle.dumps({"a": Runs(os.system)})),
    "a module": lambda path: torch.save(torch.nn.Linear(1, 1), path),
    "a function": lambda path: torch.save({"a": Runs(eval)}, path),
    "text": lambda path: path.write_text("these are no weights"),
    "nothing": lambda path: path.write_bytes(b""),
    "a number": lambda path: path.write_bytes(b"\x80\x02K\x01"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_no_advice_to_load_unsafely_is_passed_on(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    REFUSED[kind](path)
    for load in (
        read_weights,
        load_checkpoint,
        lambda path: load_weights(path, "slow_r50"),
        lambda path: _load(torch.nn.Linear(1, 1), path, "linear"),
    ):
        with pytest.raises(ValueError, match=r"\w") as refused:
            load(path)
        said = str(refused.value)
        assert load is read_weights or isinstance(refused.value, UserError)
        assert "\n" not in said
        for advice in ("weights_only", "add_safe_globals", "trust", "allowlist"):
            assert advice not in said
        if kind in ("a call", "a module", "a function"):
            assert "code in weights is never run" in said
    assert not (tmp_path / "gotcha").exists()


def test_weights_are_read_as_they_were_saved(tmp_path):
    torch.save({"a": torch.arange(3), "b": [1, "x"]}, tmp_path / "w.pt")
    read = read_weights(tmp_path / "w.pt")
    assert torch.equal(read["a"], torch.arange(3))
    assert read["b"] == [1, "x"]
