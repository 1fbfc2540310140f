"""A recurrent unit on maps: what has been seen so far, at each place."""

import torch
from torch import Tensor, nn


class ConvGRU(nn.Module):
    """One step of a gated recurrent unit whose products are convolutions: (B, D, h, w) and a state to the next state.

    Ballas et al., ICLR 2016, with the reset gate behind the state's product as in torch.nn.GRUCell, which it equals at every
    place for a kernel of 1 (Han et al., ICCVW 2019, use 1).
    """

    def __init__(self, dim_in: int, dim_state: int, *, kernel: int = 1) -> None:
        super().__init__()
        self.dim_state = dim_state
        self.from_input = nn.Conv2d(dim_in, 3 * dim_state, kernel, padding=kernel // 2)
        self.from_state = nn.Conv2d(dim_state, 3 * dim_state, kernel, padding=kernel // 2)

    def start(self, x: Tensor) -> Tensor:
        """The state before anything is seen: zeros (B, dim_state, h, w)."""
        return x.new_zeros(len(x), self.dim_state, *x.shape[2:])

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """See the class."""
        reset_x, update_x, new_x = self.from_input(x).chunk(3, 1)
        reset_h, update_h, new_h = self.from_state(state).chunk(3, 1)
        reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + reset * new_h)
        return (1 - update) * new + update * state
