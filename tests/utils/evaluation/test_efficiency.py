"""``evaluate.py --efficiency`` counts what the shapes say, and the committed table is what it prints."""

from __future__ import annotations

import pytest
import torch
from transformers import SamConfig, SamModel

from model.context import Context
from model.PixelLM import PixelLMForCausalLM
from model.text.tokens import SegCodebook
from tests.support.tiny_data import tiny_config
from utils.evaluation import efficiency
from utils.evaluation.efficiency import DESCRIPTION, QUESTION, SENTENCE, SYSTEM, Reading, counted, num_parameters

SCALES, TOKENS = 2, 3


@pytest.fixture(scope="module")
def network() -> PixelLMForCausalLM:
    codebook = SegCodebook(SCALES, TOKENS, tuple(range(10, 10 + SCALES * TOKENS)))
    return PixelLMForCausalLM(tiny_config(codebook)).to("meta")


@pytest.fixture(scope="module")
def layout(network) -> efficiency.Layout:
    return efficiency.pixellm_layout("tiny", network, Reading.of(network), (1, 2, 3))


def block_weights(text) -> int:
    """Of the linear layers in the language model's blocks."""
    width = text.hidden_size
    keys = width // text.num_attention_heads * text.num_key_value_heads
    return text.num_hidden_layers * (2 * width * (width + keys) + 3 * width * text.intermediate_size)


def prompt_tokens(config) -> int:
    return SYSTEM + config.llm_grid**2 + QUESTION


def test_every_parameter_belongs_to_one_part(network, layout):
    assert sum(layout.parameters.values()) == num_parameters(network)


def test_the_tower_and_the_projectors_cost_what_their_shapes_say(network, layout):
    config = network.config
    tower, width = config.vision_config, config.text_config.hidden_size
    patches, inner = config.patch_grid**2, config.mm_projector_hidden_dim * width
    tokens, side = patches + 1, tower.hidden_size
    block = 2 * tokens * (4 * side**2 + 2 * side * tower.intermediate_size) + 4 * tokens**2 * side
    run = tower.num_hidden_layers - 1  # the last block is not read
    assert layout.flops[1]["vision tower"] == 2 * patches * side * 3 * config.patch_size**2 + run * block
    projected = config.llm_grid**2 + SCALES * patches
    assert layout.flops[1]["projectors"] == 2 * projected * (side * inner + inner * width)


def test_reading_costs_what_the_shapes_say(network, layout):
    text, tokens = network.config.text_config, prompt_tokens(network.config)
    seen = 4 * text.hidden_size * text.num_hidden_layers  # by a token, of another one
    angles = text.hidden_size // text.num_attention_heads  # of a token: older transformers make them by a product
    prompt = layout.flops[2]["language model, prompt"] - 2 * tokens * block_weights(text) - seen * tokens**2
    assert prompt in (0, tokens * angles)
    answer = SENTENCE + 2 * (DESCRIPTION + SCALES * TOKENS)
    pairs = sum(tokens + number for number in range(1, answer + 1))
    rest = layout.flops[2]["language model, answer"] - 2 * answer * block_weights(text) - seen * pairs
    assert rest in (0, answer * angles)


def test_an_answer_costs_as_much_as_reading_it_token_by_token(network):
    text = network.config.text_config
    context = Context(network.model, num_layers=text.num_hidden_layers)
    parts = [prompt_tokens(network.config)] + 9 * [1]
    prompt, *answer = (counted(context.read, torch.zeros(1, n, text.hidden_size, device="meta"))[0] for n in parts)
    reading = Reading.of(network)
    assert (reading.prompt, reading.answer(9)) == (prompt, sum(answer))


def test_choosing_and_fusing_cost_what_the_shapes_say(network, layout):
    text, out = network.config.text_config, network.config.out_dim
    chosen = SENTENCE + 3 * DESCRIPTION + 3 + 1
    assert layout.flops[3]["lm_head"] == 2 * chosen * text.hidden_size * text.vocab_size
    states = 3 * SCALES * TOKENS
    assert layout.flops[3]["token fusion"] == 2 * states * (text.hidden_size**2 + text.hidden_size * out + out)


