#!/usr/bin/env bash
# Makes `cargo build --target wasm32-wasip2` work, and changes nothing when it already does.
#
#   1. The toolchain has the target's standard library: nothing to do.
#   2. `rustup target add` can fetch it: done. Skipped when WASM_TARGET_NO_RUSTUP is set.
#   3. Otherwise it is built once from Rust's own sources, of exactly the version of `rustc`, with Debian's C library
#      for WASI. Both come from the toolchain, or from this machine's Debian mirror, with signatures checked by apt. The
#      result lies in a cache of its own; nothing else on the machine changes, and no rights are needed.
#
# On standard output: what to export, if anything. So:
#   eval "$(sdk/wasm-target.sh)" && cargo build --target wasm32-wasip2
#
# Environment:
#   WASM_TARGET_NO_RUSTUP  not empty: do not ask rustup
#   WASM_TARGET_CACHE      where to keep what is built (default: wasm-target in the user's cache directory)
#   WASM_TARGET_MIRROR     the Debian mirror (default: the one that apt uses)
#   WASM_TARGET_RUST_SRC   a tree of Rust's sources, of the same version
set -euo pipefail

target=wasm32-wasip2
cache=${WASM_TARGET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/wasm-target}
flags_variable=CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS
marker=.built-by-setup-wasm-target
rustc=${RUSTC:-rustc} cargo=${CARGO:-cargo}

say() { echo "[wasm-target] $*" >&2; }
die() {
  echo "[wasm-target] error: $*" >&2
  exit 1
}

command -v "$rustc" >/dev/null || die "there is no rustc; install Rust with rustup"
version=$("$rustc" -vV | sed -n 's/^release: //p')
commit=$("$rustc" -vV | sed -n 's/^commit-hash: //p')
own_sysroot=$("$rustc" --print sysroot)
# Another rustc gets another directory, because a standard library fits exactly one.
home="$cache/$version-${commit:0:9}"
sysroot="$home/sysroot"
library="$sysroot/lib/rustlib/$target"

# Whether a program that uses the standard library compiles and links, with more flags for rustc if given.
works() {
  local dir status=0
  dir=$(mktemp -d)
  cat >"$dir/probe.rs" <<'RUST'
fn main() {
    println!("{:?}", std::collections::HashMap::from([(1, String::from("one"))]));
}
RUST
  "$rustc" "$@" --target "$target" --crate-type bin -o "$dir/probe.wasm" "$dir/probe.rs" >"$dir/log" 2>&1 || status=1
  [ $status = 0 ] || last_log=$(tail -n 20 "$dir/log")
  rm -rf "$dir"
  return $status
}

built() { [ -e "$library/$marker" ] && works --sysroot "$sysroot"; }

answer() {
  # Cargo does not read the variable that we set when this one is there.
  [ -z "${RUSTFLAGS:-}" ] || say "warning: RUSTFLAGS is set and hides $flags_variable; add --sysroot=$sysroot to it"
  printf 'export %s="--sysroot=%s"\n' "$flags_variable" "$sysroot"
  exit 0
}

# apt with its own lists and cache: needs no rights, and leaves the system's alone. Signatures are checked as always.
apt_dir="$cache/apt"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
private() {
  local tool=$1
  shift
  "$tool" -o Dir::Etc::sourcelist="$apt_dir/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o Dir::State="$apt_dir/state" -o Dir::State::lists="$apt_dir/state/lists" -o Dir::State::status="$apt_dir/status" \
    -o Dir::Cache="$apt_dir/cache" -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Sandbox::User=root \
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

# update_lists SUITE...
update_lists() {
  command -v apt-get >/dev/null || die "rustup cannot add $target and there is no apt-get; try: rustup component add rust-src"
  local mirror suite run="$$ $*"
  # Once a run is enough.
  [ "$(cat "$apt_dir/read" 2>/dev/null)" != "$run" ] || return 0
  mirror=${WASM_TARGET_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
    grep -E '/debian/?$' | head -n 1 || true)}
  [ -n "$mirror" ] || die "apt knows no Debian mirror; name one in WASM_TARGET_MIRROR"
  [ -e "$keyring" ] || die "$keyring is missing; run: apt-get install debian-archive-keyring"
  mkdir -p "$apt_dir/state/lists/partial" "$apt_dir/cache/archives/partial"
  : >"$apt_dir/status"
  for suite in "$@"; do
    echo "deb [signed-by=$keyring arch=amd64] $mirror $suite main"
  done >"$apt_dir/sources.list"
  say "reading the package lists of $*"
  private apt-get -q update >&2 || say "warning: some lists could not be read"
  echo "$run" >"$apt_dir/read"
}

# The small suites first: half a megabyte of lists against thirty.
small_suites=(bookworm-backports trixie-backports)
all_suites=("${small_suites[@]}" trixie forky sid)

