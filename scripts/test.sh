#!/usr/bin/env bash
# Install the requirements into .venv, check style and types, and run all tests except the slow ones.
# Arguments go to pytest. With the slow tests: bash scripts/test.sh -m ""
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh tests/requirements.txt

# A run without a network still passes, but says at its end what it could not test. Pytest lists every skipped test with
# its reason there (-ra in pyproject.toml).
untested=()
report_untested() {
    local code=$? what
    for what in "${untested[@]+"${untested[@]}"}"; do
        echo "${GITHUB_ACTIONS:+::warning::}NOT TESTED: $what"
    done
    exit "$code"
}
trap report_untested EXIT

# Pages are tested in a browser, and visdom's dashboard with its scripts. A CI machine gets both; elsewhere these tests are
# skipped where they are missing.
if [ -n "${CI:-}" ]; then
    if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
            >/dev/null || echo "Chromium cannot be installed here: tests of pages are skipped"
    fi
    command -v chromium chromium-browser google-chrome >/dev/null || untested+=("pages in a browser: no Chromium")
    if ! bash scripts/visdom_offline.sh; then
        echo "visdom's scripts cannot be downloaded here: the test of its dashboard is skipped"
        untested+=("visdom's dashboard: its scripts could not be fetched")
    fi
fi
# Compiled once, not in each of the many processes that tests start.
unset PYTHONDONTWRITEBYTECODE
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Of the same option twice pytest takes the last: bash scripts/test.sh -n 0 tests in one process, as a debugger wants it.
.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal -m "not slow" "$@"
