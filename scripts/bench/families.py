"""Every layer recipe against Llama's: random models of equal sizes on one few-shot forest, work taken equal.

    python scripts/bench/families.py --out docs/bench/families --levels avx512 avx2

A family's ``of llama`` is the time that the Llama shape would need for the family's multiply-adds, over the
time that the family needs: its multiply-adds per second over Llama's. Multiply-adds are those of the layers'
weights and of ``lm_head``, each times the rows that it is applied to, and of attention. Llama gets as many
heads as the family has: keys and values to be read are work, too. Both run by turns in one process, on one
thread; times are CPU seconds, the smallest of ``--rounds``. Models have a tenth of the layers and of the
vocabulary of one with 135M parameters, in the same proportion: runs are short and taken by turns, else a
shared machine's speed changes more than what is compared. ``--whole``: all layers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from layer_families import FAMILIES, README_FAMILIES, Sizes, make_config
from measuring import Company, grouped_bars, guarded, plot, table, write_report
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.engine.sequence import Request
from treeshare.models import LoadedModel
from treeshare.models.binding import bind_model
from treeshare.models.fusion import decoder_layers
from treeshare.models.support import max_model_len
from treeshare.native import kernel_levels
from treeshare.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

_GOAL = 0.85


@dataclass(frozen=True)
class Forest:
    """Problems behind one preamble, sampled several times each.

    Attributes:
        preamble: Tokens that all problems share.
        own: Tokens of a problem's own.
        problems: Their number.
        samples: Completions of each.
        new_tokens: Tokens of each completion.
    """

    preamble: int = 1024
    own: int = 128
    problems: int = 4
    samples: int = 32
    new_tokens: int = 24

    def requests(self, vocabulary: int) -> list[Request]:
        """As the engine takes them."""
        draws = torch.Generator().manual_seed(0)

        def tokens(count: int) -> list[int]:
            found: list[int] = torch.randint(2, vocabulary, (count,), generator=draws).tolist()
            return found

        preamble = tokens(self.preamble)
        params = SamplingParams(n=self.samples, temperature=0.8, max_tokens=self.new_tokens, ignore_eos=True)
        return [
            Request(
                prompt_token_ids=preamble + tokens(self.own),
                params=params,
                problem_key=number,
                seed=0,
                completion_indices=range(self.samples),
            )
            for number in range(self.problems)
        ]

    def multiply_adds(self, model: Any) -> float:  # noqa: ANN401
        """Of the whole run."""
        layers = decoder_layers(model)
        linears = [m for layer in layers for m in layer.modules() if isinstance(m, (torch.nn.Linear, Conv1D))]
        config = model.config
        heads_width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        decoding = self.problems * self.samples * (self.new_tokens - 1)
        rows = self.preamble + self.problems * self.own + decoding
        keys = (
            self.preamble**2 / 2
            + self.problems * self.own * (self.preamble + self.own / 2)
            + decoding * (self.preamble + self.own + self.new_tokens / 2)
        )
        head = model.get_output_embeddings().weight.numel()
        return (
            sum(linear.weight.numel() for linear in linears) * rows
            + head * (decoding + self.problems)
            + 2.0 * keys * heads_width * len(layers)
        )


class Runner:
    """One random model and its engine.

    Args:
        family: By its name in ``FAMILIES``.
        sizes: Of the model.
        dtype: Of its weights.
    """

    def __init__(self, family: str, sizes: Sizes, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(make_config(family, sizes), dtype=dtype).eval()
        bound = bind_model(self.model)
        self.unfused_reason = bound.unfused_reason
        loaded = LoadedModel(
            model=self.model,
            fused=bound.fused,
            unfused_reason=bound.unfused_reason,
            tokenizer=None,
            model_id=family,
            geometry=bound.geometry,
            calls=bound.calls,
            vocab_size=sizes.vocabulary,
            eos_token_ids=frozenset(),
            max_model_len=max_model_len(self.model.config),
            load_s=0.0,
        )
        self.heads = self.model.config.num_attention_heads, bound.geometry.layers[0].num_heads
        self._vocabulary = sizes.vocabulary
        self._engine = Engine(loaded, EngineConfig(kv_budget_bytes=4 << 30, lazy_divergence=False))

    def seconds(self, forest: Forest) -> float:
        """CPU seconds of one run."""
        started = time.process_time()
        for _ in self._engine.run_steps(forest.requests(self._vocabulary)):
            pass
        return time.process_time() - started


def measure(
    families: Sequence[str], sizes: Sizes, forest: Forest, dtype: torch.dtype, rounds: int
) -> list[dict[str, Any]]:
    """Each family and Llama by turns, in this process."""
    torch.set_num_threads(1)
    llamas: dict[tuple[int, int], Runner] = {}
    records = []
    for family in families:
        runner = Runner(family, sizes, dtype)
        llama = llamas.get(runner.heads)
        if llama is None:
            heads, kv_heads = runner.heads
            llama = llamas[runner.heads] = Runner(
                "llama", replace(sizes, heads=heads, kv_heads=kv_heads), dtype
            )
            llama.seconds(forest)
        work, llama_work = (forest.multiply_adds(each.model) for each in (runner, llama))
        taken = [(llama.seconds(forest), runner.seconds(forest)) for _ in range(rounds)]
        llama_s, own_s = (min(seconds) for seconds in zip(*taken, strict=True))
        records.append(
            {
                "family": family,
                "parameters": sum(weight.numel() for weight in runner.model.parameters()),
                "kv_heads": runner.heads[1],
                "tok_s": forest.problems * forest.samples * forest.new_tokens / own_s,
                "gmacs": work / own_s / 1e9,
                "of_llama": (work / own_s) / (llama_work / llama_s),
                "unfused_reason": runner.unfused_reason,
            }
        )
        print(json.dumps(records[-1]), flush=True)
    return records


def _report(out: Path, records: list[dict[str, Any]], company: Company) -> None:
    levels = list(dict.fromkeys(record["level"] for record in records))
    cells: dict[str, list[str]] = {}
    for family in dict.fromkeys(record["family"] for record in records):
        own = {record["level"]: record for record in records if record["family"] == family}
        first = next(iter(own.values()))
        name = f"**{family}**" if family in README_FAMILIES else family
        cells[family] = [name, f"{first['parameters'] / 1e6:.1f} M", first["kv_heads"]]
        for level in levels:
            found = own.get(level)
            cells[family] += [f"{found['tok_s']:.0f}", f"{found['of_llama']:.2f}"] if found else ["", ""]
        cells[family].append(first["unfused_reason"] or "yes")
    ratios = {(record["family"], record["level"]): record["of_llama"] for record in records}
    bars = {level: [ratios.get((family, level), 0.0) for family in cells] for level in levels}
    header = [
        "family",
        "parameters",
        "KV heads",
        *(f"{level}: {word}" for level in levels for word in ("tok/s", "of llama")),
    ]
    below = [f"{r['family']} ({r['level']})" for r in records if r["of_llama"] < _GOAL]
    body = "\n".join(
        [
            "Random bfloat16 models of equal sizes on a few-shot forest; tokens per CPU second of one "
            "thread. `of llama`: the time that the Llama shape would need for as many multiply-adds, over "
            "the family's; Llama has as many heads. The README's families are bold, the others have one "
            "layer recipe each.\n",
            table([*header, "fused"], cells.values()),
            f"\nBelow {_GOAL}: {', '.join(below) or 'none'}. "
            f"Cores busy with other things meanwhile: {company.measure()['others_cores']:.1f}.\n",
        ]
    )
    plot(out, lambda axes: grouped_bars(axes, list(cells), bars, "of llama"), size=(14, 4.5))
    write_report(out, title="Layer recipes", body=body, records=records)


def _main(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results: OUT.md, OUT.json; others are kept")
    parser.add_argument("--levels", nargs="+", default=list(kernel_levels()[:-1]))
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--whole", action="store_true", help="models of 135M parameters")
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that it runs")
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON lines")
    args = parser.parse_args(argv)
    whole = Sizes()
    tenth = replace(whole, layers=whole.layers // 10, vocabulary=whole.vocabulary // 10)
    sizes = Sizes(64, 4, 2, 96, 2, 256, 256) if args.tiny else whole if args.whole else tenth
    forest = Forest(32, 8, 2, 4, 3) if args.tiny else Forest()
    if args.here:
        measure(args.families, sizes, forest, torch.bfloat16, args.rounds)
        return
    company = Company()
    path = args.out.with_suffix(".json")
    records = json.loads(path.read_text())["records"] if path.exists() else []
    for level in args.levels:
        words = [sys.executable, __file__, "--here", "--out", str(args.out), "--rounds", str(args.rounds)]
        words += ["--tiny"] * args.tiny + ["--whole"] * args.whole + ["--families", *args.families]
        environment = {**os.environ, "TREESHARE_KERNELS": level, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                found = json.loads(line) | {"level": level}
                key = found["family"], level
                records = [r for r in records if (r["family"], r["level"]) != key] + [found]
                print(f"{level} {found['family']}: {found['of_llama']:.2f} of llama", flush=True)
                order = {name: number for number, name in enumerate(FAMILIES)}
                records.sort(key=lambda r: (order[r["family"]], kernel_levels().index(r["level"])))
        _report(args.out, records, company)
        if process.wait():
            raise SystemExit(f"families: level {level}: exit status {process.returncode}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    return guarded("families", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
