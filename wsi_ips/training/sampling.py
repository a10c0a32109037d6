"""How attention sampling learns from slides: only the drawn patches are read closely, and every window learns
from them.

The attention is a softmax over all windows of a slide, so the loss reaches each of them. As for the encoder
(:mod:`wsi_ips.training.learning`), the loss is taken back to the logits first, and the scorer is run once more
over the windows, one chunk at a time: memory is that of a chunk, whatever the size of the slide.

:func:`order_of_epoch` says in which order an epoch shows the bags, whatever the selector. It is a function of
seed and epoch, so that a run resumes exactly.

Shape suffixes: N patches of a slide, W windows (as many as patches), M samples, K samples of all slides, C width
of features.
"""

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsi_ips.config import CoarseConfig, FinetuneConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.errors import ConfigError, WsiIpsError
from wsi_ips.models.ips_net import BagNet, BagsRead
from wsi_ips.models.sampling import entropy_regulariser, sample_softmax
from wsi_ips.models.sampling_net import SamplingNet
from wsi_ips.selection.baselines import seeded
from wsi_ips.selection.coarse_to_fine import look
from wsi_ips.selection.slide_reading import Seen
from wsi_ips.training.bags import Bag
from wsi_ips.training.kept_patches import (
    BagLost,
    KeptPatches,
    PatchKeeper,
    SelectionFigures,
    bag_key,
    coarse_source,
)
from wsi_ips.training.learning import step_loss, take_back
from wsi_ips.training.step_bags import StepBags
from wsi_ips.training.survival import EpochRisks


@dataclass(frozen=True, slots=True)
class SampledBag:
    """What a step learns from in one bag.

    Attributes:
        patches: The patches that were drawn, in the order of the draw.
        index_M: Which of the N patches of the slide they are.
        logits_N: The coarse logits of all patches, without gradients.
    """

    patches: KeptPatches
    index_M: Tensor
    logits_N: Tensor


@dataclass(frozen=True, slots=True)
class SlideLearner:
    """Learns by attention sampling. It is a :class:`wsi_ips.training.module.Method`.

    Attributes:
        net: The network that learns.
        config: The settings of the run.
        keeper: Reads the pixels of the patches.
        weights: ``{task: (C,) weights of its classes}``; None for equal weights.
        backward: Takes the loss back. With mixed precision it is that of the training engine, which scales the
            loss.
    """

    net: SamplingNet
    config: FinetuneConfig
    keeper: PatchKeeper
    weights: Mapping[str, Tensor | None] = field(default_factory=dict)
    backward: Callable[[Tensor], None] = Tensor.backward

    @property
    def remembered(self) -> dict[str, Tensor]:
        """The risks of Cox tasks. Patches are drawn anew in every epoch, so none are remembered."""
        return self.keeper.remembered

    @property
    def watched(self) -> list[SelectionFigures]:
        """Empty, because no memory is kept that could be watched."""
        return self.keeper.watched

    def keep(self, bag: Bag, *, epoch: int, device: torch.device) -> SampledBag:
        """Score the windows of the slide and draw patches. Raises the error of the bag if it cannot be read."""
        key = bag_key(bag, self.config, epoch)
        with self.keeper.bags.open(bag, key, device) as source:
            seen = look(
                self.net,
                coarse_source(source),
                self.config.selection.coarse,
                seen=self.keeper.seen(bag, epoch),
            )
        with torch.no_grad():
            _, samples = self.net.draw(seen.patch_logits(), generator=seeded(key, torch.device("cpu")))
        index_M = samples.index_BN[0]
        ids_M = seen.ids_N[index_M]
        return SampledBag(KeptPatches(bag, ids_M, ids_M, None), index_M, seen.patch_logits())

    @property
    def bags(self) -> StepBags:
        """Opens bags, each once in a step."""
        return self.keeper.bags

    def prepare(self, bag: Bag, *, epoch: int, device: torch.device) -> None:
        """Open a bag that is kept from next, in a thread."""
        self.keeper.prepare(bag, epoch=epoch, device=device)

    def learn(self, kept: Sequence[SampledBag], *, epoch: int, device: torch.device, share: float) -> Tensor:
        """Add the gradients of ``share`` times the mean loss over these bags, and return the mean loss of the
        tasks.

        Raises:
            BagLost: A bag can no longer be read.
            TrainingError: The loss is not finite.
        """
        leaves = [each.logits_N.clone().requires_grad_() for each in kept]
        tasks_loss = torch.zeros(())

        def loss_of(features_KC: Tensor) -> Tensor:
            nonlocal tasks_loss
            maps = [sample_softmax(leaf_N[None], smoothing=self.net.sampling.smoothing) for leaf_N in leaves]
            drawn = [a_1N[0, each.index_M].to(device) for a_1N, each in zip(maps, kept, strict=True)]
            reading = self.net.read_samples(features_KC, drawn)
            targets = [each.patches.bag.targets for each in kept]
            risks = EpochRisks(self.remembered, [each.patches.bag.bag_id for each in kept])
            tasks = self.config.model.tasks
            tasks_loss = step_loss(reading, targets, tasks, weights=self.weights, risks=risks)
            spread = [entropy_regulariser(a_1N, strength=self.net.sampling.entropy) for a_1N in maps]
            return share * (tasks_loss + torch.stack(spread).mean().to(device))

        take_back(
            loss_of,
            self.net.encoder,
            self.keeper,
            [each.patches for each in kept],
            micro_batch=self.config.training.micro_batch,
            epoch=epoch,
            device=device,
            backward=self.backward,
        )
        for each, leaf_N in zip(kept, leaves, strict=True):
            assert leaf_N.grad is not None
            teach_scorer(
                self.net,
                self.keeper.bags,
                each.patches.bag,
                self.config,
                leaf_N.grad,
                epoch=epoch,
                device=device,
                seen=self.keeper.seen(each.patches.bag, epoch),
            )
        return tasks_loss.detach()


