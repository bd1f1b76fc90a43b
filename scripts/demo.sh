#!/usr/bin/env bash
# HumanEval with the embedded model: sample, then check in the sandbox. Arguments are added to `treeshare sample`.
. "$(dirname "$0")/setup.sh"

out=${TREESHARE_DEMO_DIR:-runs/demo}
.venv/bin/treeshare sample --task humaneval --limit 16 -n 16 --temperature 0.4 --seed 0 --out "$out" "$@"
.venv/bin/treeshare evaluate "$out" --json "$out/pass_at_k.json"
echo
echo "Files:"
ls -l "$out"
