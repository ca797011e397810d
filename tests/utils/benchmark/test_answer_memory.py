"""What ``benchmark.py memory --answers`` computes is what the shapes say, and what the committed table has."""

from __future__ import annotations

import pytest
import torch

from model.context import Context
from scripts import benchmark
from tests.support.tiny_network import make_network
from utils.benchmark.answer_memory import Passing, cache_of_token, peak_of, total
from utils.benchmark.published import published_network, published_run
from utils.benchmark.quantization import memory_of

MIB = 2**20


@pytest.mark.parametrize(
    ("name", "layers", "width", "inner"), [("PixelLM-7B", 32, 4096, 11008), ("PixelLM-13B", 40, 5120, 13824)]
)
def test_weights_are_those_of_the_network(name, layers, width, inner):
    network = published_network(name, published_run(name))
    parts = memory_of(network)
    assert sum(parts.values()) == sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    assert parts["tower"] == sum(weight.nbytes for weight in network.model.vision_tower.parameters())
    assert parts["blocks"] == 2 * layers * (4 * width**2 + 3 * width * inner + 2 * width)
    assert cache_of_token(network) == 2 * layers * 2 * width


def test_a_token_has_the_cache_that_it_takes(tiny_tokenizer_dir):
    network, _ = make_network(tiny_tokenizer_dir)
    text = network.config.text_config
    context = Context(network.model, num_layers=text.num_hidden_layers)
    with torch.no_grad():
        context.read(torch.zeros(2, 7, text.hidden_size))
    layers = context._cache.layers
    assert sum(kept.nbytes for layer in layers for kept in (layer.keys, layer.values)) == 14 * cache_of_token(network)


def test_the_peak_counts_what_is_there_at_once():
    given = torch.zeros(MIB, dtype=torch.uint8)

    def compute() -> torch.Tensor:
        first = given + 1
        second = first + 1
        view = second.view(2, -1)
        del first, second  # the view keeps one of them
        third = view + 1
        del view
        given[:5].zero_()  # memory that was there before
        return torch.cat([third.flatten(), third.flatten()])

    for device in ("cpu", "meta"):
        given = given.to(device)
        assert peak_of(compute) == 3 * MIB


def test_a_tower_aside_is_missed_only_after_the_image():
    weights = {"blocks": 100, "tables": 10, "tower": 20, "masks": 5}
    answering = Passing(image=3, cache=40, reading=6, decoder=2, photo=9)
    assert total(weights, answering) == 135 + 40 + 11
    assert total(weights, answering, offload_vision=True) == 115 + 40 + 11
    looking = Passing(image=30, cache=1, reading=1, decoder=1, photo=1)
    assert total(weights, looking) == total(weights, looking, offload_vision=True) == 165


@pytest.mark.slow
def test_the_committed_table_is_the_computed_one(repository, capsys):
    assert benchmark.main(["memory", "--answers"]) == 0
    report = capsys.readouterr().out.strip()
    assert report in (repository / "benchmarks/memory_answers.md").read_text(encoding="utf-8"), "make it anew"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if "| PixelLM" in line]
    assert len(rows) == 12
    page = (repository / "docs/hardware.md").read_text(encoding="utf-8")
    for row in rows:
        whole, aside, fits = row[-3:]
        assert (
            f"| {row[0]} | {row[1]} | {row[2]} | {sum_of(row[3:7])} | {row[8]} | {whole} | {aside} | {fits} |" in page
        )


def sum_of(cells: list[str]) -> str:
    return f"{sum(map(float, cells)):.1f}"


def test_flags_of_training_do_not_belong_there(capsys):
    assert benchmark.main(["memory", "--answers", "--batch_size=2"]) == 2
    assert "--answers is about the published sizes" in capsys.readouterr().err
