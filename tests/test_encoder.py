import pytest
import torch

from videossl.errors import UserError
from videossl.models.encoder import ENCODERS, Encoder, EncoderSpec, count_parameters

SIZE, FRAMES = 32, 8


@pytest.mark.parametrize(
    "options",
    [{"keep_time": False}, {"keep_time": True}, {"max_stride": 8}, {"max_stride": 4}],
    ids=str,
)
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_advertised_shapes_are_the_real_ones(name, options):
    encoder = Encoder(EncoderSpec(name, **options)).eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, FRAMES, SIZE, SIZE))
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for stage, maps in features.items():
        info = encoder.stages[stage]
        cells = SIZE // info.spatial_stride
        assert maps.data.shape == (
            1,
            info.channels,
            FRAMES // info.temporal_stride,
            cells,
            cells,
        ), stage
        assert (maps.temporal_stride, maps.spatial_stride) == (
            info.temporal_stride,
            info.spatial_stride,
        )


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"x3d_s"}))
def test_a_frame_wise_encoder_sees_each_frame_alone(name):
    encoder = Encoder(EncoderSpec(name, frame_wise=True)).eval()
    assert encoder.frame_wise_stages == ("res2", "res3", "res4", "res5")
    clip = torch.randn(1, 3, FRAMES, SIZE, SIZE)
    with torch.no_grad():
        together = encoder(clip)["res5"].data
        alone = [encoder(frame)["res5"].data for frame in clip.split(1, dim=2)]
    torch.testing.assert_close(together, torch.cat(alone, 2), rtol=1e-4, atol=1e-5)


def test_an_encoder_that_averages_over_time_cannot_be_frame_wise():
    with pytest.raises(UserError, match="x3d_s cannot be frame_wise: it has layers that average"):
        Encoder(EncoderSpec("x3d_s", frame_wise=True))


def test_a_frame_wise_encoder_with_temporal_strides_is_refused():
    with pytest.raises(
        UserError, match="frame_wise has no temporal stride: it needs keep_time=true"
    ):
        Encoder(EncoderSpec("r3d_18", keep_time=False, frame_wise=True))


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_without_normalization_untrained_features_are_those_with_fresh_statistics(name):
    torch.manual_seed(0)
    plain = Encoder(EncoderSpec(name, normalization="none"))
    torch.manual_seed(0)
    normalized = Encoder(EncoderSpec(name)).eval()
    assert not [m for m in plain.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    clip = torch.randn(1, 3, FRAMES, 2 * SIZE, 2 * SIZE)
    features = plain(clip)
    with torch.no_grad():
        wanted = normalized(clip)
    for stage in features:
        data, target = features[stage].data, wanted[stage].data
        torch.testing.assert_close(data, target, rtol=1e-4, atol=1e-5)
    features["res5"].data.sum().backward()
    assert all(p.grad is not None for p in plain.parameters())


def test_an_unknown_normalization_is_refused():
    with pytest.raises(UserError, match="normalization 'layer' is unknown; allowed: batch, none"):
        Encoder(EncoderSpec("tiny", normalization="layer"))


def test_every_parameter_of_a_cut_encoder_gets_a_gradient():
    encoder = Encoder(EncoderSpec("tiny", deepest_stage="res3"))
    encoder(torch.randn(2, 3, 2, 32, 32))["res3"].data.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_deeper_stages_hold_more_parameters():
    counts = [
        count_parameters(Encoder(EncoderSpec("tiny", deepest_stage=s)))
        for s in ("res2", "res3", "res4", "res5")
    ]
    assert counts == sorted(set(counts))


def test_tiny_is_framewise_up_to_res3_and_sees_time_in_res5():
    encoder = Encoder(EncoderSpec("tiny")).eval()
    x = torch.randn(1, 3, 4, 64, 64, requires_grad=True)
    features = encoder(x)
    (gradient,) = torch.autograd.grad(features["res3"].data[:, :, 1].sum(), x, retain_graph=True)
    assert gradient[:, :, [0, 2, 3]].abs().max() == 0
    (gradient,) = torch.autograd.grad(features["res5"].data[:, :, 1].sum(), x)
    assert gradient[:, :, 0].abs().max() > 0


def test_rows_that_leave_early_change_nothing_for_the_others():
    encoder = Encoder(EncoderSpec("tiny")).eval()
    x = torch.randn(3, 3, 2, 32, 32)
    whole = encoder(x)
    cut = encoder(x, {"res2": 3, "res3": 3, "res4": 1, "res5": 1})
    assert torch.equal(cut["res3"].data, whole["res3"].data)
    torch.testing.assert_close(cut["res5"].data, whole["res5"].data[:1], rtol=0, atol=1e-6)


def test_unknown_encoder_fails():
    with pytest.raises(UserError, match=r"'resnet' is unknown; allowed: csn_r101, .*tiny"):
        Encoder(EncoderSpec("resnet"))


def test_unknown_stage_fails():
    with pytest.raises(UserError, match="'res9' is unknown; allowed: res2"):
        Encoder(EncoderSpec("tiny", deepest_stage="res9"))
