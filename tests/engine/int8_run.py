"""``python -m tests.engine.int8_run FOLDER DTYPE``: hashes of a run by int8 weights, see ``portable_run``."""

from __future__ import annotations

import json
import sys

from tests.engine.portable_run import portable_run

if __name__ == "__main__":
    print(json.dumps(portable_run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]), quantization="int8")))
