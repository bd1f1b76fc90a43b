"""How many workers there are, and whose cluster it is; Ray is played by a stub."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import types

import pytest

from treeshare.errors import ConfigError
from treeshare.installation import how_to_add
from treeshare.integrations.ray_cluster import RayCluster


@pytest.fixture
def ray(monkeypatch):
    """A stub that starts a cluster on the loopback address, or joins one with ``nodes``."""
    module = types.ModuleType("ray")
    module.__version__, module.calls, module.is_up, module.joined = "9.9", [], False, None
    module.environment = {}

    def node(cpus, address="10.0.0.1", *, alive=True):
        return {"Alive": alive, "NodeManagerAddress": address, "Resources": {"CPU": float(cpus)}}

    def init(address, **options):
        module.calls.append((address, options))
        module.environment = dict(os.environ)
        signal.signal(signal.SIGTERM, lambda *_: None)
        if address == "local":
            module.joined = [node(options["num_cpus"], module.local_address)]
        elif module.joined is None:
            raise ConnectionError("nobody\nlistens")
        module.is_up = True

    def shutdown():
        module.is_up = False

    module.node, module.init, module.shutdown, module.local_address = node, init, shutdown, "127.0.0.1"
    module.nodes, module.is_initialized = lambda: module.joined, lambda: module.is_up
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return module


def sizes(cluster):
    return cluster.num_workers, cluster.threads, cluster.workers_per_node


def test_a_cluster_of_our_own(ray):
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    with RayCluster("local") as cluster:
        assert sizes(cluster) == (2, 4, 2)
        assert cluster.description == "version 9.9, 2 workers of 4 threads"
        ((address, options),) = ray.calls
        assert address == "local"
        assert options["num_cpus"] == 8
        assert options["include_dashboard"] is False
        assert ray.environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert dict(os.environ) == environment
    assert not ray.is_up
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_is_asked_for_is_what_there_is(ray):
    with RayCluster("local", num_workers=3, threads=5) as cluster:  # more than the machine has
        assert sizes(cluster) == (3, 5, 3)


def test_it_listens_on_the_loopback_address_or_not_at_all(ray):
    ray.local_address = "10.0.0.7"
    with pytest.raises(ConfigError, match=r"listens on \{'10.0.0.7'\}, expected the loopback address"):
        RayCluster("local").__enter__()
    assert not ray.is_up


def test_a_cluster_that_is_there(ray):
    ray.joined = [ray.node(16), ray.node(0), ray.node(8), ray.node(8, alive=False), ray.node(8)]
    with RayCluster("auto") as cluster:
        assert sizes(cluster) == (3, 8, 1)
        assert ray.calls[0][0] == "auto"
        assert ray.calls[0][1].keys() == {"log_to_driver", "logging_level"}
    with RayCluster("auto", num_workers=8, threads=4) as cluster:
        assert sizes(cluster) == (8, 4, 3)
    with pytest.raises(ConfigError, match="--ray-workers: got 9, expected at most 8 with 4 threads each"):
        RayCluster("auto", num_workers=9, threads=4).__enter__()
    assert not ray.is_up


def test_a_cluster_joined_before_stays(ray):
    ray.joined, ray.is_up = [ray.node(4)], True
    with RayCluster("local") as cluster:
        assert sizes(cluster) == (2, 2, 2)
    assert ray.is_up
    assert ray.calls == []


def test_nobody_there(ray):
    with pytest.raises(ConfigError, match=r"--ray: cannot join auto: nobody listens$"):
        RayCluster("auto").__enter__()
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"--ray: cannot join {address}: .*refused$"):
            RayCluster(address).__enter__()
    assert len(ray.calls) == 1


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="--ray: Ray is not installed; " + re.escape(how_to_add("ray"))):
        RayCluster("local").__enter__()
