#!/usr/bin/env bash
# HumanEval with the embedded model: sample, then check in the sandbox. Arguments are added to `treeshare sample`.
. "$(dirname "$0")/setup.sh"

out=${TREESHARE_DEMO_DIR:-runs/demo}
# The model is an instruct model: asked to go on with a bare function head, it mostly ends at once.
.venv/bin/treeshare sample --task humaneval --chat --limit 16 -n 16 --temperature 0.4 --max-tokens 256 \
    --seed 0 --out "$out" "$@"
.venv/bin/treeshare evaluate "$out" --json "$out/pass_at_k.json"
echo
echo "Files:"
ls -l "$out"
echo
echo "Next, for example:"
echo "  .venv/bin/treeshare report $(printf %q "$out")    # a page with every completion and its verdict"
echo "  .venv/bin/treeshare sample --task scripts/examples/custom_task.py:Sums --limit 8 -n 16 --out runs/sums    # your own task"
echo "  .venv/bin/treeshare verify    # does company, n, order or sharing change a bit on this machine?"
