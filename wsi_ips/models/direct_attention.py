"""Direct attention: each head's mean of the patches goes straight to the classifier.

The paper's block (:mod:`wsi_ips.models.cross_attention`) puts a value projection, a residual on the raw query, an
MLP and two LayerNorms between the patches and the classifier. They dim the first gradients: from many starts the
attention never finds what decides the label. Here nothing stands in between, as in attention MIL (Ilse, Tomczak,
Welling, ICML 2018), so that a logit is a sum over patches and each patch's contribution to it is exact. Attention
itself is the paper's: learned queries, scaled dot products, several heads, each patch scored by itself.

Shape suffixes: B bags, M patches of a bag, T queries, D width, H heads, C classes.
"""

import torch
from torch import Tensor, nn

from wsi_ips.models.query_attention import QueryAttention


class DirectAttention(QueryAttention):
    """Learned queries read a bag: per query the heads' mean embeddings, concatenated.

    dim, queries, heads, key_dim: see :class:`QueryAttention`. attention_dropout: share of the attention that is
    dropped in training.
    """

    def __init__(
        self, dim: int, *, queries: int, heads: int, key_dim: int, attention_dropout: float = 0.0
    ) -> None:
        super().__init__(dim, queries=queries, heads=heads, key_dim=key_dim)
        self.token_dim = heads * dim
        """Width of a query's token: what a task's classifier reads."""
        self.attention_dropout = nn.Dropout(attention_dropout)

    def forward(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, H * D), and attention_BHTM as :meth:`QueryAttention.attention` gives it."""
        attention_BHTM, x_BMD = self.attention(x_BMD, empty_BM)
        tokens_BTHD = torch.einsum("bhtm,bmd->bthd", self.attention_dropout(attention_BHTM), x_BMD)
        return tokens_BTHD.flatten(2), attention_BHTM

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, weight_CE: Tensor, *, query: int) -> Tensor:
        """What each patch of one bag adds to a linear classifier's outputs, (M, C).

        weight_CE: the classifier's weight, E = H * D, which reads the token of ``query``. The sum over the patches
        plus the classifier's bias is its output, exactly.
        """
        weight_CHD = weight_CE.unflatten(1, (self.heads, -1))
        votes_MHC = torch.einsum("md,chd->mhc", x_MD, weight_CHD)
        return torch.einsum("hm,mhc->mc", attention_HTM[:, query], votes_MHC)
