"""``treeshare doctor``."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treeshare.cli.finding import Finding, findings_of
from treeshare.cli.hub import hub
from treeshare.cli.outputs import check_output, write_json
from treeshare.installation import compiler, how_to_add, pip_install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve", "i8mm")


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON instead of text, to stdout or to FILE.")
    ] = False,
    file: Annotated[
        Path | None, typer.Argument(callback=check_output, help="With --json: write to this file.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Also load this model: is it supported, are its layers fused?"),
    ] = None,
) -> None:
    """Check what works on this machine and what is missing, and print how to get it."""
    if file is not None and not as_json:
        raise typer.BadParameter(f"got {file}, expected --json before it")
    findings = []
    for finding in _findings(model):
        findings.append(finding)
        if not as_json:
            print(finding.line(), flush=True)
    works = not any(finding.fails for finding in findings)
    if as_json:
        content = {"works": works, "findings": [asdict(finding) for finding in findings]}
        if file is None:
            print(json.dumps(content, indent=2))
        else:
            write_json(file, content)
    if not works:
        raise typer.Exit(1)


def _findings(model: str | None) -> Iterator[Finding]:
    checks: list[tuple[str, Callable[[], Finding | Iterator[Finding]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("extras", _extras),
        ("torch", _torch),
        ("cpu", _cpu),
        ("memory", _memory),
        ("sandbox", _sandboxes),
        ("C++ compiler", _compiler),
        ("kernels", _kernels),
        ("dtypes", _dtypes),
        ("embedded model", _embedded_model),
        *([("model", partial(_model, model))] if model is not None else []),
        ("model cache", _model_cache),
        ("hub", hub),
    ]
    for name, check in checks:
        yield from findings_of(name, check)


def _python() -> Finding:
    return Finding(
        name="python",
        found=f"{platform.python_version()} at {sys.executable}",
        data={"version": platform.python_version(), "executable": sys.executable},
    )


def _requirements(extra: str | None) -> list[tuple[str, str, str | None]]:
    """The package's dependencies, or those of an extra: name, required versions, installed version.

    The installed version is None if the dependency is missing or has another version than required.
    """
    from packaging.requirements import Requirement

    requirements = []
    for text in metadata.requires("treeshare") or []:
        required = Requirement(text)
        in_core = required.marker is None or required.marker.evaluate({"extra": ""})
        if in_core if extra is None else not in_core and required.marker.evaluate({"extra": extra}):  # type: ignore[union-attr]
            try:
                version: str | None = metadata.version(required.name)
            except metadata.PackageNotFoundError:
                version = None
            if version is not None and not required.specifier.contains(version, prereleases=True):
                version = None
            requirements.append((required.name, f"{required.name}{required.specifier}", version))
    return requirements


def _packages() -> Finding:
    """Treeshare itself and the packages that it always needs."""
    try:
        own_version, needed = metadata.version("treeshare"), _requirements(None)
    except metadata.PackageNotFoundError:
        return Finding(
            name="packages",
            found="",
            required=True,
            remedy=f"{pip_install()} . in the checkout, or its wheel",
            data={},
        )
    missing = [wanted for _, wanted, version in needed if version is None]
    versions = {name: version for name, _, version in needed}
    return Finding(
        name="packages",
        found="" if missing else f"treeshare {own_version} and all {len(needed)} packages it needs",
        required=True,
        remedy=f"{pip_install()} {' '.join(map(repr, missing))}" if missing else "",
        data={"treeshare": own_version, "versions": versions},
    )


def _extras() -> Iterator[Finding]:
    try:
        extras = metadata.metadata("treeshare").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        needed = _requirements(extra)
        missing = [wanted for _, wanted, version in needed if version is None]
        versions = {name: version for name, _, version in needed}
        present = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        yield Finding(
            name=f"[{extra}]",
            found=present if not missing else f"missing: {', '.join(missing)}",
            remedy=f"{how_to_add(extra)}, if you need it" if missing else "",
            data={"versions": versions},
        )


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        return Finding(
            name="torch",
            found="",
            required=True,
            remedy=f"{pip_install()} torch ({reason})",
            data={"error": reason},
        )
    cuda = torch.version.cuda
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if cuda else []
    build = f"CUDA {cuda}" if cuda else "CPU build"
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return Finding(
        name="torch",
        found=f"{torch.__version__}, {build}, {threads} threads, kernels for {capability}, "
        + (f"GPU {', '.join(gpus)}" if gpus else "no GPU"),
        data={
            "version": str(torch.__version__),
            "cuda": cuda,
            "gpus": gpus,
            "threads": threads,
            "capability": capability,
        },
    )


def _cpu() -> Finding:
    """Its name, the cores that this process may use, and the instruction sets that matter for speed."""
    fields: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    features = {name: name in flags for name in _CPU_FEATURES}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = fields.get("model name") or platform.processor() or platform.machine()
    present = (
        ", ".join(name for name, there in features.items() if there) or "none of the known instruction sets"
    )
    return Finding(
        name="cpu",
        found=f"{name}, {cores} cores available; {present}",
        data={"name": name, "cores": cores, "features": features},
    )


def _memory() -> Finding:
    from treeshare.control_groups import memory_limit
    from treeshare.devices import default_kv_budget_bytes, free_memory_bytes

    free, budget, limit = free_memory_bytes(), default_kv_budget_bytes(), memory_limit()
    within = "" if limit is None else f" within this container's {limit.limit_bytes / 2**30:.1f} GiB"
    return Finding(
        name="memory",
        found=f"{free / 2**30:.1f} GiB free{within if limit and limit.free_bytes <= free else ''}; "
        f"KV budget {budget / 2**30:.1f} GiB by default",
        data={
            "free_bytes": free,
            "default_kv_budget_bytes": budget,
            "container_limit_bytes": None if limit is None else limit.limit_bytes,
        },
    )


def _sandboxes() -> Iterator[Finding]:
    """The kinds of sandbox that work here; at least one is required."""
    from treeshare.errors import SandboxUnavailableError
    from treeshare.evals.sandbox import BACKENDS, working_sandbox

    reasons = {}
    for name in BACKENDS:
        try:
            working_sandbox(name).close()
            reasons[name] = ""
        except SandboxUnavailableError as error:
            reasons[name] = str(error).removeprefix("sandbox: ")
    working = [name for name, reason in reasons.items() if not reason]
    preferred = next(iter(BACKENDS))
    remedy = (
        ""
        if preferred in working
        else f"{reasons[preferred]}: apt-get install bubblewrap, and allow user namespaces"
    )
    also = f" (also: {', '.join(working[1:])})" if working[1:] else ""
    yield Finding(
        name="sandbox",
        found=f"{working[0]}{also}" if working else "",
        required=True,
        remedy=remedy,
        data={"used": working[0] if working else None, "reasons": reasons},
    )


def _compiler() -> Finding:
    path, version = compiler(), ""
    if path is not None:
        try:
            done = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=10, check=False
            )
            version = done.stdout.partition("\n")[0]
        except (OSError, subprocess.TimeoutExpired):
            version = "cannot be run"
    return Finding(
        name="C++ compiler",
        found=f"{path}: {version}" if path else "none (treeshare itself runs without)",
        remedy="" if path or _kernels_are_there() else "needed to build the kernels; see the line on kernels",
        data={"path": path, "version": version},
    )


def _kernels_are_there() -> bool:
    try:
        from treeshare.native import unused_reason
    except (ImportError, OSError):
        return False
    return unused_reason() is None


def _kernels() -> Finding:
    try:
        from treeshare.native import (
            int8_code,
            kernel_level,
            kernel_levels,
            level_code,
            unused_notice,
            unused_reason,
        )
    except (ImportError, OSError):
        return Finding(name="kernels", found="none", remedy="they need torch", data={"used": "none"})
    used, levels, reason = kernel_level(), kernel_levels(), unused_reason()
    code, others = level_code(used), ", ".join(level for level in levels if level != used)
    by = f", by the code of {code}" if code != used else ""
    int8 = int8_code(used)
    by += f", int8 by that of {int8}" if int8 != "none" else ""
    choice = f" (set TREESHARE_KERNELS to choose {others})" if others else ""
    return Finding(
        name="kernels",
        found=used + by + choice + (f" ({reason})" if reason else ""),
        remedy="" if len(levels) > 1 else unused_notice(),
        data={"used": used, "code": code, "int8": int8, "levels": levels, "unused_reason": reason},
    )


def _dtypes() -> Finding:
    """How fast linear layers are in each dtype, at a width that many models have."""
    try:
        from treeshare.engine.dtype_speed import MAX_WIDTH, linear_rates_here
    except (ImportError, OSError):
        return Finding(name="dtypes", found="not measured", remedy="they need torch", data={"gflops": {}})
    rates = linear_rates_here(MAX_WIDTH)
    faster = rates.faster_than("bfloat16")  # in which most models are published
    return Finding(
        name="dtypes",
        found=f"linear layers: {rates}",
        remedy=f"--dtype {faster} is faster for a bfloat16 model" if faster else "",
        data={"gflops": rates.gflops},
    )


def _embedded_model() -> Finding:
    from treeshare.models.loading import EMBEDDED, embedded_remedy

    remedies = dict.fromkeys(filter(None, map(embedded_remedy, EMBEDDED)))
    return Finding(
        name="embedded model",
        found=", ".join(EMBEDDED) if not remedies else "cannot be loaded",
        remedy=" && ".join(remedies),
        data={"names": list(EMBEDDED)},
    )


def _model(name: str) -> Finding:
    """Whether a model is supported here, and why its layers are not fused where they are not."""
    from treeshare.cli.inputs import quiet_libraries
    from treeshare.engine.dtype_speed import faster_dtype
    from treeshare.errors import TreeshareError, one_line
    from treeshare.models import load_model

    quiet_libraries()
    try:
        loaded = load_model(name)
    except TreeshareError as error:
        data = {"model": name, "error": one_line(error)}
        return Finding(name="model", found="", required=True, remedy=one_line(error), data=data)
    reason = loaded.unfused_reason
    layers = "fused layers" if reason is None else f"layers not fused: {reason}"
    return Finding(
        name="model",
        found=f"{one_line(name)}: {loaded.dtype}, {layers}",
        remedy=faster_dtype(loaded) or "",
        data={"model": name, "dtype": loaded.dtype, "unfused_reason": reason},
    )


def _model_cache() -> Finding:
    from treeshare.models import cache_dir

    remedy = "set XDG_CACHE_HOME to a directory that you can write to"
    try:
        folder = cache_dir()
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        models = sorted(path for path in folder.glob("models/[!.]*") if path.is_dir())
        size = sum(file.stat().st_size for path in models for file in path.rglob("*") if file.is_file())
        free = shutil.disk_usage(nearest).free
    except (OSError, RuntimeError) as error:
        data = {"error": str(error)}
        return Finding(name="model cache", found="", remedy=f"{remedy} ({error})", data=data)
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    return Finding(
        name="model cache",
        found=f"{folder}, {len(models)} converted models, {size / 2**20:.0f} MiB; "
        f"{free / 2**30:.1f} GiB left on the disk" + ("" if writable else "; not writable"),
        remedy="" if writable else remedy,
        data={
            "folder": str(folder),
            "models": [path.name for path in models],
            "bytes": size,
            "free_bytes": free,
            "writable": writable,
        },
    )
