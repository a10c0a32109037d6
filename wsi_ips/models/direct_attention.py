"""Direct attention: each head's mean of the patches goes straight to the classifier.

The paper's block (:mod:`wsi_ips.models.cross_attention`) puts a value projection, a residual on the raw query, an
MLP and two LayerNorms between the patches and the classifier. They dim the first gradients: from many starts the
attention never finds what decides the label. Here nothing stands in between, as in attention MIL (Ilse, Tomczak,
Welling, ICML 2018), so that a logit is a sum over patches and each patch's contribution to it is exact. Attention
itself is the paper's: learned queries, scaled dot products, several heads, each patch scored by itself.

Shape suffixes: B bags, M patches of a bag, T queries, D width, H heads, K key width, C classes; n any number of
patches.
"""

import math

import torch
from torch import Tensor, nn


class DirectAttention(nn.Module):
    """Learned queries read a bag: per query the heads' mean embeddings, concatenated.

    dim: width D of the embeddings. queries: T. heads, key_dim: H and K, as in the paper's block.
    attention_dropout: share of the attention that is dropped in training.
    """

    def __init__(
        self, dim: int, *, queries: int, heads: int, key_dim: int, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.token_dim = heads * dim
        """Width of a query's token: what a task's classifier reads."""
        bound = math.sqrt(1 / key_dim)
        self.query_tokens = nn.Parameter(torch.empty(1, queries, dim).uniform_(-bound, bound))
        self.query = nn.Linear(dim, heads * key_dim, bias=False)
        self.key = nn.Linear(dim, heads * key_dim, bias=False)
        self.attention_dropout = nn.Dropout(attention_dropout)

    def logits(self, x_nD: Tensor) -> Tensor:
        """Attention before the softmax, (n, H, T), of patches one by one: what selection ranks by."""
        query_THK = self.query(self.query_tokens[0]).unflatten(-1, (self.heads, -1))
        key_nHK = self.key(x_nD).unflatten(-1, (self.heads, -1))
        return torch.einsum("thk,nhk->nht", query_THK, key_nHK) / math.sqrt(key_nHK.shape[-1])

    def forward(self, x_BMD: Tensor, empty_BM: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, H * D) and attention_BHTM (before dropout).

        empty_BM: bool, True where a bag has no patch. Such places get no attention, whatever stands in them. Each
        row of the attention sums to 1 over the bag's own patches; a bag without any gives NaN.
        """
        bags, patches, _ = x_BMD.shape
        if empty_BM is not None:
            x_BMD = x_BMD.masked_fill(empty_BM[..., None], 0)  # no attention times NaN would still be NaN
        logits_BHTM = self.logits(x_BMD.flatten(0, 1)).unflatten(0, (bags, patches)).permute(0, 2, 3, 1)
        if empty_BM is not None:
            logits_BHTM = logits_BHTM.masked_fill(empty_BM[:, None, None], -torch.inf)
        attention_BHTM = logits_BHTM.softmax(dim=-1)
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
