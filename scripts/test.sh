#!/usr/bin/env bash
# Everything that must hold: lint, format, types, import order, tests. Arguments go to pytest.
. "$(dirname "$0")/setup.sh"

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
.venv/bin/pytest "$@"
