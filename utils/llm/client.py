"""Ask a language model many things at once: every reply is checked, cached, and paid for within a ceiling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from model.errors import InputError

from .budget import Budget, OverCeiling, Tokens
from .cache import ReplyCache
from .connection import Answer, Connection, Endpoint, GivenUp, Refused, Silent, TryAgain
from .replies import BadReply, ReplyType

if TYPE_CHECKING:
    import tenacity

TEMPERATURE = 0.0
# Newer models of OpenAI call the one max_completion_tokens, and have no choice of the other.
_REPLACEABLE = ("max_tokens", "temperature")
# What a chat template may add to a request: marks around each message, a system prompt of its own.
_TEMPLATE_TOKENS = 256


class Message(TypedDict):
    """One message of a request; ``role`` is ``user``, ``system`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True)
class Request:
    """What a model is asked.

    Attributes:
        max_tokens: longest reply.
        reply_type: what the reply must be; None takes any text.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    reply_type: ReplyType | None = None


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Attributes:
        value: the checked object, or the text; None after a failure.
        error: why there is none; empty otherwise.
        is_cached: it was on disk, or an equal request has just been answered.
    """

    value: Any
    error: str = ""
    is_cached: bool = False


class LanguageModel:
    """A model behind an endpoint.

    A server that refuses a JSON schema, or ignores it, is asked for JSON in words from then on.

    Args:
        budget: what may be spent. Before a try, its worst case is reserved: every byte of the request a token, and the
            longest reply. A try that the server refused costs nothing. One that broke off, or whose answer says nothing
            of tokens, is counted with its worst case.
        cache: folder of earlier replies; None keeps none.
    Raises:
        InputError: if the library ``openai`` is not installed, or the endpoint's address is none.
    """

    def __init__(self, endpoint: Endpoint, *, budget: Budget, cache: Path | None = None) -> None:
        self._endpoint, self._budget = endpoint, budget
        self._connection, self._cache = Connection(endpoint), ReplyCache(cache)
        self._stopped = Event()
        self._knows_schemas = True  # until the server shows that it does not
        self._not_taken: set[str] = set()  # of _REPLACEABLE
        self._has_answered = False

    def digest(self, request: Request) -> str:
        """Of everything that a reply depends on but the server: equal requests have the same."""
        content = {
            "model": self._endpoint.model,
            "messages": request.messages,
            "schema": request.reply_type.schema if request.reply_type else None,
            "settings": {"max_tokens": request.max_tokens, "temperature": TEMPERATURE},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def ask_all(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Ask them all, equal ones once, and yield the number of each with its reply, in the order in which they come.

        Raises:
            InputError: for what every request would meet: a refused key, an unknown model, no server at the address.
        """
        same: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            same.setdefault(self.digest(request), []).append(number)
        with ThreadPoolExecutor(self._endpoint.concurrency) as pool:
            pending = {pool.submit(self._ask_or_stop, requests[numbers[0]]): numbers for numbers in same.values()}
            try:
                for done in as_completed(pending):
                    first, *others = pending[done]
                    reply = done.result()
                    yield first, reply
                    yield from ((number, replace(reply, is_cached=not reply.error)) for number in others)
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def ask(self, request: Request) -> Reply:
        """Look the reply up, or ask for it; a failure is a reply with an error.

        Raises:
            InputError: as ``ask_all``.
        """
        digest = self.digest(request)
        known = self._cached(digest, request)
        if known is not None:
            return Reply(known, is_cached=True)
        try:
            value = self._ask_server(request)
        except (GivenUp, TryAgain, OverCeiling) as err:
            return Reply(None, str(err))
        self._cache.put(digest, value)
        return Reply(value)

    def _ask_or_stop(self, request: Request) -> Reply:
        try:
            return self.ask(request)
        except BaseException:
            self._stopped.set()  # here, so that this thread does not take up the next request
            raise

    def _cached(self, digest: str, request: Request) -> Any:
        """What the cache has, if it fits; None otherwise."""
        value = self._cache.get(digest)
        try:
            fits = request.reply_type.check(value) is not None if request.reply_type else isinstance(value, str)
        except BadReply:
            return None
        return value if fits else None

    def _ask_server(self, request: Request) -> Any:
        """Try until there is a reply that fits, at most ``Endpoint.tries`` times."""
        try:
            import tenacity
        except ImportError as err:
            raise InputError(
                'the library tenacity is not installed; install it: pip install -c constraints.txt -e ".[llm]"'
            ) from err
        endpoint = self._endpoint
        backoff = tenacity.wait_random_exponential(multiplier=endpoint.first_pause, max=endpoint.longest_pause)

        def pause(state: tenacity.RetryCallState) -> float:
            err = state.outcome.exception() if state.outcome else None
            wanted = err.pause if isinstance(err, TryAgain) else None
            return 0.0 if wanted is None else max(wanted, backoff(state))

        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TryAgain),
            stop=tenacity.stop_after_attempt(endpoint.tries),
            wait=pause,
            sleep=tenacity.sleep_using_event(self._stopped),
            reraise=True,
        )
        try:
            return tries(self._try, request)
        except Silent as err:
            if self._has_answered:
                raise
            raise InputError(f"{endpoint.url} does not answer: {err}; start the server, or mend the address") from err

    def _try(self, request: Request) -> Any:
        if request.reply_type is None:
            answer = self._say(request, schema=False)
            if not answer.is_whole:
                raise TryAgain(f"the reply was cut off after {request.max_tokens} tokens", pause=None)
            return answer.text
        schema = self._knows_schemas
        try:
            answer = self._say(request, schema=schema)
        except Refused:
            if not schema:
                raise
            answer = self._say(request, schema=False)
            self._knows_schemas = schema = False
        try:
            return request.reply_type.find(answer.text)
        except BadReply as err:
            if not answer.is_whole:
                raise TryAgain(f"the reply was cut off after {request.max_tokens} tokens", pause=None) from err
            if schema:  # where schemas are known, no whole reply is other than asked for
                self._knows_schemas = False
            raise TryAgain(str(err), pause=None) from err

    def _say(self, request: Request, *, schema: bool) -> Answer:
        """Send a request without the parameters that the server was found not to take."""
        while True:
            left_out = frozenset(self._not_taken)
            try:
                return self._send(request, _body(request, self._endpoint.model, schema=schema, left_out=left_out))
            except Refused as err:
                if err.parameter not in _REPLACEABLE or err.parameter in left_out:
                    raise
                self._not_taken.add(err.parameter)

    def _send(self, request: Request, body: dict[str, Any]) -> Answer:
        """One try, within the budget."""
        worst = Tokens(len(json.dumps(body, ensure_ascii=False).encode()) + _TEMPLATE_TOKENS, request.max_tokens)
        self._budget.reserve(worst)
        used: Tokens | None = Tokens()
        try:
            if self._stopped.is_set():
                raise GivenUp("the run was stopped")
            answer = self._connection.post(body)
            used = answer.used
        except TryAgain as err:
            used = used if err.is_free else None
            raise
        finally:
            self._budget.settle(worst, used)
        self._has_answered = True
        return answer


def _body(request: Request, model: str, *, schema: bool, left_out: frozenset[str]) -> dict[str, Any]:
    """A request as the protocol has it; without a schema, the last message asks for JSON in words."""
    messages: list[Message] = [*request.messages]
    body: dict[str, Any] = {"model": model, "messages": messages}
    body["max_completion_tokens" if "max_tokens" in left_out else "max_tokens"] = request.max_tokens
    if "temperature" not in left_out:
        body["temperature"] = TEMPERATURE
    wanted = request.reply_type
    if wanted and schema:
        described = {"name": wanted.name, "schema": wanted.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    elif wanted:
        last = messages[-1]
        messages[-1] = {"role": last["role"], "content": f"{last['content']}\n\n{wanted.in_words()}"}
    return body
