"""One try at an OpenAI-compatible endpoint: a request goes out, a checked answer or a sorted failure comes back.

The key comes from the environment variable OPENAI_API_KEY and goes to the endpoint alone. No message holds it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from model.errors import InputError, one_line
from model.files import parse_json
from model.values import NonNegativeInt, Schema

from .budget import Tokens

KEY_VARIABLE = "OPENAI_API_KEY"
_NO_KEY = "none"  # the library demands one; local servers take any
_LONGEST_QUOTE = 300  # letters of what a server says
_HOPELESS = {401: "refuses the key", 403: "refuses access", 404: "knows no such address or model"}
_OUT_OF_CREDIT = "insufficient_quota"  # OpenAI's code; patience does not help


class _Said(TypedDict):
    content: NotRequired[str | None]


class _Choice(TypedDict):
    message: _Said
    finish_reason: NotRequired[str | None]


class _Usage(TypedDict):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class _Completion(TypedDict):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: NotRequired[_Usage | None]


_COMPLETION = Schema(_Completion)


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and with how much patience.

    Attributes:
        url: base address, such as ``http://localhost:8000/v1``.
        timeout: seconds that the server may keep silent.
        tries: of one request, whatever goes wrong.
        first_pause, longest_pause: seconds. A pause is drawn from 0 to ``first_pause``, doubled after every try, but no
            more than the longest. A server that asks for more (Retry-After) gets it, up to the longest.
        concurrency: requests in flight at most.
    """

    url: str
    model: str
    timeout: float = 120.0
    tries: int = 5
    first_pause: float = 1.0
    longest_pause: float = 120.0
    concurrency: int = 4


@dataclass(frozen=True)
class Answer:
    """What a server sent back.

    Attributes:
        is_whole: the model ended the text itself.
        used: tokens; None if the server does not say.
    """

    text: str
    is_whole: bool
    used: Tokens | None


class GivenUp(Exception):
    """A request that will not be answered. It cost nothing."""


class Refused(GivenUp):
    """The server does not take the request as it is.

    Args:
        parameter: the part of the request that it complains about, if it says so.
    """

    def __init__(self, message: str, *, parameter: str = "") -> None:
        super().__init__(message)
        self.parameter = parameter


class TryAgain(Exception):
    """A try that may go better next time.

    Args:
        pause: seconds that the server asks for; None needs no pause at all.
        is_free: it cost nothing.
    """

    def __init__(self, message: str, *, pause: float | None = 0.0, is_free: bool = False) -> None:
        super().__init__(message)
        self.pause = pause
        self.is_free = is_free


class Silent(TryAgain):
    """No answer at all: there was no connection, it broke, or the time was up."""


class Connection:
    """A client of the library ``openai``, without its retries.

    Raises:
        InputError: if the library is not installed, or the endpoint's address is none.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ImportError as err:
            raise InputError(
                "a language model is asked by the library openai, which is not installed; install it: "
                'pip install -c constraints.txt -e ".[llm]"'
            ) from err
        self._endpoint = endpoint
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        self._client = openai.OpenAI(
            api_key=self._key or _NO_KEY, base_url=endpoint.url, timeout=endpoint.timeout, max_retries=0
        )

    def post(self, body: dict[str, Any]) -> Answer:
        """Send a request for a chat completion.

        Args:
            body: as the protocol has it.
        Raises:
            TryAgain: after a time-out, a broken connection, too many requests, or an error inside the server.
            Refused: for any other complaint about this request.
            GivenUp: if the server asks for a longer pause than allowed.
            InputError: for one that every request would meet: the key, the model, the address.
        """
        import openai

        # What the library says of an answer can quote the key, so its errors are not chained to ours.
        try:
            content = self._client.chat.completions.with_raw_response.create(**body).content
        except openai.APITimeoutError:
            raise Silent(f"no answer within {self._endpoint.timeout:g} s") from None
        except openai.APIConnectionError as err:
            raise Silent(f"no connection ({self._quote(err.__cause__ or err)})") from None
        except openai.APIStatusError as err:
            raise self._sorted(err) from None
        return self._read(content)

    def _read(self, content: bytes) -> Answer:
        try:
            found = _COMPLETION.check(parse_json(content, where="the answer", remedy=""), where="the answer", remedy="")
        except InputError as err:
            raise TryAgain(self._quote(err).rstrip("; .")) from None
        choice, usage = found["choices"][0], found.get("usage")
        return Answer(
            text=self._without_key(choice["message"].get("content") or ""),
            is_whole=choice.get("finish_reason") != "length",
            used=Tokens(usage["prompt_tokens"], usage["completion_tokens"]) if usage else None,
        )

    def _sorted(self, err: Any) -> Exception:
        """What an ``openai.APIStatusError`` means for us."""
        status = err.status_code
        detail = err.body.get("message") if isinstance(err.body, dict) else None
        said = f"the server answers {status}: {self._quote(detail or err.message)}"
        hopeless = "says that the account has no credit left" if err.code == _OUT_OF_CREDIT else _HOPELESS.get(status)
        if hopeless:
            return InputError(
                f"{self._endpoint.url} {hopeless} (model {self._endpoint.model}; {said}); the key comes from the "
                f"environment variable {KEY_VARIABLE}, which is {'set' if self._key else 'not set'}"
            )
        if status in (408, 409, 429) or status >= 500:
            pause = _retry_after(err.response.headers.get("retry-after", ""))
            if pause > self._endpoint.longest_pause:
                return GivenUp(f"{said}, and asks for a pause of {pause:.0f} s")
            return TryAgain(said, pause=pause, is_free=status < 500)
        return Refused(said, parameter=err.param or "")

    def _quote(self, said: object) -> str:
        return one_line(self._without_key(str(said)))[:_LONGEST_QUOTE]

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _retry_after(header: str) -> float:
    """Seconds from now, of a number of seconds or a date; 0 for anything else."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if seconds == seconds else 0.0
