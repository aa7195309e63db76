# Sourced by the scripts: installs what they need on a Debian machine, each thing once.
# Nothing here changes the machine's services: no package that starts a daemon is installed.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# What the daemon, the lab and the tests call. python3-venv and curl are for the scripts.
packages_needed="nftables libnftables1 libseccomp2 conntrack iproute2 util-linux procps
  busybox-static curl ca-certificates python3 python3-venv"
# What some tests hold us to besides: a registry, and the tools that others make images with.
packages_of_tests="docker-registry skopeo umoci podman crun runc containerd"

# packages NAME...: install those of these Debian packages that are missing.
packages() {
  local name missing=()
  command -v dpkg-query >/dev/null || { say "no dpkg here: install by hand: $*"; return; }
  for name in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || { say "not root, so not installed: ${missing[*]}"; return 0; }
  say "apt-get install ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  quietly apt-get -q -o DPkg::Lock::Timeout=300 update || say "apt-get update failed: trying the old lists"
  quietly apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" ||
    die "apt-get install ${missing[*]} failed: see above"
}

# quietly COMMAND...: show what it said only if it fails.
quietly() {
  local log; log=$(mktemp)
  if "$@" >"$log" 2>&1 </dev/null; then rm -f "$log"; return 0; fi
  cat "$log" >&2
  rm -f "$log"
  return 1
}

# peer_packages NAME...: like packages, for what we measure against: some of these start daemons
# when they are installed, which this machine did not ask for. They are neither started nor enabled.
peer_packages() {
  local policy=/usr/sbin/policy-rc.d ours= unit name new=()
  for name in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || new+=("$name")
  done
  [ ${#new[@]} -gt 0 ] || return 0
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
    trap "rm -f $policy" EXIT
    ours=1
  fi
  packages "${new[@]}"
  [ -z "$ours" ] || { rm -f $policy; trap - EXIT; }
  [ -d /run/systemd/system ] || return 0
  for name in "${new[@]}"; do
    for unit in $(dpkg -L "$name" | sed -n 's|^.*/systemd/system/\([^/@]*\.\(service\|socket\)\)$|\1|p'); do
      systemctl -q disable "$unit" || true
    done
  done
}

# docker_client: the stock docker client and no daemon. Debian 13 has a package for it; of
# Debian 12's docker.io only the one file is unpacked, since installing it starts a daemon that
# rewrites the machine's firewall.
docker_client() {
  command -v docker >/dev/null || [ -x "$venv/bin/docker" ] && return
  if apt-cache show docker-cli >/dev/null 2>&1; then packages docker-cli; return; fi
  local scratch; scratch=$(mktemp -d)
  say "unpacking the docker client from Debian's docker.io"
  (cd "$scratch" && quietly apt-get -q download docker.io && dpkg -x docker.io_*.deb tree &&
    install -m 755 tree/usr/bin/docker "$venv/bin/docker") ||
    say "no docker client to be had: tests that need it are skipped"
  rm -rf "$scratch"
}

# virtual_environment [PYTHON]: a venv with this package in it, remade when pyproject.toml changed.
# The default interpreter's is .venv; another one's is build/venv-NAME.
virtual_environment() {
  local python=${1:-python3} stamp
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "$python is not Python 3.11 or newer: install one, or name it with --python"
  venv=$root/.venv
  [ $# = 0 ] || venv=$root/build/venv-${python##*/}
  stamp="$root $(cksum < pyproject.toml)"
  if [ ! -x "$venv/bin/python" ]; then
    say "making $venv"
    mkdir -p "$(dirname "$venv")"
    "$python" -m venv "$venv" || die "no virtual environment: is python3-venv installed?"
  fi
  if [ "$(cat "$venv/installed" 2>/dev/null)" != "$stamp" ]; then
    say "pip install -e .[dev]"
    "$venv/bin/python" -m pip -q --disable-pip-version-check install -e '.[dev]' >&2 ||
      die "pip install failed: see above"
    printf '%s' "$stamp" > "$venv/installed"
  fi
  export PATH=$venv/bin:$PATH
}
