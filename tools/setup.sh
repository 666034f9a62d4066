# Sourced by tools/demo and tools/test, which work on a fresh Debian 12: installs what the build needs and is missing,
# then configures and builds what is not up to date. Expects `set -euo pipefail`.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# LLVM's static libraries ask for zlib, zstd and libxml2; OpenBLAS is what `kerf bench` compares with.
packages=(cmake ninja-build g++ ccache llvm-19-dev zlib1g-dev libzstd-dev libxml2-dev
          libfmt-dev doctest-dev libcli11-dev nlohmann-json3-dev libopenblas0-pthread)

install_missing() {
  local package missing=() as_root=()
  for package in "${packages[@]}"; do
    [[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then return; fi
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      echo "missing packages, and neither root nor sudo to install them; as root: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# build PRESET [TARGET...]: the build folder of a preset, up to date.
build() {
  local preset=$1 folder=build
  shift
  [[ $preset == release ]] || folder=build-$preset
  [[ -f $folder/build.ninja ]] || cmake --preset "$preset"
  cmake --build --preset "$preset" -j "$(nproc)" ${@:+--target "$@"}
}
