"""Every ``ips_*.npz`` of the golden folder, through the modules that users train with, in float64 to 1e-10.

The arrays are outputs of the reference implementation. Selection is called while the network is in train
mode, as there. Indices are positions in the shuffled order; the permutation is injected.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import SHARED
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.models.attention import CrossAttention
from wsi_ips.models.encoders.projectors import Projector
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet, RasterSinusoid, scoring
from wsi_ips.selection.memory import Kept, TopMBuffer, attention_scores, select_patches
from wsi_ips.training.kept_patches import PatchKeeper
from wsi_ips.training.learning import Learner, make_optimizer, set_learning_rate
from wsi_ips.training.losses import lr_multiplier, task_loss

FOLDER = Path(os.environ.get("WSI_IPS_GOLDEN", SHARED / "golden"))
FILES = sorted(FOLDER.glob("ips_*.npz"))
EXACT = {"rtol": 0, "atol": 1e-10}

Case = Mapping[str, np.ndarray]


def cases(*, with_: str = "in_patches") -> list[object]:
    """One parameter per file that has the array ``with_``."""
    found = []
    for path in FILES:
        with np.load(path) as arrays:
            if with_ in arrays:
                found.append(pytest.param(path, id=path.stem))
    reason = f"no golden arrays at {FOLDER}; name their folder with WSI_IPS_GOLDEN"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=reason))]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    with np.load(request.param) as arrays:
        return dict(arrays)


class _Conv(nn.Module):
    """The arrays' stand-in for ResNet."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, 3, stride=2, padding=1)
        self.batch_norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.batch_norm(self.conv(x)).relu().mean(dim=(2, 3))


class _Table(nn.Module):
    """The reference's own table: it was computed in float32, which 1e-10 would notice."""

    kind = "ids"

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.table = torch.from_numpy(table).double()

    def forward(self, ids_n: Tensor) -> Tensor:
        return self.table[ids_n]


def tasks_of(case: Case) -> list[TaskConfig]:
    classes = tuple(str(number) for number in range(int(case["cfg_n_class"])))
    rows = zip(case["cfg_task_names"], case["cfg_task_token"], case["cfg_task_act"], strict=True)
    return [
        TaskConfig(name=str(name), classes=classes, activation=str(activation), token=int(token))  # type: ignore[arg-type]
        for name, token, activation in rows
    ]


def named_weights(case: Case) -> dict[str, str]:
    """Their names to ours."""
    norm = ("weight", "bias", "running_mean", "running_var")
    names = {"query_tokens": "attention.query_tokens"}
    names |= {f"attn_{part}_weight": f"attention.{part}.weight" for part in ("query", "key", "value", "out")}
    for theirs, ours in (("attn_ln", "attention_norm"), ("mlp_fc1", "mlp.0"), ("mlp_fc2", "mlp.2"),
                         ("mlp_ln", "mlp_norm")):  # fmt: skip
        names |= {f"{theirs}_{part}": f"attention.{ours}.{part}" for part in ("weight", "bias")}
    for number, task in enumerate(case["cfg_task_names"]):
        names |= {f"head_{task}_{part}": f"heads.layers.{number}.{part}" for part in ("weight", "bias")}
    if str(case["cfg_encoder"]) == "projector":
        names |= {f"projector_linear_{part}": f"projector.linear.{part}" for part in ("weight", "bias")}
        names |= {f"projector_bn_{part}": f"projector.batch_norm.{part}" for part in norm}
    else:
        names |= {f"conv_{part}": f"encoder.conv.{part}" for part in ("weight", "bias")}
        names |= {f"conv_bn_{part}": f"encoder.batch_norm.{part}" for part in norm}
    return names


def net_of(case: Case) -> IPSNet:
    """The case's network with its weights, in train mode and float64."""
    dim, channels = int(case["cfg_D"]), int(case["cfg_n_chan_in"])
    features = str(case["cfg_encoder"]) == "projector"
    encoder = nn.Identity() if features else _Conv(channels, dim)
    projector = Projector(channels, dim) if features else None
    attention = CrossAttention(
        dim,
        queries=int(case["cfg_n_token"]),
        heads=int(case["cfg_H"]),
        key_dim=int(case["cfg_D_k"]),
        value_dim=int(case["cfg_D_v"]),
        inner_dim=int(case["cfg_D_inner"]),
        attention_dropout=0.0,
        dropout=0.0,
    )
    positions = _Table(case["pos_encoding_table"]) if int(case["cfg_use_pos"]) else None
    net = IPSNet(
        encoder, attention, Heads(dim, tasks_of(case)), projector=projector, positions=positions
    ).double()
    weights = {ours: torch.from_numpy(case[f"w_{theirs}"]) for theirs, ours in named_weights(case).items()}
    left = net.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys)
    return net.train()


def orders(case: Case) -> Iterator[Tensor]:
    """Per image, the original index of the patch at each position of the stream."""
    images, n = case["in_patches"].shape[:2]
    for image in range(images):
        if "shuffle_permutation" in case:
            order = case["shuffle_permutation"]
            yield torch.from_numpy(order if order.ndim == 1 else order[image])
        else:
            yield torch.arange(n)


