"""Self-attention over many tokens by landmarks (Xiong et al., AAAI 2021), as TransMIL uses it.

The softmax over all pairs of T tokens is replaced by three small ones: tokens to landmarks, landmarks to landmarks
(whose pseudo-inverse is found by iteration) and landmarks to tokens. A landmark is the mean of consecutive tokens.

Shape suffixes: T tokens, P tokens with padding, D width, H heads, K width of a head, L landmarks.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

RESIDUAL_TAPS = 33


class NystromAttention(nn.Module):
    """dim: D, a multiple of ``heads``. landmarks: L. iterations: of the pseudo-inverse.

    Zero rows are put in front until T is a multiple of L; they take part like tokens whose key and value are 0, as
    in the reference. One bag at a time: batches would share the pseudo-inverse's first guess.
    """

    def __init__(
        self, dim: int, *, heads: int = 8, landmarks: int, iterations: int = 6, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self._heads = heads
        self._landmarks = landmarks
        self._iterations = iterations
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.residual = nn.Conv2d(
            heads, heads, (RESIDUAL_TAPS, 1), padding=(RESIDUAL_TAPS // 2, 0), groups=heads, bias=False
        )

    def padding(self, tokens: int) -> int:
        """Zero rows in front of so many tokens."""
        return -tokens % self._landmarks

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return (T, D), and the first token's attention (H, T) to all tokens.

        The attention approximates a softmax: a row need not sum to 1, and entries can be negative. It carries no
        gradient.
        """
        padding = self.padding(len(x_TD))
        x_PD = pad(x_TD, (0, 0, padding, 0))
        query_HPK, key_HPK, value_HPK = (
            part.unflatten(1, (self._heads, -1)).transpose(0, 1)
            for part in self.query_key_value(x_PD).chunk(3, dim=1)
        )
        query_HPK = query_HPK / query_HPK.shape[2] ** 0.5
        query_HLK, key_HLK = (
            part.unflatten(1, (self._landmarks, -1)).mean(dim=2) for part in (query_HPK, key_HPK)
        )
        to_landmarks_HPL = (query_HPK @ key_HLK.mT).softmax(dim=-1)
        among_HLL = (query_HLK @ key_HLK.mT).softmax(dim=-1)
        from_landmarks_HLP = (query_HLK @ key_HPK.mT).softmax(dim=-1)
        inverse_HLL = pseudo_inverse(among_HLL, iterations=self._iterations)
        read_HPK = to_landmarks_HPL @ inverse_HLL @ (from_landmarks_HLP @ value_HPK)
        read_HPK = read_HPK + self.residual(value_HPK[None])[0]
        out_TD = self.dropout(self.out(read_HPK.transpose(0, 1).flatten(1)))[padding:]
        with torch.no_grad():
            first_H1L = to_landmarks_HPL[:, padding : padding + 1] @ inverse_HLL
            first_HT = (first_H1L @ from_landmarks_HLP)[:, 0, padding:]
        return out_TD, first_HT


def pseudo_inverse(x_HLL: Tensor, *, iterations: int) -> Tensor:
    """Approximate Moore-Penrose inverse of each matrix of attention weights, by Razavi's iteration.

    The first guess is scaled by the largest row sum and column sum over all H matrices together.
    """
    rows, columns = x_HLL.abs().sum(dim=-1).max(), x_HLL.abs().sum(dim=-2).max()
    z_HLL = x_HLL.mT / (rows * columns)
    identity = torch.eye(x_HLL.shape[-1], dtype=x_HLL.dtype, device=x_HLL.device)
    for _ in range(iterations):
        product = x_HLL @ z_HLL
        z_HLL = z_HLL @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product))) / 4
    return z_HLL