def test_the_decoder_costs_the_same_for_every_mask_beside_what_it_does_once(network, layout):
    first, second, third = (layout.flops[count]["pixel decoder"] for count in (1, 2, 3))
    assert first > 2 * first - second > 0
    assert third - second == second - first
    width, out, patches = network.config.text_config.hidden_size, network.config.out_dim, network.config.patch_grid**2
    neck = SCALES * 2 * patches * (width * out + 9 * out**2)
    larger = (SCALES - 1) * 2 * patches * 4 * out**2
    positions = 2 * (patches + 4 * patches * (SCALES - 1)) * 2 * (out // 2)
    assert 2 * first - second == neck + larger + positions


def test_sam_has_the_published_size():
    """637 M in the encoder, 641 M in all; transformers keeps the 256 frequencies of positions twice."""
    sam = efficiency.sam_vit_h()
    assert num_parameters(sam.vision_encoder) == 637_026_048
    assert num_parameters(sam.mask_decoder) == 4_058_340
    assert num_parameters(sam.vision_encoder, sam.prompt_encoder, sam.mask_decoder) == pytest.approx(641.09e6, rel=1e-5)


def test_sam_costs_what_its_shapes_say():
    width, inner, heads, side, window = 32, 64, 4, 8, 3  # in windows of 3, 8 patches are padded to 9
    encoder = {
        "hidden_size": width,
        "mlp_dim": inner,
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "global_attn_indexes": [1],
        "image_size": 16 * side,
        "window_size": window,
        "output_channels": 16,
    }
    with torch.device("meta"):
        sam = SamModel(SamConfig(vision_config=efficiency.SAM_ENCODER | encoder))
    found, _ = counted(sam.vision_encoder, torch.zeros(1, 3, 16 * side, 16 * side, device="meta"))

    def block(num_windows: int, of: int) -> int:
        tokens = num_windows * of**2
        positions = 2 * 2 * tokens * of * width  # of rows and of columns
        linear = 2 * (tokens * 4 * width**2 + side**2 * 2 * width * inner)
        return linear + 4 * tokens * of**2 * width + positions

    patches = 2 * side**2 * width * 3 * 16**2
    neck = 2 * side**2 * (width * 16 + 9 * 16**2)
    assert found == patches + block(9, window) + block(1, side) + neck


def test_lisa_pays_for_every_target(network):
    sam = efficiency.sam_vit_h()
    layout = efficiency.lisa_layout("tiny", network, sam, Reading.of(network), (1, 2, 3))
    costs = [layout.flops[count] for count in (1, 2, 3)]
    part = "SAM prompt encoder and mask decoder"
    assert costs[2][part] - costs[1][part] == costs[1][part] - costs[0][part] > 3e9
    assert len({cost["SAM image encoder"] for cost in costs}) == 1
    tokens, text = [SENTENCE + count * (DESCRIPTION + 1) for count in (1, 2)], network.config.text_config
    assert costs[1]["lm_head"] - costs[0]["lm_head"] == 2 * (tokens[1] - tokens[0]) * text.hidden_size * text.vocab_size


def test_the_committed_table_has_these_numbers(repository):
    """Some of its columns; ``test_the_committed_table_is_what_is_printed`` has all of them."""
    committed = (repository / "benchmarks/efficiency.md").read_text(encoding="utf-8")
    network = efficiency.network_of_size("PixelLM-7B")
    layout = efficiency.pixellm_layout("PixelLM-7B", network, Reading.of(network), (1, 10))
    for part, number in layout.flops[10].items():
        (row,) = (line for line in committed.split("## ")[1].splitlines() if line.startswith(f"| {part} |"))
        assert row.split("|")[3].strip() == f"{layout.flops[1][part] / 1e9:.2f}"
        assert row.split("|")[-2].strip() == f"{number / 1e9:.2f}"


@pytest.mark.long
def test_the_committed_table_is_what_is_printed(repository):
    assert efficiency.efficiency_table() in (repository / "benchmarks/efficiency.md").read_text(encoding="utf-8")
