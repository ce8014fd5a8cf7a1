"""The page of a running training, `web/index.html` in the run's folder, for any browser, from the disk.

The page itself is written once; what is new goes into `data/curves.js` and `data/validation.js`, by appending, and into
`data/pictures.js` and `data/validationPictures.js`. All are bounded, so that an update costs the same in any epoch.
"""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from dominate import tags

from data.files import whole_file
from visualization.display import Picture, RunInfo
from visualization.loss_titles import VALIDATION_TITLES, loss_titles
from visualization.pages import add_script, call, new_document, pairs, write_document
from visualization.records import History, LossRecord, Place, Point, ValidationPoint, ValidationRecord

log = logging.getLogger(__name__)

MAX_PICTURES = 200
_PNG_EFFORT = 4


class TrainingPage:
    """The HTML back end."""

    def __init__(self, run: RunInfo) -> None:
        """Write into `web` in the folder of `run`."""
        self.run, self.folder = run, run.folder / "web"
        self._pictures = Gallery(self.folder, "epoch", "pictures")
        self._validation_pictures = Gallery(self.folder, "validation", "validationPictures")

    def restore(self, history: History, start: Place) -> None:
        """Write the whole page again; pictures after `start` are dropped, because their steps are repeated."""
        self._pictures.restore(lambda place: place <= start)
        self._validation_pictures.restore(lambda place: (*place, 1) <= start)
        self._write_curves(history)
        self._write_validations(history)
        write_document(self._document(), self.folder / "index.html")
        log.info("page: %s", self.folder / "index.html")

    def show_losses(self, record: LossRecord, history: History, redraw: bool) -> None:
        """Append a point to the curves; write them anew where earlier ones have changed."""
        if redraw:
            self._write_curves(history)
            return
        with (self.folder / "data/curves.js").open("a", encoding="utf-8") as file:
            file.write(_point_call(history.points[-1], history.names) + _updated_call())

    def show_picture(self, picture: Callable[[], Picture]) -> None:
        """Add a picture. Of earlier epochs the last one stays, and of very many epochs fewer and fewer."""
        self._pictures.add(picture())

    def show_validation(
        self, record: ValidationRecord, history: History, picture: Callable[[], Picture] | None
    ) -> None:
        """Append a point to the curves of the validations, and add their picture."""
        with (self.folder / "data/validation.js").open("a", encoding="utf-8") as file:
            file.write(_validation_call(history.validations[-1]))
        if picture:
            self._validation_pictures.add(picture())

    def close(self) -> None:
        """Say that the training has ended: nobody has to guess whether it still runs."""
        with (self.folder / "data/curves.js").open("a", encoding="utf-8") as file:
            file.write(call("ended"))

    def _write_curves(self, history: History) -> None:
        titles = loss_titles(history.names, self.run.direction)
        lines = [call("begin", history.names, titles)]
        lines += [_point_call(point, history.names) for point in history.points]
        with whole_file(self.folder / "data/curves.js") as scratch:
            scratch.write_text("".join([*lines, _updated_call()]), encoding="utf-8")

    def _write_validations(self, history: History) -> None:
        lines = [call("beginValidation", VALIDATION_TITLES), *map(_validation_call, history.validations)]
        with whole_file(self.folder / "data/validation.js") as scratch:
            scratch.write_text("".join(lines), encoding="utf-8")

    def _document(self):
        run = self.run
        document = new_document(run.name, ("base.css", "training.css"))
        document.body["data-steps"] = str(run.steps_per_epoch)
        for unit, count in (("epochs", run.epochs), ("seconds", run.seconds)):
            if count is not None:
                document.body[f"data-{unit}"] = str(count)
        with document:
            with tags.header():
                tags.h1(run.name)
                tags.p(id="status", role="status")
                box = tags.input_(type="checkbox", id="refresh", checked="checked")
                tags.label(box, " refresh every 30 s", id="refreshing", cls="screen")
            tags.noscript(tags.p("Curves and pictures need JavaScript; pictures alone are in the folder images."))
            _add_pictures("Pictures")
            _add_pictures("Validation", "validation-")
            _add_curves()
            with tags.details(cls="panel"):
                tags.summary("Options")
                pairs(dict(sorted(run.options.items())))
            with tags.details(cls="panel"):
                tags.summary("Versions")
                pairs(run.versions)
        add_script(document, "training.js")
        return document


