"""Options of the display of a running training."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from data.errors import InputError
from data.settings.declaration import Nature, Need, option
from data.settings.values import nonnegative_int, port_number, positive_int
from visualization.logger_displays import LOGGERS, check_installed
from visualization.windows import CT_WINDOWS, DisplayWindow, parse_display_window

_VISDOM = Need("display_id")
LOCAL_HOSTS = ("localhost", "127.0.0.1")


@dataclass(frozen=True, kw_only=True)
class DisplaySettings:
    """display: nothing here changes a result or can stop a training."""

    print_freq: int = option(100, nature=Nature.FREE, parse=positive_int, help="steps between printed losses")
    display_freq: int = option(400, nature=Nature.FREE, parse=positive_int, first=True, help="steps between pictures")
    display_ncols: int = option(4, nature=Nature.FREE, parse=positive_int, help="images per row of a picture")
    display_window: DisplayWindow = option(
        CT_WINDOWS["default"], nature=Nature.FREE, nargs="+", metavar="W", convert=parse_display_window,
        help=f"display window of CT: {', '.join(CT_WINDOWS)}, or LEVEL WIDTH in HU",
    )  # fmt: skip
    no_html: bool = option(
        False, nature=Nature.FREE, help="do not write the web page of pictures and loss curves, NAME/web"
    )
    logger: str = option(
        "none", nature=Nature.FREE, choices=LOGGERS,
        first=True, help="also show losses and pictures in TensorBoard or Weights & Biases, which must be installed",
    )  # fmt: skip
    display_id: int = option(
        0, nature=Nature.FREE, parse=nonnegative_int,
        first=True, help="above 0: show losses and pictures in visdom, in windows of this number; 0: no visdom",
    )  # fmt: skip
    display_server: str = option(
        "http://localhost", nature=Nature.FREE, help="address of the visdom server", needs=_VISDOM
    )
    display_port: int = option(
        8097, nature=Nature.FREE, parse=port_number, help="port of the visdom server", needs=_VISDOM
    )
    display_env: str | None = option(
        None, nature=Nature.FREE, help="visdom environment (default: the run's name)", needs=_VISDOM
    )
    display_start: bool = option(
        False, nature=Nature.FREE,
        help="start a visdom server for this run, reachable from this machine only; it ends with the run",
        needs=_VISDOM,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Take the address of a server that is started here in whatever form it has.

        Raises:
            InputError: it is elsewhere, or the logger is not installed.
        """
        check_installed(self.logger)
        if self.display_start:
            object.__setattr__(self, "display_server", local_server(self.display_server))


def local_server(text: str) -> str:
    """Return the address of a visdom server that is started here, in whatever way it is written.

    Raises:
        InputError: it is elsewhere, or says more than a host.
    """
    address = urlsplit(text if "://" in text else f"http://{text}")
    if address.hostname not in LOCAL_HOSTS or address.scheme != "http":
        raise InputError(
            f"--display_start starts a server here, --display_server {text} is elsewhere; expected http://localhost"
        )
    if address.netloc.lower() != address.hostname or address.path.strip("/"):
        raise InputError(f"--display_server {text}: expected http://{address.hostname}, and the port in --display_port")
    return f"http://{address.hostname}"
