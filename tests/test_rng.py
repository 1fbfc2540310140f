import torch

from videossl.rng import fold, generator, row_random

CPU = torch.device("cpu")


def test_keys_and_their_order_matter():
    seeds = {
        fold(0),
        fold(1),
        fold(0, 1),
        fold(0, "a", 1),
        fold(0, 1, "a"),
        fold(0, 11),
        fold(0, 1, 1),
    }
    assert len(seeds) == 7
    assert torch.equal(
        torch.rand(3, generator=generator(5, "x")), torch.rand(3, generator=generator(5, "x"))
    )


def test_ranks_together_draw_what_one_process_draws():
    def draw(rank: int, world_size: int, rows: int) -> list[torch.Tensor]:
        rng = row_random(3, "views", 9, rank=rank, world_size=world_size, num_rows=rows, device=CPU)
        return [rng.uniform(2, low=-1, high=3), rng.integers(high=5), rng.permutations(4)]

    whole = draw(0, 1, 6)
    parts = [draw(rank, 3, 2) for rank in range(3)]
    for index, values in enumerate(whole):
        assert torch.equal(values, torch.cat([part[index] for part in parts]))
    assert whole[0].min() >= -1
    assert whole[0].max() < 3
    assert all(sorted(row) == [0, 1, 2, 3] for row in whole[2].tolist())
