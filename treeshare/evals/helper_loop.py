"""The program of a helper process, never imported by treeshare: answers requests within the kernel's limits.

Arguments: bytes of memory, the id of the parent process, and a file whose ``prepare()`` is called first and
whose ``answer(request)`` is called for each JSON line; what it returns goes back as one.
"""

import importlib.util
import json
import os
import resource
import signal
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Answer requests until there are no more."""
    memory_bytes, parent, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if sys.platform == "linux":  # macOS refuses this limit, as a process has far more address space there
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    spec = importlib.util.spec_from_file_location("helper_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.prepare()
    except ImportError as error:
        _say({"missing": str(error)})
        return
    _say({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        # Its signal ends the process, whatever it does.
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        try:
            answer = module.answer(request)
        except MemoryError:
            answer = {"exhausted": True}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answer)


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _end_with(parent: int) -> None:
    """End when the parent is gone, in the middle of whatever is computed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


if __name__ == "__main__":
    main()
