"""Compile every Triton kernel for named GPUs, without one, and table what each needs.

    python scripts/bench/triton_table.py --out docs/bench/triton_kernels

Registers and stack come from ``cuobjdump`` in Triton's own package; a stack is spilled registers. Nothing is
run: a table of this kind says that the kernels fit, not how fast they are.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measuring import guarded, table

from treeshare.attention import AttentionSpec
from treeshare.attention.triton.backend import load_kernels
from treeshare.attention.triton.shape import KernelShape
from treeshare.errors import ConfigError
from treeshare.kv import LayerKV

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}
"""Maximum shared memory of a block by compute capability: 163 and 227 KiB (CUDA C++ Programming Guide)."""

DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
HEAD_DIMS = {width: width for width in (64, 80, 96, 128, 256)} | {192: 128}
"""Widths of keys, and of the values beside them; latent attention, expanded, has values of another."""

_PLAIN = AttentionSpec(scale=1.0)
_FEATURED = AttentionSpec(scale=1.0, window=1, soft_cap=1.0, has_sinks=True)
SPECS = {
    "store_tokens": _PLAIN,
    "attend_slices": _PLAIN,
    "attend_slices causal": _PLAIN,
    "attend_pages": _PLAIN,
    "merge_states": _PLAIN,
    "attend_slices featured": _FEATURED,
    "attend_slices causal featured": _FEATURED,
    "attend_pages featured": _FEATURED,
    "merge_states featured": _FEATURED,
}
"""The kernels, and what their layers ask for: featured are windows, soft caps and sinks together."""

HEADS, GROUP, PAGE_SIZE = 8, 4, 64

_POINTERS = {
    "bases": "*i64",
    **dict.fromkeys(("items", "first_seen", "pages", "targets", "source_indptr", "sources"), "*i32"),
    **dict.fromkeys(("numerators", "highs", "totals", "sinks", "lse"), "*fp32"),
}
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
_TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\S*")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel, compiled.

    Attributes:
        kernel: Its name.
        capability: Compute capability times ten.
        dtype: Of query, keys and values.
        head_dim: Width of a key; that of a value is ``HEAD_DIMS[head_dim]``.
        registers: Of a thread.
        stack_bytes: Of a thread: spilled registers.
        shared_bytes: Of a program.
        num_warps: Of a program.
        tensor_cores: The tensor-core instructions in the PTX.
        wide_copies: Whether it loads or copies 16 bytes at a time.
    """

    kernel: str
    capability: int
    dtype: str
    head_dim: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int
    tensor_cores: list[str]
    wide_copies: bool


def constants(kernel: str, shape: KernelShape) -> dict[str, Any]:
    """What the backend launches ``kernel`` with."""
    name, *kinds = kernel.split()
    spec = SPECS[kernel]
    if name == "store_tokens":
        return shape.store_tokens()
    if name == "attend_slices":
        return shape.attend_slices(spec, causal="causal" in kinds)
    return shape.attend_pages(spec) if name == "attend_pages" else shape.merge_states(spec)


