"""Curves and pictures of a run in a visdom server's dashboard.

Everything is sent by a thread of its own: a server that is absent, hangs, dies or comes back never makes the training
wait. After every gap the windows are drawn anew from the run's history.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import matplotlib
import numpy as np

from visualization.display import Picture, RunInfo
from visualization.loss_titles import VALIDATION_TITLES, loss_titles
from visualization.records import History, LossRecord, Place, Point, ValidationPoint, ValidationRecord
from visualization.visdom_server import LocalServer

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_CLOSE_SECONDS = 15.0
_TIMEOUTS_S = (3.05, 10.0)
KINDS = ("losses", "rate", "images", "validation", "validation-images")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class VisdomDisplay:
    """The visdom back end. The windows of `--display_id` N are `losses-N`, `rate-N` and `images-N`.

    Where the run validates there are `validation-N` and `validation-images-N`, too.
    """

    def __init__(self, run: RunInfo, server: str, port: int, env: str, display_id: int, start_server: bool) -> None:
        """Show `run` in the environment `env` of a server; `start_server`: of one that is started here."""
        self.run, self.env = run, env
        self.windows = {kind: f"{kind}-{display_id}" for kind in KINDS}
        self.address = (server if "://" in server else f"http://{server}", port)
        self._server = LocalServer(port, run.folder / "visdom") if start_server else None
        self._thread = threading.Thread(target=self._work, name="visdom", daemon=True)
        self._wake = threading.Event()
        self._lock = threading.Lock()  # of the next six
        self._points: list[Point] = []
        self._names: list[str] = []
        self._validations: list[ValidationPoint] = []
        self._pictures: dict[str, Picture] = {}  # by kind of window, the newest
        self._redraw = True
        self._closing = False
        # Of the thread alone:
        self._client: Any = None  # visdom's, which has no types; see `_connect`
        self._points_sent = 0
        self._validations_sent = 0
        self._pictures_sent: dict[str, Picture] = {}
        self._failing = False

    def restore(self, history: History, start: Place) -> None:
        """Draw the curves anew."""
        self._show(history, redraw=True)

    def show_losses(self, record: LossRecord, history: History, redraw: bool) -> None:
        """Add a point to the curves."""
        self._show(history, redraw)

    def show_picture(self, picture: Callable[[], Picture]) -> None:
        """Show a picture in place of the one before."""
        self._show_picture("images", picture())

    def show_validation(
        self, record: ValidationRecord, history: History, picture: Callable[[], Picture] | None
    ) -> None:
        """Add a point to the curves of the validations, and show the picture in place of the one before."""
        self._show(history, redraw=False)
        if picture:
            self._show_picture("validation-images", picture())

    def _show_picture(self, kind: str, picture: Picture) -> None:
        with self._lock:
            self._pictures[kind] = picture
        self._wake.set()

    def close(self) -> None:
        """Send what waits, if the server takes it, and stop a server that was started here."""
        with self._lock:
            self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
        if self._server:
            self._server.stop()

    def _show(self, history: History, redraw: bool) -> None:
        with self._lock:
            self._points, self._names = history.points.copy(), history.names.copy()
            self._validations = history.validations.copy()
            self._redraw |= redraw
        self._wake.set()
        if self._thread.ident is None:
            self._thread.start()

    def _work(self) -> None:
        """Send whenever there is something to send, and try again while the server does not answer."""
        closing = False
        while not closing:
            self._wake.wait(_RETRY_SECONDS if self._failing else None)
            self._wake.clear()
            closing = self._closing  # what was given before is still sent
            try:
                if self._server:
                    self._server.start()
                self._send()
            except Exception as error:  # nothing that happens here may end a training
                if not self._failing:
                    log.warning("warning: visdom: %s; training continues, plots follow when it answers", _reason(error))
                self._failing = True
                with self._lock:
                    self._redraw = True
            else:
                if self._failing:
                    log.info("visdom: %s:%d answers", *self.address)
                self._failing = False

    def _send(self) -> None:
        with self._lock:
            points, names, validations = self._points, self._names, self._validations
            pictures, redraw = self._pictures.copy(), self._redraw
            self._redraw = False
        if self._client is None:
            self._client = _connect(*self.address, self.env)
            # A dashboard opens with the environment "main", which is empty: the link leads to the run's own.
            log.info("visdom: %s:%d/env/%s", *self.address, quote(self.env))
        if redraw or not all(self._client.has(self.windows[kind]) for kind in ("losses", "rate")):
            self._draw(points, names, update=None)
            self._validations_sent, self._pictures_sent = 0, {}
        elif len(points) > self._points_sent:
            self._draw(points[self._points_sent :], names, update="append")
        self._points_sent = len(points)
        if len(validations) != self._validations_sent:
            self._draw_validations(validations)
            self._validations_sent = len(validations)
        for kind, picture in pictures.items():
            if picture is not self._pictures_sent.get(kind):
                self._draw_picture(kind, picture)
                self._pictures_sent[kind] = picture

    def _draw(self, points: list[Point], names: list[str], update: str | None) -> None:
        if not points:
            return
        x = np.array([point.x for point in points])
        losses = np.array([[point.losses.get(name, np.nan) for name in names] for point in points])
        rates = np.array([[point.lr] for point in points])
        logarithmic = {"yaxis": {"type": "log", "exponentformat": "power"}}  # losses differ by orders of magnitude
        titles = [title.together(": ") for title in loss_titles(names, self.run.direction)]
        from_zero = {"yaxis": {"rangemode": "tozero", "exponentformat": "e"}}
        for kind, title, y, legend, width, layout in (
            ("losses", f"{self.run.name}: losses, weighted", losses, titles, 640, logarithmic),
            ("rate", f"{self.run.name}: learning rate", rates, ["learning rate"], 420, from_zero),
        ):
            options = {"title": title, "xlabel": "epoch", "legend": legend, "width": width, "height": 400,
                       "layoutopts": {"plotly": layout}}  # fmt: skip
            self._draw_lines(kind, x, y, options, update)

    def _draw_validations(self, validations: list[ValidationPoint]) -> None:
        """Draw the whole curves: there is one point an epoch at most."""
        x = np.array([point.x for point in validations])
        names = list(dict.fromkeys(name for point in validations for name in point.values))
        y = np.array([[point.values.get(name, np.nan) for name in names] for point in validations])
        titles = [VALIDATION_TITLES.get(name, name) for name in names]
        # HU beside shares of 1: orders of magnitude apart.
        options = {"title": f"{self.run.name}: validation", "xlabel": "epoch", "legend": titles, "width": 640,
                   "height": 400, "markers": True,
                   "layoutopts": {"plotly": {"yaxis": {"type": "log", "exponentformat": "power"}}}}  # fmt: skip
        self._draw_lines("validation", x, y, options, update=None)

    def _draw_lines(self, kind: str, x: np.ndarray, y: np.ndarray, options: dict, update: str | None) -> None:
        """Draw the columns of `y` (points, curves) over `x` (points,), each in a colour of its own."""
        options = options | {"linecolor": colours(y.shape[1])}
        steps = np.repeat(x[:, None], y.shape[1], axis=1)
        if y.shape[1] == 1:  # visdom takes no single column
            y, steps = y[:, 0], steps[:, 0]
        self._client.line(Y=y, X=steps, win=self.windows[kind], opts=options, update=update)

    def _draw_picture(self, kind: str, picture: Picture) -> None:
        place = f"epoch {picture.epoch}, iteration {picture.iteration}"
        what = "validation, " if kind == "validation-images" else ""
        options = {"title": f"{self.run.name}: {what}{place}", "caption": place}
        pixels = np.atleast_3d(np.asarray(picture.sheet)).transpose(2, 0, 1)  # (1 or 3, H, W)
        self._client.image(pixels, win=self.windows[kind], opts=options)


def colours(count: int) -> np.ndarray:
    """Return colours (count, 3), uint8 RGB, of which no two are alike.

    The first twenty are matplotlib's tab20, strong ones before pale ones; visdom's own are ten, and then begin again.
    """
    palette = matplotlib.colormaps["tab20"](np.r_[0:20:2, 1:20:2], bytes=True)[:, :3]
    if count > len(palette):
        palette = matplotlib.colormaps["turbo"](np.linspace(0, 1, count), bytes=True)[:, :3]
    return palette[:count]


def _connect(server: str, port: int, env: str):
    """Return a client of the server that raises whenever it does not answer in time.

    Raises:
        ConnectionError: it does not answer.
    """
    import requests  # here, because importing visdom takes seconds that a run without it should not spend
    import visdom

    class Client(visdom.Visdom):
        """As visdom's, but every request has a limit of time and is checked."""

        def has(self, window: str) -> bool:
            """Return whether a window exists; `win_exists` would print an error instead of raising it."""
            return self._win_exists_wrap(window) == "true"

        def _handle_post(self, url: str, data: str | None = None) -> str:
            with requests.Session() as session:
                # A proxy is for the world outside: nothing of this machine's own goes through it.
                session.trust_env = urlsplit(url).hostname not in _LOOPBACK
                answer = session.post(url, data=data or {}, timeout=_TIMEOUTS_S)
            answer.raise_for_status()
            return answer.text

    logging.getLogger("visdom").setLevel(logging.ERROR)
    try:
        return Client(server=server, port=port, env=env, raise_exceptions=True, use_incoming_socket=False)
    except ConnectionError as error:
        raise ConnectionError(f"no visdom server answers at {server}:{port}") from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
