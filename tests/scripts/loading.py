"""Scripts as modules."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts" / "bench"
EXAMPLES = ROOT / "scripts" / "examples"


def load_script(folder, name):
    """The module of ``FOLDER/NAME.py``, which finds the scripts beside it."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(name)
