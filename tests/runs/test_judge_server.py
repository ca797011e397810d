"""The text judgment against a real server: ``transformers serve`` with a tiny language model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_world import LLAMA
from tests.utils.evaluation.test_judge import lines_of, make_record, mask
from utils.evaluation.judge import judge_rows, read_verdicts
from utils.evaluation.judge_flags import Judge
from utils.llm.budget import Budget, Tokens
from utils.llm.client import LanguageModel, Request
from utils.llm.connection import Endpoint

_STARTED = re.compile(r"Uvicorn running on (http://127\.0\.0\.1:\d+) ")
_SECONDS = 120  # until the server listens
# The prompt is one word, which says whether JSON is asked for in words; each word has one that follows.
_WORDS = ("<unk>", "</s>", "plain", "json", "Certainly!", '{"scores":', "[0.25]}")
_FOLLOWS = {
    "plain": "Certainly!",
    "Certainly!": "</s>",
    "json": '{"scores":',
    '{"scores":': "[0.25]}",
    "[0.25]}": "</s>",
}
_TEMPLATE = "{% if 'JSON schema' in messages[-1].content %}json{% else %}plain{% endif %}"


@torch.no_grad()
def write_model(folder: Path) -> None:
    """Attention and MLP give zero, so the last state is the last word's embedding, which the head maps to the next."""
    vocabulary = {word: number for number, word in enumerate(_WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = {"vocab_size": len(_WORDS), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    network = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **ids}))
    for layer in network.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    network.model.embed_tokens.weight.copy_(torch.eye(len(_WORDS), LLAMA["hidden_size"]))
    network.lm_head.weight.zero_()
    for word, following in _FOLLOWS.items():
        network.lm_head.weight[vocabulary[following], vocabulary[word]] = 1
    network.save_pretrained(folder)


@contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    """Give the address of a server on a free port; its process and all that it started end with the block."""
    command = [Path(sys.executable).with_name("transformers"), "serve", model, "--host", "127.0.0.1", "--port", "0"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*map(str, command), "--device", "cpu"], cwd=log.parent, env=environment, stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        yield _address(process, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := _STARTED.search(log.read_text(encoding="utf-8", errors="replace")):
            return f"{found[1]}/v1"
        time.sleep(0.02)
    pytest.fail(f"transformers serve did not start:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")


@pytest.mark.long
def test_a_real_server_that_ignores_schemas_judges_in_words(tmp_path):
    write_model(tmp_path / "model")
    records = [
        make_record(
            number, numbered="It is [0].", predictions=(mask(0, 0, 10, 9),), phrases=("it",), confidences=(1.0,)
        )
        for number in range(3)
    ]
    with transformers_serve(tmp_path / "model", tmp_path / "server.log") as url:
        judge = Judge(url, str(tmp_path / "model"), concurrency=2, first_pause=0.01, timeout=60.0)
        judge_rows(tmp_path, records, judge)
        budget = Budget()
        model = LanguageModel(Endpoint(url, judge.model, tries=2, first_pause=0.01, timeout=60.0), budget=budget)
        text = Request(({"role": "user", "content": "x"},), max_tokens=9)
        assert model.ask(text).value == "Certainly!"
        assert budget.used == Tokens(1, 2), "a word was read, two were written"
        assert "cut off after 1 tokens" in model.ask(Request(text.messages, max_tokens=1)).error
    assert read_verdicts(tmp_path) == {record.key: (0.25,) for record in records}
    assert len(lines_of(tmp_path)) == 3
