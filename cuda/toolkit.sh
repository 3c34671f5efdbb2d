#!/usr/bin/env bash
# toolkit.sh DIR: makes a CUDA toolkit in DIR that builds `--features cuda` on a machine without CUDA, and prints what to
# export (messages go to stderr):
#   cargo fetch; env=$(cuda/toolkit.sh DIR) && eval "$env"; cargo build --release --features cuda
#
# The compiler comes from NVIDIA's Python wheels (requirements.txt; 105 MB of download, 280 MB of disk). The libraries are
# lazy (lazy_library.c), so that the binary starts on any machine. A finished DIR is recognised.
# Needs bash, python3 with pip, and gcc, g++ and ar; the wheels are for Linux on x86_64 and aarch64.
set -euo pipefail
# link name, file to open at run time, cudarc's module, prefix of its functions, error code for "it is not there"
LIBRARIES='
cuda     libcuda.so.1       driver   cu       34
cublas   libcublas.so.13    cublas   cublas   1
cublasLt libcublasLt.so.13  cublaslt cublasLt 1
curand   libcurand.so.10    curand   curand   203
nvrtc    libnvrtc.so.13     nvrtc    nvrtc    11
'

say() { printf 'toolkit.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
[ $# = 1 ] || die "usage: toolkit.sh DIR"
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
home=$dir/nvidia/cu13
for tool in gcc g++ ar python3; do command -v "$tool" >/dev/null || die "$tool is missing (Debian: build-essential python3-pip)"; done

# The functions are those that cudarc declares.
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
version=$(grep -A1 '^name = "cudarc"' "$here/../Cargo.lock" | sed -n 's/^version = "\(.*\)"/\1/p')
cudarc=$(find "$registry" -maxdepth 2 -name "cudarc-$version" 2>/dev/null | head -1)
[ -n "$cudarc" ] || die "cudarc $version is not in $registry: run cargo fetch first"

done_with=$(cat "$0" "$here"/{requirements.txt,lazy_library.c,portable-nvcc.sh} | sha256sum | cut -c1-16)-$version
if [ ! -e "$home/.$done_with" ]; then
  if ! cmp -s "$here/requirements.txt" "$home/.requirements"; then
    say "fetching the compiler"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile --upgrade \
      --only-binary=:all: --require-hashes --target "$dir" --requirement "$here/requirements.txt" >&2 ||
      die "pip could not fetch the wheels (python3 -m pip must exist and reach its index)"
    cp "$here/requirements.txt" "$home/.requirements"
  fi
  chmod +x "$home"/bin/* "$home"/nvvm/bin/*
  install "$here/portable-nvcc.sh" "$home/bin/portable-nvcc"
  ln -sfn lib "$home/lib64"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  while read -r name file module prefix missing; do
    [ -n "$name" ] || continue
    grep -ohE "^ *fn $prefix[A-Z][A-Za-z0-9_]*\(" "$cudarc/src/$module/sys/mod.rs" | sort -u |
      sed -E 's/^ *fn (.*)\(/FUNCTION(\1)/' > "$work/functions.h"
    [ "$(wc -l < "$work/functions.h")" -gt 10 ] || die "no functions $prefix* in $cudarc: is it laid out in another way now?"
    gcc -O2 -fPIC -Wall -I"$work" -DFILE_NAME="\"$file\"" -DMISSING="$missing" -c -o "$work/$name.o" "$here/lazy_library.c"
    rm -f "$home/lib/lib$name".{a,so}
    ar rcs "$home/lib/lib$name.a" "$work/$name.o"
  done <<< "$LIBRARIES"
  rm -f "$home/lib/libcudart.so"
  ln -sfn libcudart_static.a "$home/lib/libcudart.a"
  echo 'extern "C" __global__ void k(float *x) { x[threadIdx.x] += 1.0f; }' > "$work/k.cu"
  "$home/bin/portable-nvcc" -gencode=arch=compute_80,code=sm_80 -c -o "$work/k.o" "$work/k.cu" >&2 ||
    die "the compiler does not work here (does it know this gcc? NVCC_CCBIN names another)"
  touch "$home/.$done_with"
  say "$home is ready"
fi
cat <<E2
export CUDA_HOME='$home'
export NVCC='$home/bin/portable-nvcc'
export PATH='$home/bin':"\$PATH"
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
export CUDARC_CUDA_VERSION=13000
E2