class Gallery:
    """The pictures of one kind: in `images`, and listed in a file of `data`."""

    def __init__(self, folder: Path, prefix: str, function: str) -> None:
        """Write below `folder`: images whose names begin with `prefix`, and a list that calls the page's `function`."""
        self.folder, self.prefix, self.function = folder, prefix, function
        self._places: list[tuple[int, int]] = []

    def restore(self, keep: Callable[[tuple[int, int]], bool]) -> None:
        """List the pictures that are there and to be kept by their epoch and iteration; the others go."""
        images = self.folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        found = (re.fullmatch(rf"{self.prefix}(\d+)_(\d+)\.png", path.name) for path in images.iterdir())
        places = sorted((int(match[1]), int(match[2])) for match in found if match)
        self._keep(places, [place for place in places if keep(place)])

    def add(self, picture: Picture) -> None:
        """Write a picture and list it."""
        place = (picture.epoch, picture.iteration)
        with whole_file(self._image(place)) as scratch:
            picture.sheet.save(scratch, compress_level=_PNG_EFFORT)
        places = [*self._places, place]
        self._keep(places, thin(places))

    def _image(self, place: tuple[int, int]) -> Path:
        return self.folder / "images" / f"{self.prefix}{place[0]:03d}_{place[1]:06d}.png"

    def _keep(self, places: list[tuple[int, int]], kept: list[tuple[int, int]]) -> None:
        listed = [{"file": self._image(place).name, "epoch": place[0], "iteration": place[1]} for place in kept]
        with whole_file(self.folder / "data" / f"{self.function}.js") as scratch:
            scratch.write_text(call(self.function, listed), encoding="utf-8")
        self._places = kept
        for place in set(places) - set(kept):
            self._image(place).unlink(missing_ok=True)


def thin(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return which pictures to keep, of (epoch, iteration) in order: all of the last epoch, the last of each before.

    Where that is too many, every second one of the older half goes.
    """
    last_of = dict(places)
    newest = places[-1][0]
    kept = [place for place in places if place[0] == newest or last_of[place[0]] == place[1]]
    if len(kept) > MAX_PICTURES:
        half = len(kept) // 2
        kept = kept[:half:2] + kept[half:]
    return kept


def _point_call(point: Point, names: list[str]) -> str:
    losses = [point.losses.get(name) for name in names]
    values = [point.x, point.lr, point.seconds_per_step, *losses]
    return call("point", *(value if value is None else float(f"{value:.5g}") for value in values))


def _updated_call() -> str:
    return call("updated", round(time.time()))


def _validation_call(point: ValidationPoint) -> str:
    return call("validation", point.x, {name: float(f"{value:.5g}") for name, value in point.values.items()})


def _add_pictures(title: str, prefix: str = "") -> None:
    """Add the place of a gallery; `prefix` tells the elements of one from another's."""
    with tags.section(id=f"{prefix}pictures", aria_label=title):
        tags.h2(title)
        with tags.div(cls="controls"), tags.label():
            tags.span("time", cls="name")
            tags.input_(type="range", id=f"{prefix}time", cls="time", min="0", max="0", value="0", step="1")
        with tags.div(cls="pair"):
            with tags.figure(id=f"{prefix}viewer", cls="viewer"):
                tags.img(id=f"{prefix}sheet", alt="")
                tags.figcaption(id=f"{prefix}where")
            tags.ul(id=f"{prefix}earlier", cls="earlier screen", aria_label=f"{title}: all, newest first")


def _add_curves() -> None:
    with tags.section(aria_label="Losses"):
        tags.h2("Losses")
        with tags.div(cls="controls"):
            with tags.label():
                tags.span("smooth", cls="name")
                tags.input_(type="range", id="smooth", min="0", max="0.98", step="0.02", value="0")
            tags.label(tags.input_(type="checkbox", id="log"), " logarithmic")
            tags.button("Whole run", id="whole", type="button", disabled="disabled")
            tags.span(
                "Losses are shown multiplied by their weights. Drag to zoom, double click for the whole run; keys: "
                "arrows, + and -.",
                cls="note",
            )
        tags.div(id="charts", cls="charts")
