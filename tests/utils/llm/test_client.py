"""The client of language models: what goes wrong is tried again, what was paid for is kept, a ceiling holds."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from typing_extensions import TypedDict

from model.errors import InputError
from tests.support.chat_server import ChatServer, Sent, chat_server
from utils.llm.budget import Budget, OverCeiling, Tokens
from utils.llm.client import LanguageModel, Reply, Request
from utils.llm.connection import KEY_VARIABLE, Endpoint, _retry_after
from utils.llm.replies import BadReply, ReplyType

KEY = "sk-a-very-secret-key"


class Color(TypedDict):
    """What the tests ask for."""

    color: str


COLOR = ReplyType(Color, name="color")
GOOD = '{"color": "red"}'


@pytest.fixture(scope="module")
def pool() -> openai.DefaultHttpxClient:
    """Connections of all clients: reading the certificates takes longer than a test."""
    return openai.DefaultHttpxClient()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, pool: openai.DefaultHttpxClient) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setattr(openai, "OpenAI", partial(openai.OpenAI, http_client=pool))


def make_model(server: ChatServer, *, budget: Budget | None = None, cache: Path | None = None, **patience: Any):
    patience = {"tries": 3, "first_pause": 0.001, "timeout": 5.0} | patience
    return LanguageModel(Endpoint(server.url, "m", **patience), budget=budget or Budget(), cache=cache)


def make_request(text: str = "Which color?", *, max_tokens: int = 20, reply_type: ReplyType | None = COLOR) -> Request:
    return Request(({"role": "user", "content": text},), max_tokens, reply_type)


def ask(server: ChatServer, **options: Any) -> Reply:
    return make_model(server, **options).ask(make_request())


def test_a_reply_is_an_object_that_fits_the_schema():
    with chat_server(GOOD) as server:
        assert ask(server) == Reply({"color": "red"})
    (body,) = server.requests
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["color"]
    assert server.keys == [f"Bearer {KEY}"]


def test_without_a_type_a_reply_is_its_text():
    with chat_server("red, I think") as server:
        assert make_model(server).ask(make_request(reply_type=None)) == Reply("red, I think")
    assert "response_format" not in server.requests[0]


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Sent("slow down", 429), id="429"),
        pytest.param(Sent("oops", 500), id="500"),
        pytest.param(Sent("try later", 503), id="503"),
        pytest.param(Sent(body=b'{"choices": [{"mess'), id="no-json"),
        pytest.param(Sent(body=b'{"choices": []}'), id="no-choice"),
        pytest.param(Sent(body=b"[]"), id="list"),
        pytest.param(Sent(GOOD, claims=100_000), id="broken-connection"),
        pytest.param(Sent("red"), id="no-object"),
        pytest.param(Sent('{"color": 3}'), id="other-type"),
        pytest.param(Sent('{"color": "re', finish_reason="length"), id="cut-off"),
        pytest.param(Sent(body=b'{"choices": [{"message": {"content": null}}]}'), id="no-text"),
    ],
)
def test_what_goes_wrong_is_tried_again_and_in_the_end_listed(failure):
    with chat_server(GOOD, failure, failure, GOOD) as server:
        model = make_model(server)
        assert model.ask(make_request("first")).value
        assert model.ask(make_request("second")) == Reply({"color": "red"})
        assert len(server.requests) == 4
    with chat_server(GOOD, failure) as server:
        model = make_model(server)
        assert model.ask(make_request("first")).value
        reply = model.ask(make_request("second"))
        assert reply.value is None
        assert reply.error
        assert len(server.requests) == 4


def test_a_time_out_is_tried_again():
    never = threading.Event()
    with chat_server(Sent(GOOD, wait=never), GOOD) as server:
        budget = Budget()
        assert ask(server, timeout=0.2, tries=50, budget=budget).value
        never.set()
    assert budget.used == Tokens(10, 5)
    assert budget.assumed.completion in range(20, 1000, 20), "nobody knows what a try without an answer has cost"


def test_the_pause_that_a_server_asks_for_is_kept():
    with chat_server(Sent("slow down", 429, headers={"Retry-After": "0.03"}), GOOD) as server:
        start = time.monotonic()
        assert ask(server, first_pause=0.0).value
        assert time.monotonic() - start >= 0.03


def test_a_pause_is_given_in_seconds_or_as_a_date():
    assert 90 <= _retry_after(formatdate(time.time() + 100, usegmt=True)) <= 100
    assert _retry_after("soon") == _retry_after("nan") == _retry_after("") == _retry_after("-3") == 0
    assert _retry_after("7") == 7


def test_a_pause_beyond_all_patience_is_a_failure_at_once():
    with chat_server(Sent("come back tomorrow", 429, headers={"Retry-After": "86400"})) as server:
        reply = ask(server)
        assert "pause of 86400 s" in reply.error
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_every_request_would_meet_ends_them_all(status):
    with chat_server(Sent(f"Incorrect API key provided: {KEY}", status)) as server:
        model = make_model(server, concurrency=1)
        with pytest.raises(InputError, match="OPENAI_API_KEY, which is set") as caught:
            list(model.ask_all([make_request(str(number)) for number in range(50)]))
        assert KEY not in str(caught.value)
        assert len(server.requests) == 1


def test_an_account_without_credit_ends_them_all():
    body = b'{"error": {"message": "pay first", "code": "insufficient_quota"}}'
    with chat_server(Sent(status=429, body=body)) as server, pytest.raises(InputError, match="no credit left"):
        ask(server)


def test_an_address_without_a_server_is_told_in_one_line():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # taken, and nobody listens
        model = LanguageModel(
            Endpoint(f"http://127.0.0.1:{probe.getsockname()[1]}/v1", "m", tries=2, first_pause=0.001), budget=Budget()
        )
        with pytest.raises(InputError, match="does not answer: no connection"):
            model.ask(make_request())


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_schemas_is_asked_in_words(status):
    def answer(body: dict[str, Any]) -> Sent:
        refuses = "response_format" in body
        return Sent("unknown field", status) if refuses else Sent(f"Sure!\n```json\n{GOOD}\n```", usage=(7, 3))

    budget = Budget()
    with chat_server(answer=answer) as server:
        model = make_model(server, budget=budget)
        assert model.ask(make_request("first")).value == {"color": "red"}
        assert model.ask(make_request("second")).value == {"color": "red"}
    assert ["response_format" in body for body in server.requests] == [True, False, False]
    assert "JSON schema" in server.requests[-1]["messages"][-1]["content"]
    assert (budget.used, budget.assumed) == (Tokens(14, 6), Tokens())


def test_a_server_that_ignores_schemas_is_asked_in_words():
    """As ``transformers serve`` does: no error tells of it, only the content."""

    def answer(body: dict[str, Any]) -> Sent:
        return Sent("It is red." if "response_format" in body else f"<think>{{}}</think>{GOOD}")

    with chat_server(answer=answer) as server:
        model = make_model(server)
        assert model.ask(make_request("first")).value == {"color": "red"}
        assert model.ask(make_request("second")).value == {"color": "red"}
    assert ["response_format" in body for body in server.requests] == [True, False, False]


def test_models_with_other_parameters_are_asked_as_they_want():
    """OpenAI's newer ones take neither ``max_tokens`` nor a temperature."""

    def answer(body: dict[str, Any]) -> Sent:
        refused = [name for name in ("temperature", "max_tokens") if name in body]
        if not refused:
            return Sent(GOOD)
        return Sent(status=400, body=json.dumps({"error": {"message": "unsupported", "param": refused[0]}}).encode())

    with chat_server(answer=answer) as server:
        model = make_model(server, concurrency=3)
        assert model.ask(make_request("first")).value
        assert len(server.requests) == 3
        assert all(reply.value for _, reply in model.ask_all([make_request(str(n)) for n in range(6)]))
        assert len(server.requests) == 9
    assert server.requests[-1]["max_completion_tokens"] == 20
    assert all("response_format" in body for body in server.requests)


