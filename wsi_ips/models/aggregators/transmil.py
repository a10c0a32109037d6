"""TransMIL, and the Nystrom attention that it stands on.

TransMIL: a class token and two layers of self-attention among all patches (Shao et al., NeurIPS 2021).

Patches are laid on a square in the order of their places, not where they lie, as published: depth-wise
convolutions over that square stand for positions, so the result depends on the order. No patch has a score of its
own; all patches of a bag are read.

Self-attention over many tokens by landmarks (Xiong et al., AAAI 2021), as TransMIL uses it.

The softmax over all pairs of T tokens is replaced by three small ones: tokens to landmarks, landmarks to landmarks
(whose pseudo-inverse is found by iteration) and landmarks to tokens. A landmark is the mean of consecutive tokens.

The reference puts zero rows in front until the number of tokens is a multiple of the number of landmarks. They
take part like tokens whose key and value are 0, and in short bags they are most of the work. All of them are
alike, and so are the landmarks made of nothing else. Here one zero row stands for all of them: where a softmax
counts it, it counts as often as there are rows. The result is the same.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`, S side of the square, N = 1 + S * S tokens, T
tokens, R those of them whose result is wanted, U tokens behind the zero row, D width, H heads, K width of a
head, L landmarks (those of zeros alone as one), C columns.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

from wsi_ips.config import TaskConfig
from wsi_ips.config.section import Fraction, LayerWidth
from wsi_ips.errors import ConfigError
from wsi_ips.models.aggregators.base import Aggregated, Aggregator, EmbeddingOptions, Kind, plain_embedding
from wsi_ips.models.heads import queries_of

RESIDUAL_TAPS = 33
WHOLE_STEPS = 2
"""Steps of the pseudo-inverse that make the whole matrix."""


class NystromAttention(nn.Module):
    """Approximate self-attention among the tokens of one bag.

    It takes one bag at a time: bags of a batch would share the pseudo-inverse's first guess.

    Args:
        dim: D, a multiple of ``heads``.
        heads: H.
        landmarks: The number of landmarks, those of zeros alone included.
        iterations: Iterations of the pseudo-inverse.
        dropout: Share of the output that is dropped in training.
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
        """How many zero rows the reference puts in front of so many tokens."""
        return -tokens % self._landmarks

    def forward(self, x_TD: Tensor, *, first_only: bool = False) -> tuple[Tensor, Tensor]:
        """Read the tokens.

        Args:
            x_TD: The tokens.
            first_only: Compute the output of the first token alone, which is much less work.

        Returns:
            The output (R, D), of all tokens or of the first; and the first token's attention (H, T) to all tokens.
            The attention approximates a softmax: a row need not sum to 1, and entries can be negative. It carries
            no gradient.
        """
        padding = self.padding(len(x_TD))
        landmark_LD, count_L = self._landmarks_of(x_TD)
        query_weight, key_weight, value_weight = self.query_key_value.weight.chunk(3)
        scale = query_weight.shape[0] // self._heads
        query_HRK = self._by_head(x_TD[:1] if first_only else x_TD, query_weight) / scale**0.5
        query_HLK = self._by_head(landmark_LD, query_weight) / scale**0.5
        key_HLK = self._by_head(landmark_LD, key_weight)
        key_HTK, value_HTK = self._by_head(x_TD, key_weight), self._by_head(x_TD, value_weight)
        # A merged landmark has the weight of one, times the root of their number in its rows and in its columns:
        # products over landmarks are then those of the full matrices.
        root_L = None if count_L is None else count_L.sqrt()
        among_HLL = _over_root(_softmax(query_HLK, key_HLK, count_L), root_L)
        if root_L is not None:
            among_HLL = root_L[:, None] * among_HLL
        to_HRL = _over_root(_softmax(query_HRK, key_HLK, count_L), root_L)
        count_U = pad(x_TD.new_ones(len(x_TD)), (1, 0), value=padding) if padding else None
        zero_row = (0, 0, 1, 0) if padding else (0, 0, 0, 0)
        from_HLT = _softmax(query_HLK, pad(key_HTK, zero_row), count_U)[..., -len(x_TD) :]
        value_HLK = from_HLT @ value_HTK
        if root_L is not None:
            value_HLK = root_L[:, None] * value_HLK
        inverse = PseudoInverse(among_HLL, iterations=self._iterations, root_L=root_L)
        if first_only:
            read_HRK = inverse.after(to_HRL) @ value_HLK + self._residual_of_first(value_HTK)
        else:
            read_HRK = to_HRL @ inverse.before(value_HLK) + self.residual(value_HTK[None])[0]
        out_RD = self.dropout(self.out(read_HRK.transpose(0, 1).flatten(1)))
        with torch.no_grad():
            first_H1L = inverse.after(to_HRL[:, :1])
            first_HT = ((first_H1L if root_L is None else root_L * first_H1L) @ from_HLT)[:, 0]
        return out_RD, first_HT

    def _by_head(self, x_nD: Tensor, weight_DD: Tensor) -> Tensor:
        """Project rows (n, D) for each head, (H, n, K)."""
        by_head_nHK: Tensor = linear(x_nD, weight_DD).unflatten(1, (self._heads, -1))
        return by_head_nHK.transpose(0, 1)

    def _landmarks_of(self, x_TD: Tensor) -> tuple[Tensor, Tensor | None]:
        """The landmarks (L, D), and how many each stands for (L,); None if each stands for itself."""
        per_landmark = -(-len(x_TD) // self._landmarks)
        alike, rest = divmod(self.padding(len(x_TD)), per_landmark)
        x_LnD = pad(x_TD, (0, 0, rest, 0)).unflatten(0, (-1, per_landmark))
        landmark_LD = x_LnD.mean(dim=1)
        if alike < 2:
            return pad(landmark_LD, (0, 0, alike, 0)), None
        return pad(landmark_LD, (0, 0, 1, 0)), pad(x_TD.new_ones(len(landmark_LD)), (1, 0), value=alike)

    def _residual_of_first(self, value_HTK: Tensor) -> Tensor:
        """The convolution ``residual`` at the first token, (H, 1, K)."""
        reached_HnK = value_HTK[:, : RESIDUAL_TAPS // 2 + 1]
        taps_Hn = self.residual.weight[:, 0, RESIDUAL_TAPS // 2 :, 0][:, : reached_HnK.shape[1]]
        return taps_Hn[:, None] @ reached_HnK


class PseudoInverse:
    """Approximate Moore-Penrose inverse Z of each matrix A of attention weights, by Razavi's iteration.

    The iteration Z' = Z (13 - A Z (15 - A Z (7 - A Z))) / 4 begins with Z = c A^T, where 1 / c is the largest row
    sum times the largest column sum over all matrices together. With the residual E = 1 - A Z the step reads
    Z' = Z (1 + E + E^2 + E^3 / 4), and E' = (3 E^3 + E^4) / 4. The first residual 1 - c A A^T is symmetric, so all
    of them are symmetric polynomials of it and commute.

    Only products with Z are needed. So the last steps make no Z: each residual follows from the one before by two
    products of matrices, and the step is applied to a few columns. The first :data:`WHOLE_STEPS` are taken as they
    are published, because there the digits are lost: the least singular values of A are squared in A Z, and each
    step makes them four times as large.

    Args:
        among_HLL: A. Rows and columns of merged landmarks are weighted by the root of their number; the rows of
            the matrices without weights sum to 1, as those of a softmax do.
        iterations: How many steps.
        root_L: The root of how many landmarks each stands for; None: one each.
    """

    def __init__(self, among_HLL: Tensor, *, iterations: int, root_L: Tensor | None = None) -> None:
        if root_L is None:
            columns_HL = among_HLL.sum(dim=1)
        else:
            columns_HL = _over_root((root_L[:, None] * among_HLL).sum(dim=1), root_L)
        z_HLL = among_HLL.mT / columns_HL.max()
        identity = torch.eye(among_HLL.shape[-1], dtype=among_HLL.dtype, device=among_HLL.device)
        whole = min(WHOLE_STEPS, iterations)
        for _ in range(whole):
            e_HLL = torch.baddbmm(identity, among_HLL, z_HLL, alpha=-1)
            # Z (1 + E + E^2 (1 + E / 4)), the identity taken out of the brackets.
            square_HLL = e_HLL @ e_HLL
            rest_HLL = torch.baddbmm(e_HLL + square_HLL, square_HLL, e_HLL, alpha=0.25)
            z_HLL = torch.baddbmm(z_HLL, z_HLL, rest_HLL)
        self._z_HLL = z_HLL
        self._residuals: list[tuple[Tensor, Tensor]] = []
        for number in range(whole, iterations):
            if number == whole:
                e_HLL = torch.baddbmm(identity, among_HLL, z_HLL, alpha=-1)
            else:
                rest_HLL = torch.add(square_HLL, e_HLL, alpha=3)
                e_HLL = torch.baddbmm(e_HLL, square_HLL, rest_HLL, beta=0, alpha=0.25)
            square_HLL = e_HLL if number == iterations - 1 else e_HLL @ e_HLL
            self._residuals.append((e_HLL, square_HLL))

    def before(self, x_HLC: Tensor) -> Tensor:
        """Z x for columns x."""
        return self._z_HLL @ self._last_steps(x_HLC)

    def after(self, x_HRL: Tensor) -> Tensor:
        """x Z for rows x."""
        return self._last_steps((x_HRL @ self._z_HLL).mT).mT

    def _last_steps(self, x_HLC: Tensor) -> Tensor:
        for e_HLL, square_HLL in self._residuals:
            once_HLC = e_HLL @ x_HLC
            rest_HLC = torch.add(x_HLC, once_HLC, alpha=0.25)
            # The last residual is squared for these columns only.
            twice_HLC = e_HLL @ (e_HLL @ rest_HLC) if square_HLL is e_HLL else square_HLL @ rest_HLC
            x_HLC = x_HLC + once_HLC + twice_HLC
        return x_HLC


def _softmax(query_HnK: Tensor, key_HmK: Tensor, count_m: Tensor | None) -> Tensor:
    """Attention (H, n, m) of queries to keys. Key j counts ``count_m[j]`` times, and has the weight of all of
    these together."""
    if count_m is None:
        return (query_HnK @ key_HmK.mT).softmax(dim=-1)
    return torch.baddbmm(count_m.log(), query_HnK, key_HmK.mT).softmax(dim=-1)


def _over_root(x_HnL: Tensor, root_L: Tensor | None) -> Tensor:
    """Columns divided by ``root_L``; the matrix itself where no landmarks are merged."""
    return x_HnL if root_L is None else x_HnL / root_L


class TransMilOptions(EmbeddingOptions):
    """Settings of ``transmil``."""

    dropout: Fraction = 0.0
    """Share of the embedding that is dropped in training; the published model drops none."""
    heads: LayerWidth = 8
    """H; the width of the embedding is a multiple of it."""
    landmarks: LayerWidth | None = None
    """Landmarks of the approximate attention; none: half of the embedding's width, as published."""
    attention_dropout: Fraction = 0.1
    """Share of each attention layer's output that is dropped in training."""


class TransMil(Aggregator):
    """dim: D, a multiple of ``heads``. Each bag is read by itself, so that bags of one step change nothing in
    each other."""

    scores_patches = False
    has_softmax = False
    ordered = True

    def __init__(
        self, dim: int, *, queries: int, heads: int = 8, landmarks: int | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.token_dim = dim
        self.queries = queries
        self.class_token = nn.Parameter(torch.randn(1, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.layers = nn.ModuleList(
            NystromAttention(dim, heads=heads, landmarks=landmarks or max(1, dim // 2), dropout=dropout)
            for _ in range(2)
        )
        self.position = SquarePositions(dim)
        self.norm = nn.LayerNorm(dim)

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        """Tokens (B, T, D), the same for each query, and attention (B, H, T, M).

        The attention is the class token's row of the second layer, where a patch that stands twice on the square
        has the sum of both. It can be negative and need not sum to 1.
        """
        tokens, attentions = [], []
        for bag in range(len(x_BMD)):
            real_m = torch.arange(x_BMD.shape[1], device=x_BMD.device)
            if empty_BM is not None:
                real_m = real_m[~empty_BM[bag]]
            if places_BM is not None:
                real_m = real_m[_reading_order(places_BM[bag].to(x_BMD.device)[real_m])]
            token_D, attention_Hm = self._read_one(x_BMD[bag, real_m])
            tokens.append(token_D)
            attention_HM = x_BMD.new_zeros(len(attention_Hm), x_BMD.shape[1])
            attentions.append(attention_HM.index_copy(1, real_m, attention_Hm.to(attention_HM)))
        rows = (-1, -1, self.queries, -1)
        return Aggregated(
            torch.stack(tokens)[:, None].expand(-1, self.queries, -1),
            torch.stack(attentions)[:, :, None].expand(rows),
        )

    def _read_one(self, x_mD: Tensor) -> tuple[Tensor, Tensor]:
        """The class token (D,) and its attention (H, m) of one bag."""
        count, side = len(x_mD), math.isqrt(len(x_mD) - 1) + 1
        repeated = side * side - count
        x_ND = torch.cat([self.class_token, x_mD, x_mD[:repeated]])
        read_ND, _ = self.layers[0](self.norms[0](x_ND))
        x_ND = self.position(x_ND + read_ND, side)
        read_1D, first_HN = self.layers[1](self.norms[1](x_ND), first_only=True)
        token_D: Tensor = self.norm(x_ND[0] + read_1D[0])
        attention_Hm = first_HN[:, 1 : 1 + count].clone()
        attention_Hm[:, :repeated] += first_HN[:, 1 + count :]
        return token_D, attention_Hm


class SquarePositions(nn.Module):
    """Adds depth-wise convolutions of 7, 5 and 3 to the patches' tokens, laid row by row on a square."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim) for size in (7, 5, 3)
        )

    def forward(self, x_ND: Tensor, side: int) -> Tensor:
        """Add positions to the tokens (1 + side * side, D); the first one, the class token, stays as it is."""
        square_1DSS = x_ND[1:].T.unflatten(1, (side, side))[None]
        kernel_D177, bias_D = self._together()
        placed_1DSS = conv2d(square_1DSS, kernel_D177, bias_D, padding=3, groups=len(bias_D))
        return torch.cat([x_ND[:1], placed_1DSS[0].flatten(1).T])

    def _together(self) -> tuple[Tensor, Tensor]:
        """One kernel (D, 1, 7, 7) and bias (D,) for the three convolutions and the tokens themselves."""
        kernels, biases = [], []
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            kernels.append(pad(convolution.weight, (3 - convolution.kernel_size[0] // 2,) * 4))
            biases.append(convolution.bias)
        itself_177 = torch.zeros_like(kernels[0][0])
        itself_177[:, 3, 3] = 1
        return torch.stack(kernels).sum(dim=0) + itself_177, torch.stack(biases).sum(dim=0)


def _reading_order(places_m: Tensor) -> Tensor:
    """Order of raster indices (m,), or of centres (m, 2) as (x, y): by row, then by column."""
    if places_m.ndim == 1:
        return places_m.argsort(stable=True)
    by_x = places_m[:, 0].argsort(stable=True)
    return by_x[places_m[by_x, 1].argsort(stable=True)]


def _build(options: TransMilOptions, dim: int, tasks: Sequence[TaskConfig]) -> TransMil:
    if dim % options.heads:
        raise ConfigError(
            f"model.aggregator: transmil has {options.heads} heads, which do not divide the embedding's width "
            f"{dim}: set encoder.project to a multiple of them"
        )
    return TransMil(
        dim,
        queries=queries_of(tasks),
        heads=options.heads,
        landmarks=options.landmarks,
        dropout=options.attention_dropout,
    )


KIND = Kind(TransMilOptions, _build, plain_embedding)