def select(net: IPSNet, case: Case, image: int, order: Tensor, *, cut: int) -> Kept:
    patches = torch.from_numpy(case["in_patches"][image]).double()[order]
    chunks = zip(order.split(cut), patches.split(cut), strict=True)
    with scoring(net):
        return select_patches(
            chunks, encode=net.encode, logits=net.logits, m=int(case["cfg_M"]), i=int(case["cfg_I"])
        )


def assert_close(ours: Tensor, theirs: np.ndarray) -> None:
    """To 1e-10; to single precision where the array was stored so."""
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if theirs.dtype == np.float32 else EXACT
    np.testing.assert_allclose(ours.detach(), theirs, **tolerance)


def ties(case: Case) -> bool:
    return "min_margin_per_iteration" in case and bool((case["min_margin_per_iteration"] <= 1e-12).any())


@pytest.mark.parametrize("case", cases(), indirect=True)
@pytest.mark.parametrize("cut", [3, 1000])
def test_the_kept_patches_are_the_reference_s(case: Case, cut: int) -> None:
    """The same patches in the same order, however the stream is cut."""
    net = net_of(case)
    for image, order in enumerate(orders(case)):
        kept = select(net, case, image, order, cut=cut)
        assert net.training
        if ties(case):
            continue  # which of equals wins is not specified; their scores are compared below
        assert kept.ids_M.tolist() == case["out_selected_index_original"][image].tolist()
        pixels = torch.from_numpy(case["in_patches"][image]).double()[kept.ids_M]
        np.testing.assert_allclose(pixels, case["out_selected_patches"][image], **EXACT)
        np.testing.assert_allclose(kept.emb_MD, case["out_patch_embedding_eval"][image], **EXACT)
        if net.positions is not None:
            encoding_MD = net.positions(kept.ids_M)
            np.testing.assert_allclose(encoding_MD, case["out_selected_pos_encoding"][image], **EXACT)


@pytest.mark.parametrize("case", cases(with_="iter0_candidate_index"), indirect=True)
def test_every_iteration_is_the_reference_s(case: Case) -> None:
    """Each iteration restarts from the stored candidates: embeddings, attention, scores, the choice."""
    net, m = net_of(case), int(case["cfg_M"])
    count = sum(name.endswith("_candidate_index") for name in case)
    for image, order in enumerate(orders(case)):
        patches = torch.from_numpy(case["in_patches"][image]).double()[order]
        for number in range(count):
            candidates = torch.from_numpy(case[f"iter{number}_candidate_index"][image])
            with scoring(net), torch.no_grad():
                emb_LD = net.encode(patches[candidates])
                logits_LHT = net.logits(emb_LD, order[candidates])
            expected_LD = case[f"iter{number}_candidate_embedding"][image]
            np.testing.assert_allclose(emb_LD, expected_LD, **EXACT)
            attention_HTL = logits_LHT.softmax(0).permute(1, 2, 0)
            np.testing.assert_allclose(attention_HTL, case[f"iter{number}_attention_full"][image], **EXACT)
            scores_L = attention_scores(logits_LHT)
            np.testing.assert_allclose(scores_L, case[f"iter{number}_attention_score"][image], **EXACT)
            buffer = TopMBuffer(m=m, i=len(candidates) - m)
            buffer.add(candidates, emb_LD, logits_LHT)
            kept = buffer.finish()
            best = np.sort(case[f"iter{number}_attention_score"][image])[::-1][:m]
            np.testing.assert_allclose(kept.scores_M, best, **EXACT)
            if not ties(case):
                assert kept.ids_M.tolist() == case[f"iter{number}_selected_index"][image].tolist()


@pytest.mark.parametrize("case", cases(with_="out_image_tokens_eval"), indirect=True)
def test_the_labels_read_from_the_kept_patches_are_the_reference_s(case: Case) -> None:
    net = net_of(case).eval()
    ids_BM = torch.from_numpy(case["out_selected_index_original"])
    patches = torch.from_numpy(case["out_selected_patches"]).double().flatten(0, 1)
    with torch.no_grad():
        reading = net(patches, ids_BM.flatten(), [ids_BM.shape[1]] * len(ids_BM))
        x_BMD = net.encode(patches).unflatten(0, ids_BM.shape)
        if net.positions is not None:
            x_BMD = x_BMD + net.positions(ids_BM.flatten()).unflatten(0, ids_BM.shape)
        after_BTD, _ = net.attention.attend(x_BMD)
        for image in range(len(ids_BM)):
            alone = net.read_bag(net.encode(patches).unflatten(0, ids_BM.shape)[image], ids_BM[image])
            np.testing.assert_allclose(alone.tokens_BTD[0], case["out_image_tokens_eval"][image], **EXACT)
    np.testing.assert_allclose(after_BTD, case["out_after_cross_attention_eval"], **EXACT)
    np.testing.assert_allclose(reading.tokens_BTD, case["out_image_tokens_eval"], **EXACT)
    for task in case["cfg_task_names"]:
        np.testing.assert_allclose(reading.probabilities[task], case[f"out_pred_{task}_eval"], **EXACT)


