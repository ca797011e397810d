"""What ``benchmark.py memory`` computes is what autograd keeps, and what the committed table says."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from scripts import benchmark
from tests.support.tiny_data import LLAMA
from tests.support.tiny_network import make_network
from utils.benchmark.memory import HARDWARE, bytes_saved, kept_by_a_pass, need_of, preset, sized
from utils.cli.config import RunConfig
from utils.training.lora import set_trained, wrap_lora
from utils.training.start import set_checkpointing

TOKENS = 476
GIB = 2**30


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_activations_are_those_that_autograd_keeps(tiny_world, recomputed, dropout):
    """Of a language model whose states are much larger than what is shared by all blocks."""
    llama = {**LLAMA, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 12}
    network, _ = make_network(tiny_world.llava, text_config=llama)
    wrapped = wrap_lora(network, rank=2, alpha=2, dropout=dropout, names=["q_proj", "v_proj"]).bfloat16()
    set_trained(wrapped)
    wrapped.train()
    set_checkpointing(network.model, enabled=recomputed)
    text = network.config.text_config
    embeds = torch.randn(1, TOKENS, text.hidden_size).bfloat16().requires_grad_()
    found = bytes_saved(lambda: network.model(inputs_embeds=embeds, use_cache=False), wrapped)
    run = RunConfig(batch_size=1, lora_dropout=dropout)
    kept, again = kept_by_a_pass(network.config, run, itemsize=2)
    if recomputed:  # the block that is computed again comes in the backward pass
        again -= kept // text.num_hidden_layers
    assert found == pytest.approx(again if recomputed else kept, rel=0.1)


@pytest.fixture(scope="module")
def wrapped():
    return sized("PixelLM-7B", preset("8x80gb", "PixelLM-7B")[0])


def test_zero_3_divides_weights_and_gathers_some(wrapped):
    run, _ = preset("8x24gb", "PixelLM-7B")
    one, eight = (need_of(wrapped, run, processes=count) for count in (1, 8))
    assert eight.group("weights") == pytest.approx(one.group("weights") / 8)
    assert eight.parts["gathered weights"] == 2 * 650_000_000
    assert "gathered weights" not in one.parts
    assert one.kept == eight.kept


def test_four_bits_and_offload_take_it_off_the_gpu(wrapped):
    run, bits = preset("1x24gb", "PixelLM-7B")
    whole, quantized = (need_of(wrapped, run, processes=1, bits=count) for count in (16, bits))
    # docs/hardware.md has these sizes, computed for inference.
    assert (whole.group("weights") - quantized.group("weights")) / GIB == pytest.approx(13.32 - 4.37, abs=0.02)
    offloaded = need_of(
        wrapped, dataclasses.replace(run, deepspeed_config="configs/ds_zero2_offload.json"), processes=1
    )
    assert offloaded.group("optimizer") == 0
    assert offloaded.host >= whole.group("optimizer")


def test_a_preset_fits_its_gpu_and_not_a_small_one(wrapped):
    run, bits = preset("1x24gb", "PixelLM-7B")
    need = need_of(wrapped, run, processes=1, bits=bits)
    assert [need.fits(size) for size in (24, 14, 8)] == ["kept", "recomputed", "no"]


def test_the_committed_table_is_the_computed_one(repository, capsys):
    assert benchmark.main(["memory"]) == 0
    report = capsys.readouterr().out.strip()
    assert report in (repository / "benchmarks/memory_presets.md").read_text(encoding="utf-8"), "make it anew"
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith(("| 8x", "| 1x"))]
    assert {(row[0].strip("| "), row[1]) for row in rows} == {
        (hardware, name) for hardware in HARDWARE for name in ("PixelLM-7B", "PixelLM-13B")
    }
    assert all(row[-1].strip(" |") in ("kept", "recomputed") for row in rows), "every preset fits"


def test_flags_of_a_run_are_computed_too(repository, capsys):
    files = [f"--config={repository / 'configs' / name}" for name in ("pixellm_13b.json", "hardware/8x80gb.json")]
    assert benchmark.main(["memory", *files, "--size=13b", "--precision=auto"]) == 0
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("| these flags")]
    assert "| PixelLM-13B | 8 x 4 x 5, ZeRO-2 | 25.1 |" in row
