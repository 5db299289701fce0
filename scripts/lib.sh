# Shared by the scripts of this directory: messages, packages, tools and the kernel. Sourced, never run.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${SALVOL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/salvol}
kernel_series=6.12
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }
installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
host_has_ublk() { [[ -c /dev/ublk-control ]]; }

# ---- What is missing --------------------------------------------------------------------------------------------------------

# Adds PACKAGE to `missing` unless it is there. `missing` is the array that announce and install_missing work on.
missing=()
want_package() {
  installed "$1" || missing+=("$1")
}

# Adds PACKAGE unless COMMAND can already be run, wherever it came from.
want_command() {
  have "$1" || missing+=("$2")
}

# bindgen (in the build of libublk) loads libclang at run time and needs clang's own stddef.h.
want_libclang() {
  local library header
  library=$(find "${LIBCLANG_PATH:-/usr/lib}" /usr/lib /usr/local/lib /usr/lib64 -name 'libclang*.so*' \
    -not -name 'libclang_rt*' -not -name 'libclang-cpp*' -print -quit 2>/dev/null || true)
  header=$(find /usr/lib /usr/local/lib /usr/lib64 -path '*clang*' -name stddef.h -print -quit 2>/dev/null || true)
  [[ -n $library && -n $header ]] && return
  if apt-cache show libclang1-14 >/dev/null 2>&1; then
    missing+=(libclang1-14 libclang-common-14-dev)
  else
    missing+=(libclang-dev)
  fi
}

want_build_tools() {
  want_command gcc gcc
  want_command make make
  want_command curl curl
  installed libc6-dev || missing+=(libc6-dev)
  installed ca-certificates || missing+=(ca-certificates)
  want_libclang
}

# ---- Where the kernel with ublk comes from ------------------------------------------------------------------------------------

# The kernel the scripts will boot: the one given, or the cached one, or nothing.
find_uml_kernel() {
  if [[ -n ${SALVOL_UML_KERNEL:-} ]]; then
    [[ -x $SALVOL_UML_KERNEL ]] || die "SALVOL_UML_KERNEL=$SALVOL_UML_KERNEL is not an executable file"
    printf '%s\n' "$SALVOL_UML_KERNEL"
    return
  fi
  local cached
  for cached in "$cache/linux-uml-$kernel_series".*; do
    [[ -x $cached ]] && printf '%s\n' "$cached" && return
  done
  return 1
}

# The packages that build a kernel; the source itself may be given as a tarball.
want_kernel_build() {
  [[ $(uname -m) == x86_64 ]] ||
    die "User-Mode Linux runs on x86-64 only; on $(uname -m) use a host kernel with ublk (modprobe ublk_drv) and KERNEL=native"
  local package
  for package in gcc make; do want_command "$package" "$package"; done
  for package in libc6-dev flex bison bc xz-utils; do want_package "$package"; done
  if [[ -n ${SALVOL_KERNEL_SOURCE:-} ]]; then
    [[ -r $SALVOL_KERNEL_SOURCE ]] || die "SALVOL_KERNEL_SOURCE=$SALVOL_KERNEL_SOURCE cannot be read"
  elif [[ ! -r /usr/src/linux-source-$kernel_series.tar.xz ]]; then
    missing+=("linux-source-$kernel_series")
  fi
}

# The kernel that scripts/qemu boots: a directory with boot/vmlinuz-RELEASE and lib/modules/RELEASE.
find_qemu_kernel() {
  if [[ -n ${SALVOL_QEMU_KERNEL:-} ]]; then
    [[ -d $SALVOL_QEMU_KERNEL/boot ]] || die "SALVOL_QEMU_KERNEL=$SALVOL_QEMU_KERNEL is no directory with boot/ and lib/modules/"
    printf '%s\n' "$SALVOL_QEMU_KERNEL"
    return
  fi
  compgen -G "$cache/qemu-$kernel_series.*" | sort -V | tail -n 1 | grep .
}

# ---- Running a guest ----------------------------------------------------------------------------------------------------------

# A directory for this run, locked while it lasts, in $work. Those of runs that were killed before they could remove them go.
make_work_directory() {
  local turn lock old
  mkdir -p "$cache/run"
  exec {turn}<"$cache/run"
  flock "$turn"
  for old in "$cache"/run/guest.*; do
    [[ ! -d $old ]] || flock --nonblock "$old" rm -rf "$old" || true
  done
  work=$(mktemp -d "$cache/run/guest.XXXXXX")
  exec {lock}<"$work"
  flock "$lock"
  exec {turn}<&-
}

# ---- Saying it, then doing it -------------------------------------------------------------------------------------------------

as_root() {
  if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi
}

# The download size of the missing packages, as apt reckons it (with what they depend on).
download_size() {
  apt-get install --no-install-recommends -y --print-uris "${missing[@]}" 2>/dev/null |
    awk '$3 ~ /^[0-9]+$/ { bytes += $3 } END { printf "%d MB", bytes / 1e6 }'
}

