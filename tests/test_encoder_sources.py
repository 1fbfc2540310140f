"""What may stand where an encoder is asked for, and what it is then called."""

import pytest

from videossl.models.encoder_sources import encoder_name


@pytest.fixture
def run(tmp_path):
    checkpoints = tmp_path / "mine" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("step_00000900.pt", "best.pt"):
        (checkpoints / name).touch()
    (tmp_path / "theirs.v2.safetensors").touch()
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mine", "mine"),
        ("mine/", "mine"),
        ("mine/checkpoints", "mine"),
        ("mine/../mine/.", "mine"),
        ("mine/checkpoints/step_00000900.pt", "mine_step900"),
        ("mine/checkpoints/best.pt", "mine_best"),
        ("mine/checkpoints/step_00000007.pt", "mine_step7"),  # a run may have dropped it since
        ("theirs.v2.safetensors", "theirs.v2"),
        ("track-small", "track-small"),
    ],
)
def test_an_encoder_is_called_by_what_tells_it_from_others(source, name, run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert encoder_name(source) == name


def test_the_folder_one_stands_in_has_a_name_too(run, monkeypatch):
    monkeypatch.chdir(run)
    assert encoder_name(".") == "mine"
