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
