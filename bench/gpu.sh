#!/usr/bin/env bash
# Builds, checks and times scfast on a machine with an NVIDIA GPU and without a network: nothing is downloaded.
#
#   bench/gpu.sh                  build tests sanitizer bench, within nine minutes
#   bench/gpu.sh build tests      only these
#
#   build      into build/gpu, against the packages of python3: torch, nanobind, scikit-build-core, cmake, ninja
#   tests      the files of tests whose names say cuda. Triton compiles for some twenty minutes of a core, once: with
#              fewer than 16 cores, or without pytest-xdist, give them time of their own (LIMIT_TESTS=540)
#   sanitizer  compute-sanitizer's memcheck and racecheck on small shapes
#   bench      bench/gpu_models.py, bench/gpu_cosine.py, bench/run_gpu.py
#
# Results go to $OUT, or to bench/results/<gpu>; logs to $OUT, or to build/gpu. PYTHON names another python3,
# LIMIT_BUILD, LIMIT_TESTS, LIMIT_SANITIZER and LIMIT_BENCH other limits in seconds.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PARTS=(build tests sanitizer bench)
declare -A LIMIT=(
  [build]="${LIMIT_BUILD:-120}" [tests]="${LIMIT_TESTS:-100}"
  [sanitizer]="${LIMIT_SANITIZER:-100}" [bench]="${LIMIT_BENCH:-205}"
)
PLACE=build/gpu
ENV="$PWD/$PLACE/env"
SITE="$PWD/$PLACE/site"
# A plain "python3" may itself live in a virtual environment.
PYTHON="${PYTHON:-python3}"
# Compiled kernels are kept for the next call.
export TRITON_CACHE_DIR="$PWD/$PLACE/triton" TORCHINDUCTOR_CACHE_DIR="$PWD/$PLACE/inductor"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# The Python that sees scfast: an environment of its own, or python3 with a folder before its packages.
use_python() {
  if [[ -x "$ENV/bin/python" ]]; then
    PYTHON="$ENV/bin/python"
    export PATH="$ENV/bin:$PATH"
  elif [[ -d "$SITE" ]]; then
    export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"
  else
    echo "scfast is not built here: run bench/gpu.sh build first"
    return 1
  fi
}

build() {
  local options=(install --no-index --no-build-isolation --no-deps "-Cbuild-dir=$PLACE/cmake")
  "$PYTHON" -c 'import sys, torch
sys.exit(None if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device")' || return 1
  rm -rf "$ENV" "$SITE"
  if "$PYTHON" -m venv --system-site-packages --without-pip "$ENV"; then
    # Packages of an environment that python3 lives in are not "system" ones: they are borrowed by name.
    local own
    own="$("$ENV/bin/python" -c 'import sysconfig as s; print(s.get_path("purelib"))')" || return 1
    "$PYTHON" -c 'import sysconfig as s; print(s.get_path("purelib"), s.get_path("platlib"), sep="\n")' \
      > "$own/borrowed.pth" || return 1
    "$ENV/bin/python" -m pip "${options[@]}" . || return 1
  else
    echo "no virtual environment can be made: building into $SITE"
    "$PYTHON" -m pip "${options[@]}" --target "$SITE" . || return 1
  fi
  use_python && "$PYTHON" -m scfast doctor
}

tests() {
  use_python || return 1
  # These files alone: others import packages that such a machine may lack. Most of their time Triton compiles: on all
  # cores, where pytest-xdist is there. Free memory is looked at alone.
  local at_once=() failed=0
  "$PYTHON" -c 'import xdist' 2> /dev/null && at_once=(-n auto)
  "$PYTHON" -m pytest -q -p no:cacheprovider tests/run/test_cuda.py || failed=1
  "$PYTHON" -m pytest -q -p no:cacheprovider "${at_once[@]}" tests/ops/test_cuda*.py tests/kernels/test_cuda*.py || failed=1
  return $failed
}

sanitizer() {
  use_python || return 1
  local tool log sanitize
  sanitize="$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)" || {
    echo "compute-sanitizer is not installed: nothing was checked"
    return 1
  }
  # Kernels are compiled first, so that only they are watched; without torch's pool every tensor has bounds of its own.
  "$PYTHON" bench/gpu_small.py || return 1
  declare -A summary=([memcheck]="ERROR SUMMARY: 0 errors" [racecheck]="RACECHECK SUMMARY: 0 hazards")
  for tool in memcheck racecheck; do
    log="$PLACE/$tool.log"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitize" --tool "$tool" --target-processes application-only \
      "$PYTHON" bench/gpu_small.py > "$log" 2>&1
    local code=$?
    tail -n 25 "$log"
    if [[ $code != 0 ]] || ! grep -q "${summary[$tool]}" "$log"; then
      echo "$tool: '${summary[$tool]}' is missing (exit code $code)"
      return 1
    fi
  done
}

bench() {
  use_python || return 1
  local begun=$SECONDS failed=0
  "$PYTHON" bench/gpu_models.py || failed=1
  "$PYTHON" bench/gpu_cosine.py --seconds 50 || failed=1
  "$PYTHON" bench/run_gpu.py --seconds $((LIMIT[bench] - 30 - (SECONDS - begun))) || failed=1
  return $failed
}

# One part in a process of its own, so that its limit holds for all that it starts.
if [[ "${1:-}" == --part ]]; then
  "$2"
  exit
fi

chosen=("$@")
[[ $# == 0 ]] && chosen=("${PARTS[@]}")
for part in "${chosen[@]}"; do
  if [[ ! " ${PARTS[*]} " == *" $part "* ]]; then
    echo "there is no part '$part'; choose from: ${PARTS[*]}" >&2
    exit 2
  fi
done
if ! gpu="$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1)"; then
  echo "no NVIDIA GPU: nvidia-smi says: ${gpu:-nothing}" >&2
  exit 1
fi
echo "$gpu"

mkdir -p "$PLACE"
logs="${OUT:-$PLACE}"
mkdir -p "$logs"
rows=() failed=0
for part in "${chosen[@]}"; do
  echo
  echo "== $part (at most ${LIMIT[$part]} s)"
  start=$SECONDS
  timeout --kill-after=3 "${LIMIT[$part]}" bash "$PWD/bench/gpu.sh" --part "$part" 2>&1 | tee "$logs/$part.log"
  code=${PIPESTATUS[0]}
  case $code in
    0) outcome=passed ;;
    124 | 137) outcome="out of time" ;;
    *) outcome="failed" ;;
  esac
  [[ $code == 0 ]] || failed=1
  rows+=("$(printf '%-10s %-12s %4d s  %s' "$part" "$outcome" $((SECONDS - start)) "$(tail -n 1 "$logs/$part.log" | cut -c 1-80)")")
done
echo
echo "$gpu"
printf '%s\n' "${rows[@]}"
exit $failed
