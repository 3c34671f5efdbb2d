#!/usr/bin/env bash
# One student, one start, the same rows, every objective: what docs/objectives.md compares.
#
# needs      the folder model/ (make_model.py), 4 GiB of memory, 3 GiB of disk, about an hour on two cores
# run        ./objectives.sh OUTPUT [NAME...]        all of them, or those named; what is there already is kept
set -euo pipefail
cd "$(dirname "$0")"
out=${1:?usage: objectives.sh OUTPUT [NAME...]}
shift
mkdir -p "$out"
out=$(realpath "$out")

run() { # NAME SETTINGS...: trains, evaluates into OUTPUT/NAME.json, and keeps the student
  local name=$1
  shift
  [ -f "$out/$name.json" ] && return
  rm -rf "${out:?}/$name"
  distill train --config heal.toml --output "$out/$name" --set train.steps=60 --set train.warmup_steps=10 \
    --set eval.every_steps=60 --set checkpoint.every_steps=60 "$@"
  distill eval --config heal.toml --student "$out/$name/student" --json "$out/$name.json"
  rm -rf "$out/$name/checkpoints"
}

own='--set rollout.fraction=0.5 --set rollout.max_new_tokens=96'
for name in "${@:-forward_kl reverse_kl jsd skew_kl on_policy on_policy_reverse hidden lora}"; do
  for one in $name; do
    case $one in
      forward_kl | reverse_kl | jsd | skew_kl | skew_reverse_kl | tvd | cross_entropy) run "$one" --set loss.kind="$one" ;;
      on_policy) run $one $own ;;
      on_policy_reverse) run $one $own --set loss.kind=reverse_kl ;;
      hidden) run $one --set 'loss.hidden={layers="auto", kind="cosine", weight=1.0}' ;;
      lora)
        # A config of its own: --set takes no key away, and an adapted model is not cut.
        [ -d "$out/cut" ] || distill init --config heal.toml --output "$out/cut"
        sed "/^layers = /d; s|^kind = \"pruned\"|kind = \"lora\"\nfrom = \"$out/cut\"\nrank = 64\nalpha = 128|" heal.toml >lora.toml
        trap 'rm -f lora.toml' EXIT
        [ -f "$out/$one.json" ] && continue
        distill train --config lora.toml --output "$out/$one" --set train.steps=60 --set train.warmup_steps=10 \
          --set eval.every_steps=60 --set checkpoint.every_steps=60 --set train.learning_rate=2e-3
        distill eval --config heal.toml --student "$out/$one/student" --json "$out/$one.json"
        ;;
      *) echo "no objective is called $one" >&2 && exit 2 ;;
    esac
  done
done
