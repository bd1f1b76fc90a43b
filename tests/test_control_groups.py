"""What a container may use: the smallest of all limits around it; the files are made up."""

from __future__ import annotations

import pytest

from treeshare import devices
from treeshare.control_groups import MemoryLimit, memory_limit

MIB = 1 << 20
V1_UNLIMITED = 0x7FFFFFFFFFFFF000

V2_SELF, V1_SELF = "0::{}\n", "7:cpuset:/x\n4:memory,hugetlb:{}\n0::/elsewhere\n"
V2_MOUNT = "31 23 0:28 {root} {place} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "35 31 0:32 {root} {place} rw - cgroup cgroup rw,memory\n36 31 0:33 / /a rw - cgroup cgroup rw,cpu\n"
)


def v2(limit, used, folder="sys/fs/cgroup", **more):
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": used} | {
        f"{folder}/memory.{name}": text for name, text in more.items()
    }


def v1(limit, used, folder="sys/fs/cgroup/memory", **more):
    return {f"{folder}/memory.limit_in_bytes": limit, f"{folder}/memory.usage_in_bytes": used} | {
        f"{folder}/memory.{name}": text for name, text in more.items()
    }


CASES = {
    "version 2": (v2(512 * MIB, 64 * MIB), 448),
    "version 1": (v1(512 * MIB, 64 * MIB), 448),
    "no limit in version 2": (v2("max", 64 * MIB), None),
    "no limit in version 1": (v1(V1_UNLIMITED, 64 * MIB), None),
    "nothing is mounted": ({}, None),
    "no usage": ({"sys/fs/cgroup/memory.max": 512 * MIB}, 512),
    "used up, and more": (v2(512 * MIB, 600 * MIB), 0),
    "caches count as free": (v2(512 * MIB, 400 * MIB, stat=f"anon 1\ninactive_file {300 * MIB}\n"), 412),
    "caches of version 1": (v1(512 * MIB, 400 * MIB, stat=f"total_inactive_file {300 * MIB}\n"), 412),
    "more caches than use": (v2(512 * MIB, 4 * MIB, stat=f"inactive_file {300 * MIB}\n"), 512),
    "a soft limit below": (v2(512 * MIB, 64 * MIB, high=256 * MIB), 192),
    "a soft limit alone": (v2("max", 64 * MIB, high=256 * MIB), 192),
    "both versions": (v2(512 * MIB, 0) | v1(256 * MIB, 0), 256),
    "an inner group has less": (
        {"proc/self/cgroup": V2_SELF.format("/a/b")}
        | v2(512 * MIB, 0) | v2("max", 0, "sys/fs/cgroup/a") | v2(100 * MIB, 0, "sys/fs/cgroup/a/b"), 100,
    ),
    "an outer group has less left": (
        {"proc/self/cgroup": V2_SELF.format("/a/b")}
        | v2("max", 0, "sys/fs/cgroup/a/b") | v2(512 * MIB, 480 * MIB, "sys/fs/cgroup/a"), 32,
    ),
    "nested groups of version 1": (
        {"proc/self/cgroup": V1_SELF.format("/a/b")}
        | v1(V1_UNLIMITED, 0) | v1(300 * MIB, 0, "sys/fs/cgroup/memory/a")
        | v1(200 * MIB, 0, "sys/fs/cgroup/memory/a/b"), 200,
    ),
    "version 1, the path is the host's": (
        {"proc/self/cgroup": V1_SELF.format("/docker/0a1b")} | v1(300 * MIB, 100 * MIB), 200,
    ),
    "version 1, a group within the host's path": (
        {"proc/self/cgroup": V1_SELF.format("/docker/0a1b/c"),
         "proc/self/mountinfo": V1_MOUNT.format(root="/docker/0a1b", place="/sys/fs/cgroup/memory")}
        | v1(300 * MIB, 0) | v1(50 * MIB, 0, "sys/fs/cgroup/memory/c"), 50,
    ),
    "mounted elsewhere": (
        {"proc/self/cgroup": V2_SELF.format("/a"),
         "proc/self/mountinfo": V2_MOUNT.format(root="/", place="/cg")}
        | v2(70 * MIB, 0, "cg/a"), 70,
    ),
    "hybrid": (
        {"proc/self/cgroup": V1_SELF.format("/a"),
         "proc/self/mountinfo": V2_MOUNT.format(root="/", place="/sys/fs/cgroup/unified")}
        | v1(60 * MIB, 0, "sys/fs/cgroup/memory/a"), 60,
    ),
    "beside the namespace": ({"proc/self/cgroup": V2_SELF.format("/../b")} | v2(90 * MIB, 0), 90),
    "no number": (v2("many", 0), None),
    "files that are empty": (v2("", ""), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_limit_that_leaves_least(tmp_path, name, monkeypatch):
    files, free_mib = CASES[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n")
    found = memory_limit(tmp_path)
    assert (None if found is None else found.free_bytes / MIB) == free_mib
    if free_mib is not None:
        monkeypatch.setattr(devices, "memory_limit", lambda: found)
        assert devices.default_kv_budget_bytes() == free_mib * MIB // 2


def test_a_limit_above_what_the_machine_has_is_none(monkeypatch):
    monkeypatch.setattr(devices, "memory_limit", lambda: None)
    without = devices.free_memory_bytes()
    monkeypatch.setattr(devices, "memory_limit", lambda: MemoryLimit(limit_bytes=1 << 50, free_bytes=1 << 50))
    assert devices.free_memory_bytes() == pytest.approx(without, rel=0.5)
