"""What a checkpoint leaves to its base is equal to it, and comes back from it bit for bit, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.errors import InputError
from tests.support.plain_engine import PlainEngine
from utils.training.base_weights import check_base, fingerprint, still_of_base, take_from_base
from utils.training.checkpoints import Contents, open_step, write_step
from utils.training.stored import Progress, StoredState, WeightRecord

STEP = Path("ckpt_model/global_step3")


class Layers(nn.Module):
    """A trained layer, a frozen one, a buffer, and what is computed from the tower's table."""

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.frozen, self.position_embedding = nn.Linear(2, 2), nn.Linear(2, 3), nn.Embedding(2, 2)
        self.frozen.requires_grad_(False)
        self.position_embedding.requires_grad_(False)
        self.register_buffer("constant", torch.rand(2))


@pytest.fixture
def network() -> Layers:
    torch.manual_seed(0)
    return Layers()


@pytest.fixture
def start(network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_only_what_is_frozen_and_equal_is_left_to_the_base(network, start):
    start["frozen.bias"][0] += 1e-6
    del start["constant"]
    assert set(fingerprint(network, start, dtype=torch.float32)) == {"frozen.weight"}


def test_a_network_of_16_bits_is_equal_to_the_base_that_it_was_cast_from(network, start):
    found = fingerprint(network.to(torch.bfloat16), start, dtype=torch.bfloat16)
    assert set(found) == {"frozen.weight", "frozen.bias", "constant"}
    record = WeightRecord(trained={}, frozen={}, base=found, base_place="base", precision="bf16")
    taken = take_from_base(record, start, step=STEP, base="base")
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in taken.items())


def test_another_base_is_refused_by_the_first_weight_that_differs(network, start):
    record = WeightRecord(
        trained={}, frozen={}, base=fingerprint(network, start, dtype=torch.float32), base_place="", precision="fp32"
    )
    other = {**start, "frozen.weight": start["frozen.weight"] + 1e-6}
    for changed in (other, {name: tensor for name, tensor in start.items() if name != "frozen.weight"}):
        with pytest.raises(InputError, match=r"^mine is not what .*global_step3 was trained from: 1 of 3 weights diff"):
            take_from_base(record, changed, step=STEP, base="mine")
    check_base(record["base"], record["base"], step=STEP, base="mine")
    with pytest.raises(InputError, match="3 of 3 weights differ"):
        check_base({}, record["base"], step=STEP, base="mine")


def test_a_digest_knows_shape_and_type(network, start):
    found = fingerprint(network, start, dtype=torch.float32)
    for changed in (start["frozen.weight"].T, start["frozen.weight"].view(torch.int32)):
        record = WeightRecord(trained={}, frozen={}, base=found, base_place="", precision="fp32")
        with pytest.raises(InputError, match="1 of 3 weights differ"):
            take_from_base(record, {**start, "frozen.weight": changed}, step=STEP, base="mine")


def saved_whole(folder: Path, engine: PlainEngine) -> StoredState:
    """A checkpoint with its own frozen weights, as ``--save_frozen`` and DeepSpeed write it."""
    contents = Contents.of(engine.module, {}, base_place="", precision="fp32")
    progress = Progress(update=0, images_per_update=1, samples=0, processes=1, optimizer_steps=0, schedule_steps=0)
    write_step(engine, folder / "global_step0", progress, contents, describe=lambda folder: None)
    return open_step(folder / "global_step0")


def test_frozen_weights_of_a_checkpoint_that_are_not_the_bases_go_on_being_saved(tmp_path):
    """Else the next checkpoint would leave to the base what it never had."""
    engine = PlainEngine.small()
    stored = saved_whole(tmp_path, engine)
    start = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    base = fingerprint(engine.module, start, dtype=torch.float32)
    assert set(base) == {"0.weight", "0.bias", "constant"}
    assert still_of_base(base, engine.module, stored) == base
    with torch.no_grad():
        engine.module[0].bias[0] += 1e-6  # of a base that was changed since the checkpoint
    assert set(still_of_base(base, engine.module, stored)) == {"0.weight", "constant"}
