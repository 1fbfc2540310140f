"""An encoder without temporal strides: as many features as frames, and those of training where it had any."""

import pytest
import torch

from videossl.models.encoder import Encoder, EncoderSpec, without_temporal_stride


def strided(name: str, stage: str) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderSpec(name, stage, keep_time=False)).eval()


@pytest.mark.parametrize(
    ("name", "stage"),
    [("r3d_18", "res5"), ("r2plus1d_18", "res5"), ("s3d", "res5"), ("csn_r101", "res4")],
)
def test_dilated_features_are_those_of_training_where_it_had_any(name: str, stage: str) -> None:
    encoder = strided(name, stage)
    dense = without_temporal_stride(encoder, dilate=True)
    clip = torch.randn(1, 3, 16, 64, 64)
    with torch.no_grad():
        expected, found = encoder(clip), dense(clip)
    for key, info in encoder.stages.items():
        assert dense.stages[key].temporal_stride == 1
        assert found[key].data.shape[2] == 16
        every = found[key].data[:, :, :: info.temporal_stride]
        torch.testing.assert_close(every, expected[key].data, atol=1e-4, rtol=1e-4)
    assert encoder.stages[stage].temporal_stride > 1  # the one given is left as it was


def test_dense_features_differ_from_dilated_ones_but_not_in_shape() -> None:
    encoder = strided("r3d_18", "res4")
    clip = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        dense, dilated = (
            without_temporal_stride(encoder, dilate=d)(clip)["res4"].data for d in (False, True)
        )
    assert dense.shape == dilated.shape == (1, 256, 8, 4, 4)
    assert (dense - dilated).abs().max() > 1e-3


def test_dense_features_are_those_of_an_encoder_built_without_strides() -> None:
    encoder = strided("r3d_18", "res4")
    built = Encoder(EncoderSpec("r3d_18", "res4", keep_time=True)).eval()
    built.load_state_dict(encoder.state_dict())
    clip = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        found = without_temporal_stride(encoder, dilate=False)(clip)["res4"].data
        torch.testing.assert_close(found, built(clip)["res4"].data)


def test_an_encoder_without_strides_is_left_as_it_is() -> None:
    encoder = Encoder(EncoderSpec("tiny", "res4"))
    assert without_temporal_stride(encoder, dilate=True) is encoder
