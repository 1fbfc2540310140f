"""hubconf.py, as torch.hub reads it."""

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch

import videossl
from videossl.errors import UserError
from videossl.models.encoder import ENCODERS

REPOSITORY = str(Path(__file__).parents[1])


def load(name, *arguments, **settings):
    return torch.hub.load(REPOSITORY, name, *arguments, source="local", **settings)


def test_the_entry_points_are_the_encoders_and_nothing_else():
    hubconf = runpy.run_path(f"{REPOSITORY}/hubconf.py")
    # The rule of torch.hub.list, which takes no local folder.
    names = {n for n, value in hubconf.items() if callable(value) and not n.startswith("_")}
    assert names == {"videossl_encoder", *ENCODERS}
    assert "untrained s3d" in hubconf["s3d"].__doc__
    assert all(importlib.util.find_spec(name) for name in hubconf["dependencies"])


def test_a_trained_encoder_is_loaded(checkpoint):
    loaded, expected = load("videossl_encoder", checkpoint), videossl.load_encoder(checkpoint)
    video = torch.randint(0, 256, (1, 2, 3, 130, 140), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(video), expected(video))
    with pytest.raises(UserError, match="is not the file asked for"):
        load("videossl_encoder", checkpoint, sha256="00")


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_untrained_architectures_come_by_name(name):
    encoder = load(name, stage="res3", keep_time=False)
    assert encoder.encoder.spec.name == name
    assert not encoder.training
    video = torch.randint(0, 256, (1, 4, 3, 112, 112), dtype=torch.uint8)
    with torch.no_grad():
        assert encoder(video).shape == (1, encoder.num_channels)
    parameters = [next(load(name, stage="res2", seed=seed).parameters()) for seed in (1, 1, 2)]
    assert torch.equal(parameters[0], parameters[1])
    assert not torch.equal(parameters[0], parameters[2])


def test_a_stage_that_is_not_there_fails():
    with pytest.raises(UserError, match="stage 'res9' is unknown"):
        load("tiny", stage="res9")