# announce WHAT MINUTES: what will be installed and built before WHAT starts.
announce() {
  local what=$1 minutes=$2
  say "$what"
  local unique
  mapfile -t unique < <(printf '%s\n' "${missing[@]}" | sort -u | sed '/^$/d')
  missing=("${unique[@]}")
  if [[ ${#missing[@]} -gt 0 ]]; then
    have apt-get || die "please install by hand what these Debian packages hold: ${missing[*]}"
    have_sources || say "  packages  ${missing[*]} (sizes are known after apt-get update)"
    ! have_sources || say "  packages  ${missing[*]}: $(download_size) to download"
  else
    say "  packages  nothing to install"
  fi
  if have cargo; then
    say "  Rust      $(cargo --version 2>/dev/null | cut -d' ' -f1-2) is here; crates are fetched by the first build (about 30 MB)"
  else
    say "  Rust      will be installed for this user by rustup (about 250 MB to download)"
  fi
  say "  kernel    $kernel_plan"
  say "  time      $minutes"
}

# Whether apt knows any package at all: a fresh container has no lists.
have_sources() { apt-cache show coreutils >/dev/null 2>&1; }

install_missing() {
  [[ ${#missing[@]} -gt 0 ]] || return 0
  if [[ $(id -u) != 0 ]] && ! have sudo; then
    die "not root and no sudo here; as root, run this once and start again:
  apt-get update && apt-get install --no-install-recommends -y ${missing[*]}"
  fi
  step "Installing packages"
  local log=$cache/apt.log
  mkdir -p "$cache"
  if ! { as_root apt-get update && as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install --no-install-recommends -y "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    if grep -q "Unable to locate package linux-source" "$log"; then
      die "this distribution has no linux-source-$kernel_series: give a kernel source with SALVOL_KERNEL_SOURCE=TARBALL (from kernel.org), or a built User-Mode Linux with SALVOL_UML_KERNEL=FILE"
    fi
    die "the packages could not be installed; the whole log is $log"
  fi
}

install_rust() {
  have cargo && return
  step "Installing Rust (rustup, for this user only)"
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y -q --profile minimal --no-modify-path
}

# choose_kernel WHERE: decides between the host's kernel and User-Mode Linux, and says so in `kernel_plan`.
# WHERE is "native" (the host's, or stop), "uml", "qemu", or "either" (the host's when it has ublk and we are root).
choose_kernel() {
  kernel_kind=uml
  local where=$1 found
  if [[ $where == native ]]; then
    host_has_ublk || die "KERNEL=native, but this kernel has no ublk driver: load it with 'modprobe ublk_drv' (on Ubuntu it is in linux-modules-extra-$(uname -r))"
    [[ $(id -u) == 0 ]] || die "KERNEL=native needs root"
    kernel_kind=native
  elif [[ $where == either ]] && host_has_ublk && [[ $(id -u) == 0 ]]; then
    kernel_kind=native
  fi
  if [[ $where == qemu ]]; then
    kernel_kind=qemu
    want_command qemu-system-x86_64 qemu-system-x86
    want_command xz xz-utils
    kernel_plan="Debian's, in a QEMU guest with two processors: fetched once (107 MB)"
    ! found=$(find_qemu_kernel) || kernel_plan="$found, in a QEMU guest with two processors"
  elif [[ $kernel_kind == native ]]; then
    kernel_plan="the one running here, $(uname -r), has ublk"
    warn_about_kernel
  elif found=$(find_uml_kernel); then
    kernel_plan="User-Mode Linux, $found: an ordinary process, your own kernel is not touched"
  else
    want_kernel_build
    kernel_plan="User-Mode Linux (an ordinary process) built once from Debian's source: 4 minutes on two cores, 2 GB of disk meanwhile"
  fi
}

# Kernels known to oops when a ublk device is added.
warn_about_kernel() {
  case $(uname -r) in
    6.17.0-10* | 6.18.4 | 6.18.4-*) say "WARNING: kernel $(uname -r) is known to oops when a ublk device is added" ;;
  esac
}

# Exports the kernel's path for scripts/uml or scripts/qemu.
prepare_kernel() {
  if [[ $kernel_kind == qemu ]]; then
    SALVOL_QEMU_KERNEL=$("$repository/scripts/qemu-kernel" | tail -n 1)
    export SALVOL_QEMU_KERNEL
  fi
  [[ $kernel_kind == uml ]] || return 0
  SALVOL_UML_KERNEL=$(find_uml_kernel) || {
    "$repository/scripts/kernel"
    SALVOL_UML_KERNEL=$(find_uml_kernel) || die "the kernel was built but cannot be found in $cache"
  }
  export SALVOL_UML_KERNEL
}
