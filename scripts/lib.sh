# Shared by the scripts here; sourced, not run. Sets MOIRA_ROOT and MOIRA_JOBS and defines how they speak and build.

MOIRA_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MOIRA_BUILD=$MOIRA_ROOT/build
MOIRA_JOBS=${MOIRA_JOBS:-$(nproc)}

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# logged LOG COMMAND...: runs quietly, keeps the output in LOG, shows its end if the command fails.
logged() {
  local log=$1
  shift
  mkdir -p "$(dirname "$log")"
  "$@" >"$log" 2>&1 && return 0
  local code=$?
  tail -n 40 "$log" >&2
  say "failed (exit code $code): $*"
  say "the whole output is in ${log#"$MOIRA_ROOT"/}"
  return "$code"
}

# configure_and_build [TARGET...]: configures the release preset (only if that was never done; ninja repeats it when CMake files change)
# and builds the targets, default all.
configure_and_build() {
  cd "$MOIRA_ROOT" || return
  if [ ! -f "$MOIRA_BUILD/build.ninja" ]; then
    say "configuring into build/"
    logged "$MOIRA_BUILD/logs/configure.log" cmake --preset release || return
  fi
  say "building with $MOIRA_JOBS jobs"
  logged "$MOIRA_BUILD/logs/build.log" cmake --build "$MOIRA_BUILD" --parallel "$MOIRA_JOBS" ${1:+--target "$@"}
}

# Names the parts that this machine leaves out.
report_cuda() {
  if command -v nvcc >/dev/null 2>&1 || [ -x /usr/local/cuda/bin/nvcc ]; then
    say "CUDA toolkit found: $(command -v nvcc || echo /usr/local/cuda/bin/nvcc)"
  elif command -v ptxas >/dev/null 2>&1; then
    say "no CUDA toolkit, only ptxas: emitted PTX is assembled by the tests; the CUDA device plugin is not built"
  else
    say "no CUDA toolkit: skipped are the CUDA device plugin and the assembling of emitted PTX by ptxas"
  fi
}
