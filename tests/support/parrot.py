"""A real merged model that says one sentence: hand-set weights, so that a test knows what chat has to answer.

Attention and MLP of every layer give zero, so the last state is the last token's own embedding, and the head maps
each token of the sentence to the next. Everything else (tower, projectors, decoder) is random and works as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaTokenizer

from model.outputs import output_folder
from model.PixelLM import PixelLMForCausalLM
from model.text.conversation import IMAGE, get_conversation
from model.text.tokens import encode_conversation
from model.weights.checkpoint import MERGED_MODEL


@torch.no_grad()
def teach(network: PixelLMForCausalLM, tokenizer: LlamaTokenizer, sentence: Sequence[int]) -> None:
    """Make the network answer everything with these ids, in which every id may occur once.

    If the last id is not the end mark, the answer starts over after it.
    """
    assert len(set(sentence)) == len(sentence)
    for layer in network.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    rendered = get_conversation(network.config.conv_type).render([("x", None)], image=IMAGE)
    last_of_prompt = encode_conversation(tokenizer, rendered, num_image_tokens=1)[0][-1]
    assert last_of_prompt not in sentence
    width = network.lm_head.in_features
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.functional.normalize(torch.randn(len(sentence) + 1, width, generator=generator))
    network.lm_head.weight.zero_()
    for place, token in enumerate([last_of_prompt, *sentence]):
        network.model.embed_tokens.weight[token] = table[place]
        if place < len(sentence):
            network.lm_head.weight[sentence[place]] += table[place]
    if sentence[-1] != tokenizer.eos_token_id:
        network.lm_head.weight[sentence[0]] += table[-1]


def write_parrot(
    folder: Path, network: PixelLMForCausalLM, tokenizer: LlamaTokenizer, sentence: str, *, source: Path
) -> list[int]:
    """Teach a sentence, save the model with its tower inside, and return the ids it will say."""
    ids = tokenizer(sentence, add_special_tokens=False).input_ids
    teach(network, tokenizer, ids)
    with output_folder(folder, kind=MERGED_MODEL) as partial:  # as the merge does
        network.save_pretrained(partial)
    return ids
