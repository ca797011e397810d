"""The page: one viewer, what its events do to the visitor's session, and the two documented endpoints.

Nothing of a visitor is kept outside of their session, which gradio hands to every event and forgets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api
from gradio.utils import get_upload_folder

from model.errors import InputError
from model.serving import SharedPredictor

from .answers import ask, throttled
from .downloads import make_download
from .endpoints import Endpoints, fetch_nothing
from .examples import Example
from .flags import DemoConfig
from .session import Photo, Session
from .uploads import read_upload
from .viewer import make_viewer

TITLE = "PixelLM"
_KEPT = (60, 600)  # once a minute, uploads of more than ten minutes are deleted: what is used is in the session


class Page:
    """What the events of the viewer do.

    Args:
        shared: answers for all visitors.
        examples: which the page offers.
    """

    def __init__(self, shared: SharedPredictor, config: DemoConfig, examples: Sequence[Example]) -> None:
        self.shared, self.config, self.examples = shared, config, examples
        self._answering: dict[str, Session] = {}  # those who wait for an answer, by gradio's name of the tab

    def upload(self, session: Session, event: gr.EventData) -> tuple[Session, dict[str, Any]]:
        """A photo was uploaded; from now on everything is about it."""
        sent = _data(event)
        try:
            upload = read_upload(
                sent.get("path"), sent.get("name"), folder=Path(get_upload_folder()), config=self.config
            )
            session.look_at(Photo.of(upload), self.shared.look_at(upload.pixels), upload.note)
        except InputError as err:
            session.notice = ("error", str(err))
        return session, session.to_json()

    def select(
        self, session: Session, event: gr.EventData, request: gr.Request
    ) -> Iterator[tuple[Session, dict[str, Any]]]:
        """An example was chosen; its question is asked at once."""
        number = _data(event).get("example")
        if not isinstance(number, int) or not 0 <= number < len(self.examples):
            session.notice = ("error", "there is no such example; load the page again")
            yield session, session.to_json()
            return
        example = self.examples[number]
        try:
            session.look_at(example.photo, self.shared.look_at(example.photo.pixels()), None)
        except InputError as err:
            session.notice = ("error", str(err))
            yield session, session.to_json()
            return
        yield session, session.to_json()
        if example.question:
            for value in self._answer(session, example.question, example.kind, request):
                yield session, value

    def submit(self, session: Session, event: gr.EventData, request: gr.Request) -> Iterator[dict[str, Any]]:
        """A question was asked."""
        sent = _data(event)
        yield from self._answer(session, sent.get("question"), sent.get("kind"), request)

    def _answer(self, session: Session, question: Any, kind: Any, request: gr.Request) -> Iterator[dict[str, Any]]:
        visitor = str(request.session_hash)
        self._answering[visitor] = session
        for _ in throttled(ask(session, self.shared, question, kind, self.config)):
            yield session.to_json()
        if session.running is None:
            self._answering.pop(visitor, None)

    def stop(self, session: Session) -> None:
        """The answer is to end; the generator that writes it says so on the page."""
        session.notice = None
        session.stop()

    def leave(self, request: gr.Request) -> None:
        """The tab was closed. Gradio closes the generator that answers, but not while it waits for its turn."""
        session = self._answering.pop(str(request.session_hash), None)
        if session is not None:
            session.stop()

    def clear(self, session: Session) -> dict[str, Any]:
        """Forget the dialogue; the photo stays."""
        session.forget()
        return session.to_json()

    def download(self, session: Session, event: gr.EventData) -> Any:
        """A file was asked for."""
        try:
            return gr.update(file=make_download(session, _data(event)))
        except InputError as err:
            session.notice = ("error", str(err))
        return gr.update(value=session.to_json())


def make_page(shared: SharedPredictor, config: DemoConfig, examples: Sequence[Example] = ()) -> gr.Blocks:
    """The page, not yet served; arguments as of ``Page``."""
    page, endpoints = Page(shared, config, examples), Endpoints(shared, config)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_KEPT) as blocks:
        session = gr.State(Session())
        viewer = make_viewer(
            examples=[example.to_json() for example in examples],
            limits={
                "question": config.max_question,
                "upload_mb": config.max_upload,
                "side": config.max_side,
                "threshold": config.mask_threshold,
                "opacity": config.alpha,
            },
            model=config.version,
        )
        # Any number of these run at the same time: what has to wait, waits in the predictor, which says so.
        always: dict[str, Any] = {
            "api_visibility": "private", "show_progress": "hidden", "queue": True, "concurrency_limit": None,
            "trigger_mode": "multiple",
        }  # fmt: skip
        listeners: tuple[tuple[Callable[..., Any], Any, Any], ...] = (
            (viewer.upload, page.upload, [session, viewer]),
            (viewer.select, page.select, [session, viewer]),
            (viewer.submit, page.submit, viewer),
            (viewer.stop, page.stop, None),
            (viewer.clear, page.clear, viewer),
            (viewer.download, page.download, viewer),
        )
        for listen, does, outputs in listeners:
            listen(does, session, outputs, **always)
        blocks.unload(page.leave)
        api(endpoints.segment, api_name="segment", concurrency_limit=None)
        api(endpoints.segment_names, api_name="segment_names", concurrency_limit=None)
    fetch_nothing(blocks)
    return blocks


def _data(event: gr.EventData) -> dict[str, Any]:
    """What the browser sent with an event; it is not trusted."""
    return event._data if isinstance(event._data, dict) else {}
