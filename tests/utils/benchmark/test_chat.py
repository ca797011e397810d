"""What ``benchmark.py chat`` measures: whole answers that are known beforehand, beside the least that they take."""

from __future__ import annotations

import pytest
import torch

from model import cpu_products
from model.context import Context
from model.replies import Reply
from scripts.benchmark import main
from utils.benchmark.chat import cases_of_batches, cases_of_targets, cases_of_ways
from utils.benchmark.chat_bench import Bench, Case
from utils.benchmark.chat_floor import FlatLayers, copy_bandwidth, weight_bytes

pytestmark = pytest.mark.slow  # some seconds
WORDS, TARGETS = 5, 2


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    return Bench("tiny", words=WORDS, photo=(30, 40), precision="fp32", device=torch.device("cpu"), folder=folder)


@pytest.fixture(scope="module")
def answer(bench) -> Case:
    (case,) = cases_of_targets(bench, [TARGETS])
    bench.time(case)
    return case


def read_by_network(bench: Bench, parts: list[torch.Tensor]) -> torch.Tensor:
    context = Context(bench.network.model, num_layers=4)
    return torch.cat([context.read(part[None])[0] for part in parts])


def read_flat(layers: FlatLayers, row: int, parts: list[torch.Tensor]) -> torch.Tensor:
    states, start = [], 0
    for part in parts:
        states.append(layers.read(part, torch.arange(start, start + len(part)), {row: len(part)}))
        start += len(part)
    return torch.cat(states)


@torch.inference_mode()
def test_the_floor_computes_the_states_of_the_network(bench):
    """A prompt, a word, a group and a word; then another row goes on from the same prompt."""
    parts = list(torch.randn(20, 64).split([12, 1, 6, 1]))
    layers = FlatLayers(bench.network.model, rows=2, room=20)
    flat = read_flat(layers, 0, parts[:1])
    layers.copy(0, 1)
    others = [
        layers.read(part, torch.arange(start, start + len(part)), {1: len(part)})
        for start, part in zip((12, 18), (parts[2], parts[1]), strict=True)
    ]
    together = (
        layers.read(parts[1], torch.tensor([12]), {0: 1}),
        *(
            layers.read(part, torch.arange(start, start + len(part)), {0: len(part)})
            for start, part in zip((13, 19), parts[2:], strict=True)
        ),
    )
    assert torch.allclose(torch.cat([flat, *together]), read_by_network(bench, parts), atol=1e-5)
    expected = read_by_network(bench, [parts[0], parts[2], parts[1]])
    assert torch.allclose(torch.cat([flat, *others]), expected, atol=1e-5)


def test_known_answers_are_given_by_the_loop_that_users_have(bench, answer):
    reply = bench.ask(answer.requests[0])
    assert isinstance(reply, Reply)
    ids = [token for part in answer.requests[0].parts for token in part]
    assert reply.output_ids == [*ids, bench.predictor.processor.tokenizer.eos_token_id]
    assert len(reply.targets) == TARGETS
    assert reply.reason is None
    assert len(answer.requests[0].parts) == WORDS + TARGETS


def test_the_floor_ends_in_the_same_masks(bench, answer):
    reply = bench.ask(answer.requests[0])
    (logits,) = bench.floor.answer(answer.requests)
    differ = (logits > 0) ^ torch.stack([target.mask for target in reply.targets])
    assert differ.float().mean() < 1e-3


@pytest.mark.parametrize("photos", [1, 3])
def test_floors_of_a_batch_are_those_of_its_questions(bench, photos):
    """Photos of their own, or one for all."""
    requests = bench.mixed([bench.photo() for _ in range(photos)], 3)
    together = bench.floor.answer(requests)
    assert [len(masks) for masks in together] == [0, 1, 2]
    for request, masks in zip(requests[:2], together, strict=False):
        assert torch.allclose(masks, bench.floor.answer([request])[0], atol=1e-4)


def test_an_answer_takes_a_pass_for_each_word_and_each_target(bench, answer):
    assert answer.passes == 1 + WORDS + TARGETS, "photo and question in one"
    again = cases_of_ways(bench, TARGETS)[-1]
    bench.predictor.set_image(again.requests[0].photo)
    bench.time(again)
    assert again.passes == 1 + WORDS + TARGETS


def test_the_parts_are_of_the_whole(answer):
    (parts,), (floor,) = answer.parts, answer.floor_parts
    assert set(floor) == set(parts) - {"rest"}
    assert all(seconds > 0 for seconds in (*parts.values(), *floor.values()))
    assert sum(parts.values()) == pytest.approx(answer.median)
    assert answer.peak > 2**20


def test_nothing_stays_in_the_network(bench, answer):
    assert "timed" not in Context.read.__name__
    assert "encode_images" not in vars(bench.network)
    assert vars(bench.network.lm_head)["forward"].func is cpu_products._forward  # what answers take stays in place


def test_every_way_gives_the_known_answer(bench):
    cases = cases_of_ways(bench, 1)
    assert cases[3].name.startswith("generate")
    replies = [cases[0].run(), cases[1].run()[-1], cases[2].run(), cases[3].run()[0], cases[4].run()]
    assert len({tuple(reply.output_ids) for reply in replies}) == 1
    assert [len(reply.targets) for reply in replies] == [1] * 5


def test_several_questions_differ_in_photo_and_length(bench):
    alone, together, kept, shared = cases_of_batches(bench, [1, 4])
    assert len({id(one.photo) for one in together.requests}) == 4
    assert len({len(one.parts) for one in together.requests}) > 1
    assert {id(one.photo) for one in shared.requests} == {id(kept.requests[0].photo)}
    assert (alone.at_once, together.at_once, kept.at_once, shared.at_once) == (1, 4, 0, 4)


def test_bytes_of_a_pass_are_those_of_blocks_and_head(bench):
    blocks, head = weight_bytes(bench.network)
    assert head == 4 * bench.network.lm_head.weight.numel()
    assert blocks == 4 * (4 * (4 * 64 * 64 + 3 * 64 * 176 + 2 * 64) + 64)
    assert copy_bandwidth(torch.device("cpu"), bench.clock, repeats=1) > 1e7


def test_the_command_writes_its_tables(tmp_path, capsys):
    file = tmp_path / "chat.md"
    flags = ["--size=tiny", "--words=4", "--photo=40x30", "--repeats=1", "--targets=0,1", "--batches=1"]
    assert main(["chat", *flags, f"--output_md={file}"]) == 0
    out = capsys.readouterr().out
    assert "tiny, fp32, sdpa: answers of 4 words, photos of 40x30" in out
    rows = [line.split(" | ")[0].strip("| ") for line in out.splitlines() if line.startswith("| ")]
    assert rows == [
        "targets", "0", "- floor", "1", "- floor", "several questions", "one by one",
        "4 about one photo, one by one", "4 about one photo, together",
    ]  # fmt: skip
    assert out.strip() in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("flag", ["--photo=0x40", "--targets=1,,2", "--batches=0"])
def test_work_that_is_none_is_refused(capsys, flag):
    assert main(["chat", flag]) == 2
    assert flag.split("=")[0] in capsys.readouterr().err
