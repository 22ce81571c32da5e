"""Losses and miners of pytorch-metric-learning by name: each that can be named trains, and mistakes are named."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners
from slow_losses import batch
from torch import nn

from lookalike.errors import InputError
from lookalike.extras import install_command
from lookalike.losses.pml import LibraryLoss, classes, options_of

LOSSES = classes(losses, losses.BaseMetricLossFunction)
MINERS = classes(miners, miners.BaseMiner)
NEEDED: dict[str, dict[str, Any]] = {"RankedListLoss": {"margin": 1, "Tn": 5}}


def make(name: str, options: dict[str, Any] | None = None, miner: str = "", **more: Any) -> LibraryLoss:
    torch.manual_seed(0)
    return LibraryLoss(name, {**NEEDED.get(name, {}), **(options or {})}, miner, more or None, num_classes=5, dim=8)


def test_which_there_are() -> None:
    assert {
        "TripletMarginLoss",
        "ContrastiveLoss",
        "ArcFaceLoss",
        "NormalizedSoftmaxLoss",
        "SoftTripleLoss",
    } <= LOSSES.keys()
    assert {"MultiSimilarityMiner", "BatchHardMiner", "DistanceWeightedMiner"} <= MINERS.keys()
    frames = {"BaseMetricLossFunction", "GenericPairLoss", "CrossBatchMemory", "MultipleLosses", "SelfSupervisedLoss"}
    assert not frames & LOSSES.keys()
    assert not {"BaseMiner", "EmbeddingsAlreadyPackagedAsTriplets"} & MINERS.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(name: str) -> None:
    embeddings, labels = batch()
    loss = make(name)
    torch.manual_seed(1)
    value = loss(embeddings, labels)
    value.backward()
    assert value.ndim == 0
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.abs().max() > 0


@pytest.mark.parametrize("name", MINERS)
def test_every_miner_serves_a_loss(name: str) -> None:
    embeddings, labels = batch()
    loss = make("TripletMarginLoss", {}, name)
    torch.manual_seed(1)
    value = loss(embeddings, labels)
    value.backward()
    torch.manual_seed(1)
    miner = MINERS[name]()
    assert torch.equal(value, losses.TripletMarginLoss()(embeddings, labels, miner(embeddings, labels)))
    assert embeddings.grad.abs().max() > 0


def test_options_reach_loss_miner_and_distance() -> None:
    embeddings, labels = batch()
    options = {"margin": 0.4, "swap": True, "distance": "CosineSimilarity"}
    loss = make("TripletMarginLoss", options, "TripletMarginMiner", margin=0.1, type_of_triplets="semihard")
    miner = miners.TripletMarginMiner(margin=0.1, type_of_triplets="semihard")
    direct = losses.TripletMarginLoss(0.4, True, distance=distances.CosineSimilarity())
    assert torch.equal(loss(embeddings, labels), direct(embeddings, labels, miner(embeddings, labels)))
    assert not torch.equal(loss(embeddings, labels), make("TripletMarginLoss")(embeddings, labels))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ArcFaceLoss", {"W": (8, 5)}),
        ("SubCenterArcFaceLoss", {"W": (8, 15)}),
        ("NormalizedSoftmaxLoss", {"W": (8, 5)}),
        ("ProxyAnchorLoss", {"proxies": (5, 8)}),
        ("P2SGradLoss", {"weight": (8, 5)}),
    ],
)
def test_losses_with_weights_get_classes_and_dimension(name: str, weights: dict[str, tuple[int, int]]) -> None:
    loss = make(name)
    assert {key.removeprefix("loss."): tuple(p.shape) for key, p in loss.named_parameters()} == weights
    loss(*batch()).backward()
    for parameter in loss.parameters():
        assert parameter.grad.abs().max() > 0


def test_bf16_embeddings_are_computed_in_float32() -> None:
    embeddings, labels = batch()
    rough = embeddings.detach().bfloat16().requires_grad_()
    for name in ("TripletMarginLoss", "ArcFaceLoss"):
        loss = make(name)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(rough, labels)
        value.backward()
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(rough.float(), labels))
        assert all(parameter.dtype == torch.float32 for parameter in loss.parameters())


def test_a_batch_without_pairs_is_zero_and_still_trains() -> None:
    embeddings, _ = batch()
    labels = torch.arange(len(embeddings))
    for name, miner in (("TripletMarginLoss", ""), ("MultiSimilarityLoss", "MultiSimilarityMiner")):
        embeddings.grad = None
        value = make(name, {}, miner)(embeddings, labels)
        value.backward()
        assert float(value.detach()) == 0
        assert embeddings.grad.count_nonzero() == 0


@pytest.mark.parametrize("miner", ["", "DistanceWeightedMiner", "MultiSimilarityMiner"])
def test_what_is_not_finite_shows(miner: str) -> None:
    embeddings, labels = batch()
    embeddings.data[3, 2] = torch.nan
    value = make("TripletMarginLoss", {}, miner)(embeddings, labels)
    value.backward()
    assert torch.isnan(value)


def test_making_one_draws_only_its_weights() -> None:
    make("TripletMarginLoss", {}, "DistanceWeightedMiner")
    left = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(left, torch.rand(1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("TripletMargin",), "loss.name: pytorch-metric-learning has no loss 'TripletMargin'. Did you mean 'TripletM"),
        (("VICRegLoss",), "has no loss 'VICRegLoss'"),
        (("TripletMarginLoss", {"margn": 1}), "loss.options: 'TripletMarginLoss' has no option 'margn'. Did you"),
        (("ArcFaceLoss", {"num_classes": 3}), "has no option 'num_classes'"),
        (("ArcFaceLoss", {"reducer": "MeanReducer"}), "has no option 'reducer'"),
        (("ContrastiveLoss", {"distance": "Cosine"}), "no distance 'Cosine'. Did you mean 'CosineSimilarity'"),
        (("RankedListLoss",), "loss.options: 'RankedListLoss' refuses no options"),
        (("SoftTripleLoss", {"centers_per_class": "many"}), "refuses centers_per_class='many'"),
        (("ContrastiveLoss", {"pos_margin": "big"}), "pml/ContrastiveLoss cannot be computed"),
        (("TripletMarginLoss", {}, "BatchHarderMiner"), "loss.miner: pytorch-metric-learning has no miner 'BatchHard"),
        (("SupConLoss", {}, "HDCMiner", {"percent": 1}), "loss.miner_options: 'HDCMiner' has no option 'percent'"),
        (("TripletMarginLoss", {}, "", {"epsilon": 1}), "loss.miner_options: there is no miner"),
        (("InstanceLoss", {}, "HDCMiner"), "pml/InstanceLoss with HDCMiner cannot be computed"),
    ],
)  # fmt: skip
def test_mistakes_are_named(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError) as caught:
        LibraryLoss(*arguments, num_classes=5, dim=8)
    assert says in caught.value.message
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_library_that_is_not_there_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(InputError, match="pml/TripletMarginLoss: pytorch-metric-learning cannot be imported") as caught:
        make("TripletMarginLoss")
    assert caught.value.remedy == f"Install it: {install_command('metric-learning')}"


def test_options_are_those_a_recipe_can_give() -> None:
    assert options_of(LOSSES["SubCenterArcFaceLoss"]) == ["distance", "margin", "scale", "sub_centers"]
    assert options_of(LOSSES["SignalToNoiseRatioContrastiveLoss"]) == ["distance", "neg_margin", "pos_margin"]
    assert options_of(MINERS["MultiSimilarityMiner"]) == ["distance", "epsilon"]


def test_it_is_a_module_whose_weights_are_saved() -> None:
    one, other = make("ArcFaceLoss"), make("ArcFaceLoss")
    nn.init.zeros_(other.loss.W)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.loss.W, other.loss.W)
