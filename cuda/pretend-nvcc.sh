#!/bin/sh
# Stands in for nvcc where only the Rust is checked and nothing is linked; kernels become empty files:
#   NVCC=$PWD/cuda/pretend-nvcc.sh CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000 cargo clippy --all-targets --features cuda
out='' folder=. source='' empty=''
while [ $# -gt 0 ]; do
  case $1 in
    --version) echo 'Cuda compilation tools, release 13.0, V13.0.0'; exit ;;
    --list-gpu-code) exit ;;
    -o) out=$2; shift ;;
    --output-directory) folder=$2; shift ;;
    --lib) empty='!<arch>\n' ;;
    *.cu) source=$1 ;;
  esac
  shift
done
printf "$empty" > "${out:-$folder/$(basename "$source" .cu).ptx}"
