"""A Ray cluster to work on: an existing one, or a new one that only this machine can reach."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

from treeshare.errors import ConfigError, one_line
from treeshare.installation import how_to_add
from treeshare.integrations.ray_watchdog import Watchdog

if TYPE_CHECKING:
    from types import TracebackType

LOCAL = "local"
"""The address that starts a cluster of our own."""

_OBJECT_STORE_BYTES = 128 << 20
"""Only prompts lie there; Ray's default is a third of the memory."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Read when Ray is imported. Its name speaks of other systems, but what it does when off holds here too:
    # all of Ray's processes listen on the loopback address only. ``_node_ip_address`` does not do that.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


class RayCluster:
    """A context in which there is a cluster, with the number of workers that fit it.

    A cluster of our own listens on the loopback address, has no dashboard, and ends with the context, or with
    this process, however that ends. One that Python code has joined before (``ray.init``) is used and left as
    it is.

    Args:
        address: ``local``, or as for ``ray.init``: ``auto``, ``HOST:PORT``, ``ray://HOST:PORT``.
        num_workers: By default one for each node, and two where there is one node.
        threads: Of each worker; by default the nodes' processors are all used.

    Attributes:
        num_workers: How many there are to be.
        threads: Of each.
        workers_per_node: How many share a node's memory.
        description: All that in a few words.

    Raises:
        ConfigError: If Ray is not installed, the cluster cannot be reached, or the workers do not fit it.
    """

    def __init__(self, address: str, *, num_workers: int | None = None, threads: int | None = None) -> None:
        self.num_workers = self.threads = self.workers_per_node = 0
        self.description = ""
        self._address, self._wanted = address, (num_workers, threads)
        self._is_ours = False
        self._watchdog: Watchdog | None = None
        self._sigterm: Any = None

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._sigterm = signal.getsignal(signal.SIGTERM) if in_main_thread else None
        before = {name: os.environ.get(name) for name in _ENVIRONMENT}
        try:
            if self._address == LOCAL:
                os.environ.update(_ENVIRONMENT)
            self._enter()
        except BaseException:
            self.close()
            raise
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        return self

    def _enter(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(f"--ray: Ray is not installed; {how_to_add('ray')}") from error
        if not ray.is_initialized():
            self._is_ours = True
            try:
                self._init(ray)
            except Exception as error:  # Ray raises what it likes, its own and others' errors
                what = "start a cluster" if self._address == LOCAL else f"join {one_line(self._address)}"
                reason = one_line(" ".join(str(error).split()))
                raise ConfigError(f"--ray: cannot {what}: {reason}") from error
        nodes = [node for node in ray.nodes() if node["Alive"]]
        addresses = {node["NodeManagerAddress"] for node in nodes}
        if self._is_ours and self._address == LOCAL and addresses != {"127.0.0.1"}:
            raise ConfigError(
                f"--ray: Ray was imported before and listens on {one_line(addresses)}, expected the loopback "
                "address; call ray.init yourself, or import Ray later"
            )
        self._check_fits([int(node["Resources"].get("CPU", 0)) for node in nodes])
        self.description = f"version {ray.__version__}, {self.num_workers} workers of {self.threads} threads"

    def _init(self, ray: Any) -> None:  # noqa: ANN401
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address != LOCAL:
            host, colon, port = self._address.removeprefix("ray://").rpartition(":")
            if colon and port.isdigit():  # Ray itself takes minutes to find that nobody listens
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(self._address, **quiet)
            return
        has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
        self._settle([len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1])
        self._watchdog = Watchdog()
        ray.init(
            LOCAL,
            _temp_dir=self._watchdog.folder,
            num_cpus=self.num_workers * self.threads,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )

    def _settle(self, cpus: list[int]) -> None:
        """Decide on numbers for nodes of so many processors."""
        cpus = [count for count in cpus if count] or [1]
        num_workers, threads = self._wanted
        self.num_workers = num_workers or max(len(cpus), 2)
        self.workers_per_node = -(-self.num_workers // len(cpus))
        self.threads = threads or max(1, min(cpus) // self.workers_per_node)

    def _check_fits(self, cpus: list[int]) -> None:
        self._settle(cpus)
        room = sum(count // self.threads for count in cpus)
        if room < self.num_workers:
            raise ConfigError.of(
                "--ray-workers",
                got=self.num_workers,
                expected=f"at most {room} with {self.threads} threads each on nodes of {cpus} processors",
                remedy="give fewer, or fewer --ray-threads",
            )

    def close(self) -> None:
        """Leave the cluster; one of our own ends, with all of its processes."""
        if self._is_ours:
            import ray

            try:
                ray.shutdown()
            finally:
                self._is_ours = False
                if self._watchdog is not None:
                    self._watchdog.close()
                    self._watchdog = None
            if self._sigterm is not None:  # ``ray.init`` has put its own
                signal.signal(signal.SIGTERM, self._sigterm)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