def compile_kernel(kernel: str, dtype: str, head_dim: int, capability: int, group: int = GROUP) -> Compiled:
    """Compile one kernel as a launch on such a device would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    layer = LayerKV(num_heads=HEADS, key_width=head_dim, value_width=HEAD_DIMS[head_dim])
    shape = KernelShape(layer=layer, dtype=getattr(torch, dtype), group_size=group, page_size=PAGE_SIZE)
    fixed = constants(kernel, shape)
    options = {name: fixed.pop(name) for name in _OPTIONS if name in fixed}
    function = getattr(load_kernels(), kernel.split()[0])
    signature = {name: _triton_type(name, fixed, DTYPES[dtype]) for name in function.arg_names}
    divisible = [i for i, kind in enumerate(signature.values()) if kind.startswith("*") or kind == "i32"]
    source = ASTSource(
        function,
        signature,
        {(function.arg_names.index(name),): value for name, value in fixed.items()},
        {(i,): [["tt.divisibility", 16]] for i in divisible},
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = _resources(built.asm["cubin"])
    ptx = built.asm["ptx"]
    return Compiled(
        kernel=kernel,
        capability=capability,
        dtype=dtype,
        head_dim=head_dim,
        registers=registers,
        stack_bytes=stack,
        shared_bytes=built.metadata.shared,
        num_warps=built.metadata.num_warps,
        tensor_cores=sorted(set(_TENSOR_CORES.findall(ptx))),
        wide_copies=bool(
            re.search(r"ld\.global\.v4\.b32|cp\.async\.cg\.\S+ \[[^]]+\], \[[^]]+\], 0x10", ptx)
        ),
    )


def _triton_type(name: str, fixed: dict[str, Any], dtype: str) -> str:
    if name in fixed:
        return "constexpr"
    if name.endswith("_stride"):
        return "i32"
    return "fp32" if name.endswith("_factor") else _POINTERS.get(name, f"*{dtype}")


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = {name: int(re.findall(rf"{name}:(\d+)", text)[-1]) for name in ("REG", "STACK", "LOCAL")}
    return found["REG"], found["STACK"] + found["LOCAL"]


def compile_all(
    capabilities: Sequence[int], dtypes: Sequence[str], head_dims: Sequence[int], kernels: Sequence[str]
) -> Iterator[Compiled]:
    """Each kernel for each device, dtype and head_dim."""
    for capability in capabilities:
        for dtype in dtypes:
            for head_dim in head_dims:
                for kernel in kernels:
                    yield compile_kernel(kernel, dtype, head_dim, capability)


def report(compiled: Sequence[Compiled]) -> str:
    """The table of each device."""
    parts = [
        "# Triton kernels: what they need\n",
        f"Triton {importlib.metadata.version('triton')}; {HEADS} KV heads of {GROUP} query heads, pages of "
        f"{PAGE_SIZE} tokens; at head_dim 192, values of {HEAD_DIMS[192]}. Featured: with a window, a soft "
        "cap and sinks. Compiled without a GPU, not run: nothing here was measured. Float32 is "
        "computed without tensor cores, which would round it. Written by `python "
        "scripts/bench/triton_table.py --out docs/bench/triton_kernels`; "
        "`tests/attention/test_triton_compiled.py` compiles everything again and compares.\n",
    ]
    header = ["kernel", "dtype", "head_dim", "registers", "spilled", "shared KiB", "warps", "tensor cores"]
    for capability in sorted({record.capability for record in compiled}):
        limit = SHARED_BYTES[capability] / 1024
        rows = [
            [
                record.kernel,
                record.dtype,
                str(record.head_dim),
                str(record.registers),
                str(record.stack_bytes),
                f"{record.shared_bytes / 1024:.1f}",
                str(record.num_warps),
                ", ".join(sorted({name.split(".")[0] for name in record.tensor_cores})) or "-",
            ]
            for record in compiled
            if record.capability == capability
        ]
        parts += [
            f"\n## sm_{capability} (at most {limit:.0f} KiB of shared memory a block)\n",
            table(header, rows),
        ]
    return "\n".join(parts) + "\n"


def _main(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results: OUT.md, OUT.json")
    parser.add_argument("--capability", type=int, nargs="+", choices=SHARED_BYTES, default=[*SHARED_BYTES])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--head-dim", type=int, nargs="+", choices=HEAD_DIMS, default=[*HEAD_DIMS])
    parser.add_argument("--kernel", nargs="+", choices=SPECS, default=[*SPECS])
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ConfigError.of("TRITON_INTERPRET", got="1", expected="0: interpreted kernels do not compile")
    compiled = []
    for record in compile_all(args.capability, args.dtype, args.head_dim, args.kernel):
        print(
            f"sm_{record.capability} {record.dtype} {record.head_dim} {record.kernel}: "
            f"{record.registers} registers, {record.stack_bytes} spilled, {record.shared_bytes} shared",
            file=sys.stderr,
        )
        compiled.append(record)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    records = {
        "triton": importlib.metadata.version("triton"),
        "kernels": [asdict(record) for record in compiled],
    }
    args.out.with_suffix(".md").write_text(report(compiled), encoding="utf-8")
    args.out.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    return guarded("triton_table", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
