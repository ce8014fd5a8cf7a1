"""A visdom server of this machine's own, for `--display_start`: reachable from 127.0.0.1 only, ends with the training.

Run as a process: `python -m visualization.visdom_server PORT FOLDER`, it serves until its standard input brings a
byte or ends. Windows are saved in FOLDER.
"""

import contextlib
import io
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)

SCRIPTS_MISSING = (
    "visdom: the scripts of its dashboard are missing and cannot be downloaded, so browsers show an empty page; "
    "install them with bash scripts/visdom_offline.sh. Plots are still recorded"
)
_HOST = "127.0.0.1"
_FETCH_SECONDS = 20
_START_SECONDS = 90
_STOP_SECONDS = 30  # on a busy machine an orderly end, which saves the windows, takes long
# Without these the dashboard is an empty page. visdom notes that it has fetched them even where it has not.
_SCRIPTS = ("jquery.min.js", "react-react.min.js", "react-dom.min.js", "layout_bin_packer.js", "plotly-plotly.min.js")


class LocalServer:
    """A visdom server as a child process. It ends at `stop`, or when this process ends, however that ends."""

    def __init__(self, port: int, folder: Path) -> None:
        """Serve on `port` of 127.0.0.1, and keep windows and the log in `folder`."""
        self.port, self.folder = port, folder
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()  # of the process: it is started in one thread and stopped in another
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the server, unless it runs, and wait until it answers.

        Raises:
            ConnectionError: the port is taken, the server ended at once, or `stop` was called.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()

    def stop(self) -> None:
        """End the server, which saves its windows first. It cannot be started again."""
        self._stopped.set()  # before the lock: a start that is under way gives up
        with self._lock:
            self._end()

    def _start(self) -> None:
        if self._stopped.is_set():
            raise ConnectionError("--display_start: the server was stopped")
        if is_listening(self.port):
            raise ConnectionError(f"--display_start: port {self.port} is taken; choose another --display_port")
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "visualization.visdom_server", str(self.port), str(self.folder.resolve())]
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=Path(__file__).parents[1], bufsize=0,
                start_new_session=True,  # an interrupt from the keyboard is for the training
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while not is_listening(self.port):
            if self._stopped.is_set() or self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise ConnectionError(f"--display_start: the server did not start; see {self.folder / 'server.log'}")
            time.sleep(0.1)
        log.info("visdom: http://%s:%d", _HOST, self.port)
        if not scripts_are_there():
            log.warning("warning: %s", SCRIPTS_MISSING)

    def _end(self) -> None:
        if self._process is None:
            return
        stdin = self._process.stdin
        assert stdin is not None, "it is a pipe"
        with contextlib.suppress(OSError):  # it may have ended by itself
            stdin.write(b".")  # closing is not enough: a process forked meanwhile holds it open
        stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def is_listening(port: int) -> bool:
    """Return whether anything takes connections on a port of 127.0.0.1."""
    try:
        socket.create_connection((_HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def scripts_are_there() -> bool:
    """Return whether visdom's dashboard has what it fetches at its first start."""
    import visdom

    static = Path(visdom.__file__).parent / "static"
    built = static / "version.built"
    if not built.exists() or built.read_text().strip() != visdom.__version__:
        return False
    scripts = [static / "js" / name for name in _SCRIPTS]
    return all(script.is_file() and script.stat().st_size > 0 for script in scripts)


def serve(port: int, folder: Path) -> None:
    """Serve until standard input brings a byte or ends."""
    from tornado.ioloop import IOLoop
    from visdom.server.build import download_scripts
    from visdom.server.run_server import start_server

    def fetch() -> None:
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            download_scripts()

    def end_with_input() -> None:
        sys.stdin.buffer.read(1)  # or the end, where the training was killed
        loop.add_callback(loop.stop)

    if not scripts_are_there():
        socket.setdefaulttimeout(_FETCH_SECONDS / 4)
        fetching = threading.Thread(target=fetch, daemon=True)
        fetching.start()
        fetching.join(_FETCH_SECONDS)  # behind a firewall that swallows packets it would take many minutes
        socket.setdefaulttimeout(None)
    os.environ.pop("HOSTNAME", None)  # visdom would print it for its address
    loop = IOLoop.current()
    threading.Thread(target=end_with_input, daemon=True).start()
    start_server(port=port, base_url="", env_path=f"{folder}/", bind_local=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
