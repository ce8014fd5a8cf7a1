"""What people look at: progress, curves and pictures of a run, results pages, figures.

One interface, `training_log.TrainingLog`, with three back ends (console and files, visdom, HTML page), none of which
can stop a training; `case_page` and `cohort_page` for results; `figures` for papers.
"""

import importlib.util
import os


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


# Jupyter passes the backend of its kernel on to commands (`!python ...`), in whose environment it may not be installed.
_backend = os.environ.get("MPLBACKEND", "")
if _backend.startswith("module://") and not _is_installed(_backend.removeprefix("module://")):
    del os.environ["MPLBACKEND"]