def training_of(case: Case, *, micro_batch: int | None) -> FinetuneConfig:
    """The case's settings, as a user's recipe would say them."""
    tasks = [task.model_dump() for task in tasks_of(case)]
    training = {
        "epochs": int(case["cfg_n_epoch"]),
        "warmup_epochs": int(case["cfg_n_epoch_warmup"]),
        "lr": float(case["cfg_lr"]),
        "weight_decay": float(case["cfg_wd"]),
        "flips": False,
        "micro_batch": micro_batch,
    }
    selection = {"rule": "buffer", "m": int(case["cfg_M"]), "i": int(case["cfg_I"])}
    return FinetuneConfig.model_validate(
        {"training": training, "selection": selection, "streaming": {"batch": 7}, "model": {"tasks": tasks}}
    )


def bags_of(case: Case) -> list[MemoryBag]:
    patches = torch.from_numpy(case["in_patches"]).double()
    targets = {task.name: case[f"in_label_{task.name}"] for task in tasks_of(case)}
    return [
        MemoryBag(
            f"image{b}",
            patches[b],
            {name: int(of[b]) if of[b].dtype.kind == "i" and of.ndim == 1 else tuple(np.atleast_1d(of[b]))
             for name, of in targets.items()},
        )
        for b in range(len(patches))
    ]  # fmt: skip


@pytest.mark.parametrize("case", cases(with_="train_loss"), indirect=True)
def test_a_training_step_is_the_reference_s(case: Case) -> None:
    """Losses, every gradient, the AdamW step and BatchNorm's running statistics: selection, learning, optimiser
    and schedule as the Lightning module calls them. An encoder with batch statistics needs one graph; stored
    features go through the gradient cache too."""
    features = str(case["cfg_encoder"]) == "projector"
    for micro_batch in (None, 4) if features else (None,):
        step_and_compare(net_of(case), training_of(case, micro_batch=micro_batch), case)


def step_and_compare(net: IPSNet, config: FinetuneConfig, case: Case) -> None:
    keeper, cpu = PatchKeeper(net, config), torch.device("cpu")
    kept = [keeper.keep(bag, epoch=0, device=cpu) for bag in bags_of(case)]
    optimizer = make_optimizer(net, config.training)
    loss = Learner(net, config, keeper).learn(kept, epoch=0, device=cpu, share=1)
    assert_close(loss, case["train_loss"])
    set_learning_rate(
        optimizer.param_groups,
        int(case["cfg_step"]) - 1,
        training=config.training,
        per_epoch=int(case["cfg_steps_per_epoch"]),
    )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(float(case["train_lr"]), rel=1e-12)
    ours = dict(net.named_parameters())
    for theirs, name in named_weights(case).items():
        if f"train_grad_{theirs}" in case:
            assert_close(ours[name].grad, case[f"train_grad_{theirs}"])
    optimizer.step()
    state = net.state_dict()
    for theirs, name in named_weights(case).items():
        assert_close(state[name], case[f"train_after_step_{theirs}"])


@pytest.mark.parametrize("case", cases(with_="train_loss"), indirect=True)
def test_the_loss_of_every_task_is_the_reference_s(case: Case) -> None:
    net = net_of(case)
    kept = [select(net, case, image, order, cut=7) for image, order in enumerate(orders(case))]
    patches = torch.cat(
        [torch.from_numpy(case["in_patches"][b]).double()[k.ids_M] for b, k in enumerate(kept)]
    )
    reading = net(patches, torch.cat([k.ids_M for k in kept]), [len(k.ids_M) for k in kept])
    for task in tasks_of(case):
        target = torch.from_numpy(case[f"in_label_{task.name}"])
        loss = task_loss(reading.logits[task.name], target, activation=task.activation)
        assert_close(loss, case[f"train_loss_{task.name}"])


@pytest.mark.parametrize("case", cases(with_="a_max_lr"), indirect=True)
def test_schedule_and_encodings_are_the_reference_s(case: Case) -> None:
    for name in (name.removesuffix("_max_lr") for name in case if name.endswith("_max_lr")):
        epochs, warmup, per_epoch = (int(value) for value in case[f"{name}_params_nepoch_nwarm_L"])
        expected = case[f"{name}_lr_at_step_1_to_T"]
        ours = [
            float(case[f"{name}_max_lr"])
            * lr_multiplier(step, warmup=warmup * per_epoch, total=epochs * per_epoch)
            for step in range(1, len(expected) + 1)
        ]
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
    # The reference's tables are float32: their phases are off by up to index * 1e-7.
    np.testing.assert_allclose(RasterSinusoid(32)(torch.arange(40)), case["pos_enc_D32_N40"], atol=1e-5)
    rows = torch.tensor([0, 1, 449, 899])
    expected = case["pos_enc_D128_N900_rows_0_1_449_899"]
    np.testing.assert_allclose(RasterSinusoid(128)(rows), expected, atol=2e-4)