def test_a_request_that_is_refused_either_way_is_listed_and_others_keep_their_schemas():
    def answer(body: dict[str, Any]) -> Sent:
        return Sent("too long", 400) if "long" in body["messages"][0]["content"] else Sent(GOOD)

    with chat_server(answer=answer) as server:
        model = make_model(server)
        assert "too long" in model.ask(make_request("long")).error
        assert model.ask(make_request("short")).value
    assert ["response_format" in body for body in server.requests] == [True, False, True]


def test_an_equal_request_is_paid_for_once(tmp_path):
    budget = Budget()
    with chat_server(GOOD) as server:
        model = make_model(server, budget=budget, cache=tmp_path / "cache")
        first = dict(model.ask_all([make_request("a"), make_request("b"), make_request("a")]))
        again = dict(make_model(server, cache=tmp_path / "cache").ask_all([make_request("a"), make_request("b")]))
        assert len(server.requests) == 2
    assert [first[number].is_cached for number in range(3)] == [False, False, True]
    assert all(reply.is_cached and reply.value for reply in again.values())
    assert budget.used == Tokens(20, 10)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"request": "x", "reply": {"color": "blue"}}'])
def test_a_damaged_entry_of_the_cache_is_asked_again(tmp_path, damage):
    with chat_server(GOOD) as server:
        assert ask(server, cache=tmp_path).value
        (entry,) = tmp_path.rglob("*.json")
        entry.write_bytes(damage)
        assert ask(server, cache=tmp_path) == Reply({"color": "red"})
        entry.write_text(entry.read_text(encoding="utf-8").replace('"red"', "7"), encoding="utf-8")
        assert ask(server, cache=tmp_path) == Reply({"color": "red"}), "it does not fit what is asked for"
        assert ask(server, cache=tmp_path).is_cached
        assert len(server.requests) == 3


def test_a_failure_is_not_kept(tmp_path):
    with chat_server(Sent("no", 400), Sent("no", 400), GOOD) as server:
        assert ask(server, cache=tmp_path).error
        assert ask(server, cache=tmp_path).value