def sampling_method(
    net: SamplingNet,
    config: FinetuneConfig,
    weights: Mapping[str, Tensor | None],
    backward: Callable[[Tensor], None] = Tensor.backward,
    penalty: Callable[[BagsRead], Tensor] | None = None,
) -> SlideLearner:
    """The method of attention sampling on slides, for :data:`wsi_ips.training.module.METHODS`.

    For the arguments see :class:`wsi_ips.training.module.MethodMaker`. ``penalty`` is ignored, because
    attention sampling has no aggregator.
    """
    return SlideLearner(net, config, PatchKeeper(net, config), weights, backward)


def teach_scorer(
    net: BagNet,
    bags: StepBags,
    bag: Bag,
    config: FinetuneConfig,
    grad_W: Tensor,
    *,
    epoch: int,
    device: torch.device,
    seen: Seen,
    only: Tensor | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> None:
    """Take a gradient of the logits of windows back to the coarse scorer, one chunk of windows at a time.

    Args:
        net: The network.
        bags: Opens the bags of the step.
        bag: The bag that the windows belong to.
        config: The settings of the run.
        grad_W: The gradient for each window.
        epoch: The epoch, from 0.
        device: Where the network is.
        seen: The augmentation of the bag in this epoch.
        only: The ids, ascending, of the windows that ``grad_W`` is for. None: all windows.
        backward: Takes the loss back. It has to scale the loss if the scale of mixed precision is not in
            ``grad_W`` yet.

    Raises:
        BagLost: The bag can no longer be read.
    """
    coarse: CoarseConfig = config.selection.coarse
    try:
        with bags.open(bag, bag_key(bag, config, epoch), device) as source:
            windows = coarse_source(source).windows(coarse).source
            for chunk in windows if only is None else windows.only(only):
                rows_n = chunk.ids_n if only is None else torch.searchsorted(only, chunk.ids_n)
                logits_n = net.coarse_logits(seen(chunk.pixels_n3PP, chunk.ids_n))
                backward((logits_n * grad_W[rows_n].to(logits_n)).sum())
    except WsiIpsError as error:
        raise BagLost(bag, error) from error


def order_of_epoch(
    targets: Sequence[Mapping[str, Target]], *, seed: int, epoch: int, balanced: bool
) -> list[int]:
    """Indices of the bags in the order in which an epoch shows them, as many as there are bags.

    With ``balanced``, every class is shown equally often, give or take one, so that bags of a rare class come
    several times and not all bags of a frequent one do. An epoch goes on where the last one stopped, so that
    over epochs all bags of a class are shown equally often too. Classes are those of the first softmax task,
    otherwise of the first task that is one yes or no.

    Args:
        targets: ``{task: target}`` of each bag.
        seed: Seed of the run.
        epoch: The epoch, from 0.
        balanced: Whether classes are shown equally often. Otherwise every bag is shown once.

    Raises:
        ConfigError: ``balanced`` is wanted and there is no such task.
    """
    if not balanced:
        return _shuffled(range(len(targets)), f"{seed}/{epoch}")
    members = _by_class(targets)
    drawn = []
    # All epochs together are one endless round of the classes; each epoch takes as many draws as there are bags.
    for draw in range(epoch * len(targets), (epoch + 1) * len(targets)):
        turn, place = divmod(draw, len(members))
        lap, nth = divmod(turn, len(members[place]))
        drawn.append((place, lap, nth))
    # Each lap of a class is shuffled once, however many draws fall into it.
    laps = {(place, lap): _shuffled(members[place], f"{seed}/{place}/{lap}") for place, lap, _ in drawn}
    return _shuffled([laps[place, lap][nth] for place, lap, nth in drawn], f"{seed}/{epoch}")


def _by_class(targets: Sequence[Mapping[str, Target]]) -> list[list[int]]:
    """The bags of each class that occurs, with the classes in their own order."""
    task = next(iter(_with_classes(targets)), None)
    if task is None:
        raise ConfigError(
            "training.sampling: balanced needs a softmax task, or a sigmoid task of one class, that every slide "
            "has a label for; leave it at shuffle"
        )
    members: dict[Hashable, list[int]] = {}
    for index, bag in enumerate(targets):
        members.setdefault(bag[task], []).append(index)
    return [members[value] for value in sorted(members, key=repr)]


def _with_classes(targets: Sequence[Mapping[str, Target]]) -> list[str]:
    """Tasks that bags can be sorted by and that all bags have a label for, softmax tasks first.

    The form of a target tells the kind of the task (:mod:`wsi_ips.datasets.manifest`).
    """
    names = list(dict.fromkeys(name for bag in targets for name in bag))
    softmax = [name for name in names if all(isinstance(bag.get(name), int) for bag in targets)]
    yes_or_no = [name for name in names if all(bag.get(name) in ((0.0,), (1.0,)) for bag in targets)]
    return [*softmax, *yes_or_no]


def _shuffled(indices: Sequence[int], key: str) -> list[int]:
    shuffled = list(indices)
    random.Random(key).shuffle(shuffled)  # noqa: S311 - not a secret
    return shuffled
