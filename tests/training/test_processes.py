"""Two processes give the gradient of one, however unevenly the slides lie over them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from tests.conftest import SMALL_MODEL
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig
from wsi_ips.models.build import build_net
from wsi_ips.training.kept_patches import PatchKeeper
from wsi_ips.training.learning import Learner
from wsi_ips.training.processes import sum_gradients

CPU = torch.device("cpu")


def config() -> FinetuneConfig:
    model = {**SMALL_MODEL["model"], "attention": {"heads": 2, "key_dim": 8, "value_dim": 8, "inner_dim": 16,
             "dropout": 0.0, "attention_dropout": 0.0}}  # type: ignore[dict-item] # fmt: skip
    return FinetuneConfig.model_validate({**SMALL_MODEL, "model": model, "training": {"micro_batch": 3}})


def learned(slides: int, rank: int, processes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and gradients of one process's share of a step."""
    torch.manual_seed(0)
    net = build_net(config().model).train()
    bags = [MemoryBag(f"slide{n}", torch.rand(6 + n, 3, 32, 32), {"label": n % 2}) for n in range(slides)]
    keeper = PatchKeeper(net, config())
    learner = Learner(net, config(), keeper)
    loss = torch.zeros(())
    if mine := bags[rank::processes]:
        part = len(mine) / slides
        kept = [keeper.keep(bag, epoch=0, device=CPU) for bag in mine]
        loss = part * learner.learn(kept, epoch=0, device=CPU, share=part)
    if processes > 1:
        sum_gradients(net, loss)
    return loss, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def one_of_two(rank: int, folder: str, slides: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(learned(slides, rank, 2), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("slides", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_two_processes_give_the_gradient_of_one(slides: int, tmp_path: Path) -> None:
    """Five slides: three and two. One slide: the second process has none, and takes part with zeros."""
    # Forked: two processes that start anew import all of PyTorch first, which takes longer than the rest.
    multiprocessing.start_processes(one_of_two, (str(tmp_path), slides), nprocs=2, start_method="fork")
    loss, gradients = learned(slides, 0, 1)
    for rank in (0, 1):
        their_loss, theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert float(their_loss) == pytest.approx(float(loss), rel=1e-6)
        for name, gradient in gradients.items():
            assert torch.allclose(theirs[name], gradient, rtol=1e-4, atol=1e-6), name
