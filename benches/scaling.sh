#!/usr/bin/env bash
# How a step grows with threads, rows, their length and the vocabulary: a table each, from `distill bench --json`.
#
#   benches/scaling.sh [--steps N] [--teacher-dtype bf16] [--dtype bf16]
#
# The shapes are those of vs_pytorch; DISTILL is the binary, default target/release/distill. On an otherwise idle machine.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
distill=${DISTILL:-$here/../target/release/distill}
shapes=$(mktemp -d)
log=$shapes/log
trap 'rm -rf "$shapes"' EXIT
vocabulary() {
    for model in teacher student; do
        sed -E "s/(\"vocab_size\": *)[0-9]+/\1$1/" "$here/vs_pytorch/$model.json" > "$shapes/$model.json"
    done
}
# row NAME ARGUMENTS...: one line of a table
row() {
    local name=$1 line
    shift
    line=$("$distill" bench --teacher "$shapes/teacher.json" --student "$shapes/student.json" --json "$@" 2>"$log") || { cat "$log" >&2; exit 1; }
    number() { sed -E "s/.*\"$1\":([0-9.]+).*/\1/" <<< "$line"; }
    printf '| %s | %.0f | %.2f |\n' "$name" "$(number tokens_per_second)" "$(number peak_rss_bytes | awk '{ print $1 / 1e9 }')"
}
header() { printf '\n| %s | tokens/s | peak memory, GB |\n| --- | --- | --- |\n' "$1"; }

vocabulary 49152
header threads
for threads in 1 $(nproc); do RAYON_NUM_THREADS=$threads row $threads "$@"; done
header "rows of 256"
for batch in 1 2 4 8 16; do row $batch --batch $batch "$@"; done
header "tokens of one row"
for length in 128 256 512 1024 2048; do row $length --batch 1 --length $length "$@"; done
header vocabulary
for size in 512 4096 32768 49152 131072 262144; do vocabulary $size; row $size "$@"; done
