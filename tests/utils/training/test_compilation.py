"""Compiled blocks keep their names and give the same numbers; where they cannot work, one line says so."""

from __future__ import annotations

import json

import pytest
import torch

from model.errors import InputError
from tests.support.tiny_network import make_batch, make_network
from utils.cli.config import RunConfig
from utils.training.activations import Recomputed
from utils.training.compilation import check_compile, compile_blocks
from utils.training.optimizer import make_muon


@pytest.fixture(autouse=True)
def stance():
    """Whatever other tests have told torch about compiling does not count here."""
    torch.compiler.set_stance("default")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize("blocks", [0, 2])
def test_compiled_blocks_give_the_same_loss_under_the_same_names(tiny_tokenizer_dir, blocks):
    """By torch's own tracer, whose graphs run as they are here: a compiler is not needed."""
    network, tokenizer = make_network(tiny_tokenizer_dir)
    network.train()
    Recomputed(None, blocks).apply(network)
    batch = make_batch(network, tokenizer, [(0, "What?", "This {seg} ."), (1, "And?", "That {seg} .")])
    expected, names = network(**batch.inputs()).loss, list(network.state_dict())
    expected.backward()
    assert network.model.embed_tokens.weight.grad is not None
    gradient = network.model.embed_tokens.weight.grad.clone()
    network.zero_grad()
    try:
        compile_blocks(network, backend="eager")
        found = network(**batch.inputs()).loss
        found.backward()
    finally:
        torch.compiler.reset()
    assert list(network.state_dict()) == names
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(network.model.embed_tokens.weight.grad, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("wanted", [True, False])
def test_muon_on_a_cpu_leaves_compiling_to_the_flag(tiny_tokenizer_dir, wanted):
    network, _ = make_network(tiny_tokenizer_dir)
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    try:
        make_muon(RunConfig(optimizer="muon", compile=wanted, precision="bf16"), network)
        torch.compile(torch.nn.Linear(2, 2), backend=count)(torch.ones(1, 2))
    finally:
        torch.compiler.reset()
    assert bool(graphs) == (wanted or torch.cuda.is_available())


def test_zero_3_is_refused(tmp_path):
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}), encoding="utf-8")
    with pytest.raises(InputError, match="--compile does not go with ZeRO-3"):
        check_compile(RunConfig(compile=True, deepspeed_config=str(tmp_path / "zero.json")))


def test_a_machine_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"--compile needs a C\+\+ compiler, and g\+\+ is not found"):
        check_compile(RunConfig(compile=True))
    check_compile(RunConfig())
