"""The aggregator that docs/aggregators.md writes down works as it stands."""

from pathlib import Path

import torch

from wsi_ips.config import TaskConfig
from wsi_ips.models.aggregators.registry import AGGREGATORS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "aggregators.md"


def test_the_page_s_example_reads_bags_and_the_page_names_every_aggregator() -> None:
    page = PAGE.read_text()
    for name in ("direct", "paper", *AGGREGATORS):
        assert f"| `{name}` |" in page
    (code,) = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    space: dict[str, object] = {"__name__": "deviation"}
    exec(compile(code, str(PAGE), "exec"), space)
    kind = space["KIND"]
    net = kind.build(kind.options(), 4, [TaskConfig()])  # type: ignore[attr-defined]
    bags = [torch.randn(5, 4), torch.randn(2, 4)]
    padded = torch.nn.utils.rnn.pad_sequence(bags, batch_first=True, padding_value=torch.nan)
    out = net.read(padded, padded.isnan().any(dim=2))
    for number, bag in enumerate(bags):
        alone = net.read(bag[None])
        torch.testing.assert_close(out.tokens_BTE[number], alone.tokens_BTE[0])
        torch.testing.assert_close(out.attention_BHTM[number, ..., : len(bag)], alone.attention_BHTM[0])
        torch.testing.assert_close(alone.attention_BHTM.sum(), torch.tensor(1.0))
        torch.testing.assert_close(
            alone.tokens_BTE[0, 0], bag.std(dim=0, unbiased=False), rtol=1e-3, atol=1e-3
        )