# unpack PACKAGE VERSION-PATTERN PATH-PATTERN: prints the directory that holds those files of the newest such version.
unpack() {
  local package=$1 pattern=$2 paths=$3 dir found=
  for dir in "$cache/deb/$package"_*; do
    [ -e "$dir/.ok" ] && [[ $(cat "$dir/.ok") =~ $pattern ]] && echo "$dir" && return 0
  done
  for suites in "${small_suites[*]}" "${all_suites[*]}"; do
    # shellcheck disable=SC2086 # names of suites have no spaces
    update_lists $suites
    found=$(private apt-cache madison "$package" | awk -F'|' '{gsub(/ /, "", $2); print $2}' |
      grep -E "$pattern" | sort -uV | tail -n 1) || true
    [ -z "$found" ] || break
  done
  [ -n "$found" ] || return 1
  dir="$cache/deb/${package}_$found"
  rm -rf "$dir"
  mkdir -p "$dir"
  say "fetching $package $found"
  (
    cd "$dir"
    private apt-get -q download "$package=$found" >&2
    dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards "$paths"
    rm -f ./*.deb
  ) || return 1
  echo "$found" >"$dir/.ok"
  echo "$dir"
}

find_sources() {
  local tree dir
  for tree in "${WASM_TARGET_RUST_SRC:-}" "$own_sysroot/lib/rustlib/src/rust"; do
    [ -n "$tree" ] && [ -e "$tree/library/Cargo.lock" ] && echo "$tree" && return 0
  done
  dir=$(unpack rust-src "^${version//./\\.}\\+dfsg" './usr/src/rustc-*/library/*') ||
    die "there are no sources of Rust $version in the Debian suites ${all_suites[*]}; try: rustup component add rust-src"
  tree="$dir/usr/src/rustc-$version"
  [ -e "$tree/library/Cargo.lock" ] || die "the sources in $dir do not lie where they should"
  echo "$tree"
}

find_c_library() {
  local dir
  # The version that Debian built its own library of Rust 1.95 with; any other will do where it is gone.
  dir=$(unpack wasi-libc '^0\.0~git20260129' './usr/lib/wasm32-*') || dir=$(unpack wasi-libc . './usr/lib/wasm32-*') ||
    die "there is no wasi-libc in the Debian suites ${all_suites[*]}"
  [ -e "$dir/usr/lib/$target/libc.a" ] || die "the wasi-libc in $dir has no $target/libc.a"
  echo "$dir/usr/lib/$target"
}

# compile SOURCES WORK-DIRECTORY: an empty crate for the target, whose build brings the standard library with it.
compile() {
  local sources=$1 work=$2
  mkdir -p "$work/crate/src"
  cat >"$work/crate/Cargo.toml" <<'TOML'
[package]
name = "stdbuild"
version = "0.0.0"
edition = "2021"
[lib]
[workspace]
[profile.release]
panic = "unwind"
debug = 0
TOML
  echo '#![no_std]' >"$work/crate/src/lib.rs"
  (
    cd "$work/crate"
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS CARGO_BUILD_TARGET RUSTC_WRAPPER
    env RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT="$sources/library" \
      "$flags_variable=-Cembed-bitcode=yes --remap-path-prefix=$sources=/rustc/$commit" \
      "$cargo" build -q --release --target "$target" -Zbuild-std=std,panic_abort,proc_macro,test \
      --target-dir "$work/target" >&2
  )
}

build() {
  local sources c_library work stage
  sources=$(find_sources)
  c_library=$(find_c_library)
  work="$home/build"
  rm -rf "$work"
  say "building the standard library for $target from $sources, once; about half a minute"
  compile "$sources" "$work"
  stage="$work/stage/lib/rustlib/$target"
  mkdir -p "$stage/lib/self-contained"
  cp "$work/target/$target/release/deps/"*.rlib "$stage/lib/"
  rm -f "$stage/lib/"libstdbuild-*
  cp "$c_library/crt1-command.o" "$c_library/crt1-reactor.o" "$c_library/libc.a" "$stage/lib/self-contained/"
  printf 'rustc %s %s\nsources %s\n' "$version" "$commit" "$sources" >"$stage/$marker"
  works --sysroot "$work/stage" || die "what was built does not link a program: $last_log"
  # Moved only when it works, so that an interrupted build leaves nothing that looks finished.
  mkdir -p "${library%/*}"
  rm -rf "$library"
  mv "$stage" "$library"
  rm -rf "$work"
}

if works; then exit 0; fi
if built; then answer; fi
if [ -z "${WASM_TARGET_NO_RUSTUP:-}" ] && command -v rustup >/dev/null; then
  say "trying: rustup target add $target"
  if timeout 120 rustup target add "$target" >&2 && works; then exit 0; fi
  say "rustup could not add it"
fi
mkdir -p "$home"
exec 9>"$home/lock"
# Two builds at once would tread on one another; the second finds the work of the first.
! command -v flock >/dev/null || flock 9
built || build
answer
