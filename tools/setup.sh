#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything the make targets need on a fresh Debian 12: compilers from apt, a virtual environment in
# .venv with pinned packages, and lowtide itself installed into it. Does only what is missing.
#
#   tools/setup.sh PART...     parts: apt cross counts browser build test peers demo bench docs package
#
# Environment: PYTHON (default python3) makes the virtual environment; pip's own variables apply
# (PIP_EXTRA_INDEX_URL with PyTorch's CPU wheels saves gigabytes where pip would choose a CUDA build).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PYTHON=${PYTHON:-python3}
readonly VENV=$PWD/.venv
readonly STAMPS=$VENV/.stamps

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 2
}

# ---- Debian packages ---------------------------------------------------------------------------

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo > /dev/null && { sudo -n true 2> /dev/null || [ -t 0 ]; }; then
    sudo "$@"
  else
    return 126
  fi
}

apt_updated=
# apt_install PACKAGE...: 0 if all are there afterwards.
apt_install() {
  local missing=() p
  for p in "$@"; do
    dpkg-query -W -f='${Status}' "$p" 2> /dev/null | grep -q '^install ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  say "installing ${missing[*]}"
  mkdir -p build
  {
    { [ -n "$apt_updated" ] || as_root apt-get update; } &&
      as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
  } > build/apt.log 2>&1 < /dev/null || return 1
  apt_updated=yes
}

part_apt() {
  if command -v dpkg-query > /dev/null; then
    local packages=(cmake ninja-build g++ libgtest-dev libbenchmark-dev)
    apt_install "${packages[@]}" ||
      die "could not install ${packages[*]} (see build/apt.log); run as root: apt-get install ${packages[*]}"
  else
    local tool
    for tool in cmake ninja g++; do
      command -v "$tool" > /dev/null ||
        die "$tool is missing and this is not Debian: install CMake 3.25+, Ninja, GCC 12+, GoogleTest and Google Benchmark"
    done
  fi
}

# Optional: without these the NEON stage is skipped and says so.
part_cross() {
  command -v dpkg-query > /dev/null || return 0
  apt_install g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user googletest ||
    say "no cross compiler or qemu (see build/apt.log): the NEON tests will be skipped"
}

# Optional: without it no instructions are counted.
part_counts() {
  command -v dpkg-query > /dev/null || return 0
  apt_install valgrind || say "no valgrind (see build/apt.log): instructions will not be counted"
}

# Optional: without it the pages of `lowtide report` are not looked at in a browser.
part_browser() {
  command -v dpkg-query > /dev/null || return 0
  apt_install chromium fonts-dejavu-core ||
    say "no chromium (see build/apt.log): the tests that open pages in a browser will be skipped"
}

# ---- Python ------------------------------------------------------------------------------------

ensure_venv() {
  if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version > /dev/null 2>&1; then
    return
  fi
  command -v "$PYTHON" > /dev/null || apt_install python3 ||
    die "no $PYTHON: install Python 3.10 or newer, or set PYTHON"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$PYTHON is $("$PYTHON" --version 2>&1); lowtide needs 3.10 or newer: set PYTHON to one"
  if ! "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null; then  # Debian splits them off
    apt_install python3-venv || die "$PYTHON has no venv; run as root: apt-get install python3-venv"
  fi
  if ! "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
    apt_install python3-dev || die "$PYTHON has no headers; run as root: apt-get install python3-dev"
  fi
  say "making .venv with $("$PYTHON" --version)"
  "$PYTHON" -m venv --clear "$VENV"
}

# once NAME KEY COMMAND...: runs COMMAND unless it already succeeded with this KEY.
once() {
  local name=$1 key=$2
  shift 2
  mkdir -p "$STAMPS"
  [ "$(cat "$STAMPS/$name" 2> /dev/null)" = "$key" ] && return
  rm -f "$STAMPS/$name"
  "$@"
  printf '%s\n' "$key" > "$STAMPS/$name"
}

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check -q "$@" < /dev/null; }

part_requirements() {
  ensure_venv
  install_requirements() {
    say "installing requirements/$1.txt"
    if [ "$1" = peers ]; then
      pip_install --no-deps -r requirements/peers.txt
    else
      pip_install -r "requirements/$1.txt" -c requirements/constraints.txt
    fi
  }
  local key
  key=$(cat "requirements/$1.txt" requirements/constraints.txt | sha256sum | cut -d' ' -f1)
  once "$1" "$key" install_requirements "$1"
}

# What is installed is the repaired wheel, as a user gets it; it stays in .venv/wheel. Keyed by the sources, so that
# an edit is never tested against a stale install. LOWTIDE_WERROR=ON makes warnings errors; such an install is also
# good where that was not asked for.
part_package() {
  part_requirements build
  local werror=${LOWTIDE_WERROR:-OFF} key
  install_package() {
    say "building and installing lowtide's wheel with its torch ops"
    local options=(--no-audit --tests none)
    [ "$werror" = ON ] && options+=(--werror)
    rm -rf "$VENV/wheel"
    "$VENV/bin/python" tools/wheel.py --out "$VENV/wheel" "${options[@]}"
    pip_install --no-deps --no-index --force-reinstall "$VENV"/wheel/*.whl
  }
  key=$(find csrc cmake python tools/wheel_build.py CMakeLists.txt pyproject.toml LICENSE README.md -type f \
    ! -name '*.so' ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
  [ "$werror" = OFF ] && [ "$(cat "$STAMPS/package" 2> /dev/null)" = "$key ON" ] && return
  once package "$key $werror" install_package
}

[ $# -gt 0 ] || set -- apt build package
for part in "$@"; do
  case $part in
    apt | cross | counts | browser | package) "part_$part" ;;
    build | test | peers | demo | bench | docs) part_requirements "$part" ;;
    *) die "unknown part '$part'; parts: apt cross counts browser build test peers demo bench docs package" ;;
  esac
done