@pytest.mark.parametrize("change", ["model", "text", "max_tokens", "schema"])
def test_everything_that_a_reply_depends_on_is_in_the_digest(change):
    class Other(TypedDict):
        shape: str

    with chat_server(GOOD) as server:
        model = make_model(server)
        other = LanguageModel(Endpoint(server.url, "other"), budget=Budget()) if change == "model" else model
    changed = {
        "model": make_request(),
        "text": make_request("Which shape?"),
        "max_tokens": make_request(max_tokens=21),
        "schema": make_request(reply_type=ReplyType(Other, name="color")),
    }[change]
    assert model.digest(make_request()) == model.digest(make_request())
    assert other.digest(changed) != model.digest(make_request())


def test_no_more_requests_at_once_than_allowed():
    """Each answer waits until three requests have come, so that they have to overlap, or a moment has passed."""
    together = threading.Event()

    def answer(_: dict[str, Any]) -> Sent:
        if len(server.requests) >= 3:
            together.set()
        return Sent(GOOD, wait=together)

    with chat_server(answer=answer) as server:
        replies = dict(make_model(server, concurrency=3).ask_all([make_request(str(n)) for n in range(12)]))
    assert all(reply.value for reply in replies.values())
    assert server.most_at_once == 3


@pytest.mark.parametrize("usage", [(300, 20), (30, 2), None])
def test_the_ceiling_holds_with_many_requests_in_flight(usage):
    """Whatever the server counts, the sum stays below, as does the worst case of those in its hands together."""
    with chat_server(Sent(GOOD, usage=usage)) as server:
        worst = _worst_case(make_request("00", reply_type=None), server)
        ceiling = 5 * worst.total + 10
        budget = Budget(ceiling)
        server.requests.clear()
        requests = [make_request(f"{number:02}", reply_type=None) for number in range(40)]
        replies = dict(make_model(server, budget=budget, concurrency=16).ask_all(requests))
    each = sum(usage) if usage else worst.total
    answered = [reply for reply in replies.values() if not reply.error]
    assert len(server.requests) == len(answered)
    assert len(answered) * each <= ceiling
    assert len(answered) * each + worst.total > ceiling or len(answered) == 40, "no room is left unused"
    assert server.most_at_once <= 5
    assert (budget.used + budget.assumed).total == len(answered) * each
    refused = [reply.error for reply in replies.values() if reply.error]
    assert all(f"the ceiling of {ceiling:,} tokens" in error for error in refused)
    assert len(replies) == 40


def _worst_case(request: Request, server: ChatServer) -> Tokens:
    """What the client sets aside for a request, read off a budget."""
    seen: list[Tokens] = []

    class Watched(Budget):
        def reserve(self, worst: Tokens) -> None:
            seen.append(worst)
            super().reserve(worst)

    make_model(server, budget=Watched()).ask(request)
    return seen[0]


def test_a_ceiling_in_money_counts_by_the_two_prices():
    budget = Budget(1.0, prices=(1000.0, 10_000.0))
    budget.reserve(Tokens(500, 40))  # 0.5 + 0.4
    budget.settle(Tokens(500, 40), Tokens(500, 0))
    budget.reserve(Tokens(100, 40))
    budget.settle(Tokens(100, 40), None)
    assert "cost 1.0000" in budget.show_spent()
    assert "140 of them assumed" in budget.show_spent()
    with pytest.raises(OverCeiling, match=r"the ceiling of 1 \(money\)"):
        budget.reserve(Tokens(1, 0))


def test_the_key_lands_nowhere(tmp_path, caplog):
    """A server may send it back: in an error, in a reply, in a header."""
    caplog.set_level(logging.DEBUG)
    said = [Sent(f"bad key {KEY}", 400), Sent(f"bad key {KEY}", 500), Sent(f'{{"color": "{KEY}"}}')]
    with chat_server(said[0], said[0], said[1], said[2]) as server:
        model = make_model(server, cache=tmp_path, concurrency=1)
        replies = dict(model.ask_all([make_request("a"), make_request("b")]))
    assert KEY not in repr(replies)
    assert KEY not in caplog.text
    files = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(KEY in text for text in files)


def test_without_a_key_local_servers_answer(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    with chat_server(GOOD) as server:
        assert ask(server).value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, "red"), (f"x {GOOD} y", "red"), ('{"a": 1} {"color": "red"} {"color": "blue"}', "red"),
        ('{"color": "re\\"d}"}', 're"d}'), ("{" * 5000 + GOOD, "red"),
    ],
)  # fmt: skip
def test_the_first_object_that_fits_is_found(text, found):
    assert COLOR.find(text) == {"color": found}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("red", "no JSON object"), ('["red"]', "no JSON object"), ('{"color": null}', "color is None"),
        ("{}", "color is missing"), ('{"color": "r', "no JSON object"), ("{" * 5000, "no JSON object"),
        ("", "no JSON object"), ('{"hue": 1} {"color": 2}', "color is missing"),
    ],
)  # fmt: skip
def test_why_no_object_fits_is_told(text, problem):
    with pytest.raises(BadReply, match=problem):
        COLOR.find(text)
