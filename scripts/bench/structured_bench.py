"""Structured output: how many completions end, whether they are valid, and what masks cost.

Twenty schemas and patterns, eight prompts each. ``--cost`` compares with free sampling at 256 rows, by turns
in one run: in wall time, in CPU time of the process, and of the thread that runs the model (grammars' masks
are computed on another).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time

import jsonschema

from treeshare import LLM, SamplingParams

TEXT = {"type": "string", "maxLength": 40}
YEAR = {"type": "integer", "minimum": 1900, "maximum": 2030}


def record(**properties: object) -> dict[str, object]:
    """A schema of an object that has all these properties and no others."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def items(kind: object, most: int = 4) -> dict[str, object]:
    """A schema of a list."""
    return {"type": "array", "items": kind, "minItems": 1, "maxItems": most}


PERSON = record(name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 120})
SCHEMAS: list[dict[str, object]] = [
    {"json": schema}
    for schema in (
        PERSON,
        record(title=TEXT, year=YEAR, tags=items({"enum": ["new", "old", "red", "blue"]})),
        record(answer={"enum": ["yes", "no", "unknown"]}, confidence={"type": "number"}),
        items(PERSON, 3),
        record(point=record(x={"type": "integer"}, y={"type": "integer"}), label=TEXT),
        record(date={"type": "string", "format": "date"}, time={"type": "string", "format": "time"}),
        record(email={"type": "string", "format": "email", "maxLength": 40}, ok={"type": "boolean"}),
        record(
            code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
            note={"anyOf": [TEXT, {"type": "null"}]},
        ),
        {"oneOf": [record(kind={"const": "a"}, value=YEAR), record(kind={"const": "b"}, text=TEXT)]},
        {"type": "object", "additionalProperties": YEAR, "minProperties": 1, "maxProperties": 3},
        record(matrix=items(items({"type": "integer", "minimum": 0, "maximum": 9}, 3), 3)),
        {"$ref": "#/$defs/leaf", "$defs": {"leaf": record(id={"type": "integer"}, name=TEXT)}},
        record(steps=items({"type": "string", "minLength": 3, "maxLength": 30}, 4), result=TEXT),
    )
] + [
    {"regex": r"[A-Z][a-z]{1,12} [A-Z][a-z]{1,12}, \d{1,3} years"},
    {"regex": r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"},
    {"regex": r"(?:[a-z]{2,10} ){2,8}[a-z]{2,10}\."},
    {"choice": ["positive", "negative", "neutral"]},
    {"choice": ["Paris", "Paris, France", "Rome", "I do not know"]},
    {"grammar": 'start: sum\nsum: NUMBER (" + " NUMBER){1,4}\nNUMBER: /[1-9][0-9]{0,2}/'},
    {"json_object": True},
]
PROMPTS = [
    "Describe a person: ",
    "The film of the year, as data:\n",
    "Q: Is water wet?\nA: ",
    "Here is a record from our database:\n\n",
    "Write the next entry of the log.\n",
    "def answer():\n    return ",
    "Customer review: I loved it. Result: ",
    "Translate into a machine-readable form: John, 42, lives in Rome.\n",
]


def is_valid(values: dict[str, object], text: str) -> bool:
    """Whether a text is what was asked for."""
    kind, value = next(iter(values.items()))
    if kind == "regex":
        return re.fullmatch(str(value), text) is not None
    if kind == "choice":
        return text in value  # type: ignore[operator]
    if kind == "grammar":
        return re.fullmatch(r"[1-9]\d{0,2}( \+ [1-9]\d{0,2}){1,4}", text) is not None
    try:
        jsonschema.validate(json.loads(text), value if kind == "json" else {"type": "object"})
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def check(llm: LLM, args: argparse.Namespace) -> None:
    """Print a row for each schema, and the totals."""
    print("| what | ended | valid of these | tokens | masks/token |\n|---|--:|--:|--:|--:|")
    ended = valid = total = num_masks = num_tokens = 0
    for values in SCHEMAS[:: args.every]:
        params = SamplingParams(
            n=args.n,
            temperature=args.temperature,
            max_tokens=args.max_tokens,
            structured_outputs=values,
            seed=0,
        )
        found = [c for out in llm.generate(PROMPTS, params, use_tqdm=False) for c in out.outputs]
        whole = [c for c in found if c.finish_reason == "stop"]
        good = sum(is_valid(values, c.text) for c in whole)
        stats = llm.stats
        print(
            f"| {str(values)[:60]} | {len(whole)}/{len(found)} | {good} | {stats.num_tokens} "
            f"| {stats.num_masks / stats.num_tokens:.2f} |",
            flush=True,
        )
        ended, valid, total = ended + len(whole), valid + good, total + len(found)
        num_masks, num_tokens = num_masks + stats.num_masks, num_tokens + stats.num_tokens
    print(
        f"ended {ended / total:.1%} of {total}, valid {valid / max(ended, 1):.2%} of these, "
        f"{num_masks / num_tokens:.3f} masks per token"
    )


def cost(llm: LLM, args: argparse.Namespace) -> None:
    """Print what masks cost at 256 rows: the same number of tokens, with and without."""
    free = SamplingParams(
        n=32, temperature=args.temperature, max_tokens=args.cost_tokens, ignore_eos=True, seed=0
    )
    long = {"regex": f"(?s:.){{{8 * args.cost_tokens},}}"}
    text = {"json": record(name={"type": "string", "minLength": 12 * args.cost_tokens})}
    numbers = {"json": {"type": "array", "items": PERSON, "minItems": args.cost_tokens}}
    kinds = {"free": None, "pattern": long, "JSON string": text, "JSON objects": numbers}
    kinds = {name: values for name, values in kinds.items() if name in ("free", *(args.kinds or kinds))}
    clocks = {"wall": time.perf_counter, "process": time.process_time, "model's thread": time.thread_time}
    found: dict[tuple[str, str], list[float]] = {(name, clock): [] for name in kinds for clock in clocks}
    for number in range(args.rounds):
        for name, values in sorted(kinds.items(), reverse=bool(number % 2)):
            params = SamplingParams.from_dict(free.to_dict() | {"structured_outputs": values})
            started = {clock: read() for clock, read in clocks.items()}
            llm.generate(PROMPTS, params, use_tqdm=False)
            for clock, read in clocks.items():
                found[name, clock].append((read() - started[clock]) / llm.stats.num_tokens)
            share = llm.stats.num_masks / llm.stats.num_tokens
            spent = ", ".join(f"{clock} {found[name, clock][-1] * 1e3:.3f}" for clock in clocks)
            print(f"{name}: {spent} ms/token, {share:.2f} masks/token", flush=True)
    print("| what | clock | minimum | median of pairs |\n|---|---|--:|--:|")
    for name, clock in found:
        own, other = found[name, clock], found["free", clock]
        pairs = statistics.median(a / b for a, b in zip(own, other, strict=True))
        print(f"| {name} | {clock} | {min(own) / min(other) - 1:+.1%} | {pairs - 1:+.1%} |")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--every", type=int, default=1, help="every so many schemas")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--cost-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", help="of the kinds that --cost compares with free sampling")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    llm = LLM(args.model, threads=args.threads)
    cost(llm, args) if args.cost else check(llm, args)


if __name__ == "__main__":
    main()
