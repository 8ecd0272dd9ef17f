#!/usr/bin/env bash
# Checks what is needed to build and test everything, installs what it may, and says what to do about the rest.
# On standard output: what to export, if anything. `make setup` keeps it in target/setup.env.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "[setup] $*" >&2; }
die() {
  echo "[setup] error: $*" >&2
  exit 1
}

# The wanted version of Rust, as rust-toolchain.toml names it.
wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)

# What may be missing on a fresh Debian: PROGRAM PACKAGE...
need_program() {
  local program=$1
  shift
  ! command -v "$program" >/dev/null || return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing $*"
    # The lists of a fresh machine are empty or old; where they can be used as they are, that is quicker.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2 || {
      apt-get -q update >&2
      DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2
    } || die "$program is missing, and installing $* failed; see above"
  else
    die "$program is missing; install the packages $* (on Debian: sudo apt-get install $*)"
  fi
}

# What the tests on a real Kafka need, and nothing else does.
want_program() {
  (need_program "$@") || say "without $1 there is no Kafka to test on, and the tests on it are skipped"
}

is_wanted() { [[ $("$@" rustc --version 2>/dev/null) == "rustc $wanted "* ]]; }

# Rust, possibly under another name of its toolchain: `stable` is 1.95.0 for a while.
need_rust() {
  command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || {
    PATH="$HOME/.cargo/bin:$PATH"
    echo "export PATH=\"$HOME/.cargo/bin:\$PATH\""
  }
  command -v cargo >/dev/null || die "there is no cargo; install Rust $wanted with rustup"
  ! is_wanted env || return 0
  command -v rustup >/dev/null || die "rustc is not $wanted but $(rustc --version); install Rust $wanted with rustup"
  local toolchain
  for toolchain in $(rustup toolchain list | awk '{print $1}'); do
    if is_wanted env RUSTUP_TOOLCHAIN="$toolchain"; then
      say "using the toolchain $toolchain, which is Rust $wanted"
      export RUSTUP_TOOLCHAIN="$toolchain"
      echo "export RUSTUP_TOOLCHAIN=$toolchain"
      return 0
    fi
  done
  say "installing Rust $wanted"
  rustup toolchain install "$wanted" --profile minimal --component clippy,rustfmt >&2 && is_wanted env ||
    die "Rust $wanted could not be installed; run: rustup toolchain install $wanted"
}

# For librdkafka, which is C with a part in C++, and for the OpenSSL in it, which is configured by Perl.
need_program cc gcc libc6-dev
need_program c++ g++
need_program make make
need_program cmake cmake
need_program perl perl
# For the Kafka that tests use.
want_program java openjdk-17-jre-headless
want_program mvn maven
need_rust
sdk/wasm-target.sh
