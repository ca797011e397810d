"""The flags of the text judgment, apart from its work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from model.errors import InputError
from model.values import Count, NonNegative, NonNegativeInt, Positive, Share
from utils.cli.args import flag, settings

JUDGE_CACHE = "judge_cache"  # in the output folder, unless another place is named


@dataclass(frozen=True)
class Judge:
    """A language model that judges, and what it may cost.

    Attributes:
        ceiling: tokens, or money where there are prices; 0 sets none.
        prices: of 1,000,000 tokens read and of as many written; None counts tokens.
        cache: folder of replies; None takes one in the output folder.
        timeout: seconds that the server may keep silent.
        tries, first_pause: as of ``utils.llm.connection.Endpoint``.
    """

    url: str
    model: str
    threshold: Share = 0.5
    ceiling: NonNegative = 0
    prices: tuple[NonNegative, NonNegative] | None = None
    concurrency: Count = 4
    cache: Path | None = None
    timeout: Positive = 120.0
    tries: Count = 5
    first_pause: NonNegative = 1.0


@settings
class JudgeFlags:
    """Text judgment of MUSE: whether each mask shows what the answer says."""

    judge: Literal["none", "llm"] = flag("none", "llm: a language model reads the answers, as in the paper")
    judge_url: str = flag("", "OpenAI-compatible endpoint, as http://localhost:8000/v1; key from OPENAI_API_KEY alone")
    judge_model: str = flag("", "name of the model at --judge_url")
    judge_threshold: Share = flag(0.5, "a mask that is given this much or less loses its intersection")
    judge_max_tokens_total: NonNegativeInt = flag(
        10_000_000, "tokens read and written that one run may spend, unless --judge_max_cost is given; 0: any number"
    )
    judge_max_cost: NonNegative = flag(0.0, "money that one run may spend, by the two prices; 0 counts tokens")
    judge_price_in: NonNegative = flag(0.0, "with --judge_max_cost, price of 1,000,000 tokens that the model reads")
    judge_price_out: NonNegative = flag(0.0, "with --judge_max_cost, price of 1,000,000 tokens that it writes")
    judge_concurrency: Count = flag(4, "questions that the model is asked at once")
    judge_timeout: Positive = flag(120.0, "seconds that its server may keep silent")
    judge_cache: str = flag("", "folder of its replies; default: judge_cache in the output folder")

    def __post_init__(self) -> None:
        if self.judge_max_cost and not (self.judge_price_in or self.judge_price_out):
            raise InputError("--judge_max_cost needs --judge_price_in and --judge_price_out; see the provider's list")
        if (self.judge_price_in or self.judge_price_out) and not self.judge_max_cost:
            raise InputError("--judge_price_in and --judge_price_out need --judge_max_cost, what may be spent")
        if self.judge == "none":
            return
        for name, what in (("judge_url", "an OpenAI-compatible endpoint"), ("judge_model", "the name of its model")):
            if not getattr(self, name):
                raise InputError(f"--judge llm needs --{name}; give {what}")
        _check_url(self.judge_url)

    @property
    def chosen_judge(self) -> Judge | None:
        """None if nobody judges."""
        if self.judge == "none":
            return None
        prices = (self.judge_price_in, self.judge_price_out) if self.judge_max_cost else None
        return Judge(
            url=self.judge_url,
            model=self.judge_model,
            threshold=self.judge_threshold,
            ceiling=self.judge_max_cost if prices else self.judge_max_tokens_total,
            prices=prices,
            concurrency=self.judge_concurrency,
            cache=Path(self.judge_cache) if self.judge_cache else None,
            timeout=self.judge_timeout,
        )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise InputError("--judge_url is no address; give one such as http://localhost:8000/v1") from None
    # It is written into settings.json, so the message does not repeat it either.
    if "@" in parts.netloc or parts.query:
        raise InputError("--judge_url holds a user, a password or a query; the key comes from OPENAI_API_KEY alone")
    if not is_address:
        raise InputError(f"--judge_url is {url!r}; expected an address such as http://localhost:8000/v1")
