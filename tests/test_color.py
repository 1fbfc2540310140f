import torch

from videossl.color import encoder_input, lab_to_rgb, picture, rgb_to_lab

# CIE Lab (D65) of sRGB primaries, from the published conversion tables.
KNOWN = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
}


def test_lab_equals_published_values():
    rgb = torch.tensor(list(KNOWN), dtype=torch.float32) / 255
    torch.testing.assert_close(
        rgb_to_lab(rgb, dim=1), torch.tensor(list(KNOWN.values())), rtol=0, atol=0.02
    )


def test_a_grey_picture_has_no_chroma_and_the_axis_is_free():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    x = encoder_input(grey, dim=1)
    assert x[:, 1:].abs().max() < 1e-3
    assert torch.equal(x.movedim(1, -1), encoder_input(grey.movedim(1, -1), dim=-1))


def test_lab_goes_back_to_the_rgb_it_came_from():
    rgb = torch.randint(0, 256, (2, 3, 5, 16, 16), generator=torch.Generator().manual_seed(0))
    rgb = rgb.to(torch.uint8)
    assert torch.equal(picture(encoder_input(rgb, dim=1), dim=1), rgb)
    torch.testing.assert_close(
        lab_to_rgb(torch.tensor(list(KNOWN.values())), dim=1),
        torch.tensor(list(KNOWN), dtype=torch.float32) / 255,
        rtol=0,
        atol=5e-3,
    )
