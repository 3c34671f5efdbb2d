#!/usr/bin/env bash
# The same step in PyTorch and in distill, in turn, on an otherwise idle machine; prints both and their ratio.
#
#   PYTHON=venv/bin/python benches/vs_pytorch/run.sh [MODE...] [--batch N] [--length N] [--steps N]
#
# MODE: f32 | bf16-teacher | bf16 | top-64, all of them without one.
# PYTHON needs torch and transformers; DISTILL is the binary, default target/release/distill.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
distill=${DISTILL:-$here/../../target/release/distill}
python=${PYTHON:-python3}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
modes=()
while [[ ${1:-} && $1 != --* ]]; do modes+=("$1"); shift; done
[ ${#modes[@]} -gt 0 ] || modes=(f32 bf16-teacher bf16 top-64)
for mode in "${modes[@]}"; do
    case $mode in
        f32) ours=(--teacher "$here/teacher.json") ;;
        bf16-teacher) ours=(--teacher "$here/teacher.json" --teacher-dtype bf16) ;;
        bf16) ours=(--teacher "$here/teacher.json" --teacher-dtype bf16 --dtype bf16) ;;
        top-64) ours=(--top-k 64) ;;
        *) echo "unknown mode $mode: f32 | bf16-teacher | bf16 | top-64" >&2; exit 2 ;;
    esac
    torch=$("$python" "$here/step.py" "$here/teacher.json" "$here/student.json" --mode "$mode" "$@" 2>"$log") || { cat "$log" >&2; exit 1; }
    ours=$("$distill" bench "${ours[@]}" --student "$here/student.json" --json "$@" 2>"$log") || { cat "$log" >&2; exit 1; }
    printf 'PyTorch  %s\ndistill  %s\n' "$torch" "$ours"
    printf '%s\n%s\n' "$torch" "$ours" | awk -v mode="$mode" '
        { match($0, /"tokens_per_second": ?[0-9.]+/); speed[NR] = substr($0, RSTART + 20, RLENGTH - 20) + 0
          match($0, /"peak_rss_bytes": ?[0-9]+/);     bytes[NR] = substr($0, RSTART + 17, RLENGTH - 17) + 0 }
        END { printf "%-13s speed %.2f x, memory %.2f x\n\n", mode, speed[2] / speed[1], bytes[2] / bytes[1] }'
done
