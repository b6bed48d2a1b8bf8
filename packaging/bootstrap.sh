#!/bin/bash
# Makes this checkout runnable on a Debian that has nothing but git and make: the Debian packages of apt-packages.txt, and a
# virtual environment in .venv with the Python packages of setup.cfg. With the word "guest" also what an emulated computer
# needs (apt-packages-guest.txt, and a kernel in build/guest), with "deb" what building packages does (apt-packages-deb.txt).
# Says what it does; does nothing when all is there.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")
PACKAGES_FILE=$HERE/apt-packages.txt
GUEST_PACKAGES_FILE=$HERE/apt-packages-guest.txt
# The cloud flavour is a third of the size of the other one, and has all that a router needs but PPP.
KERNEL_PACKAGE=linux-image-cloud-amd64
KERNELS=$ROOT/build/guest
FOR=${1:-}
VENV=$ROOT/.venv
STAMP=$VENV/.bootstrap-stamp
# Never the first python3 in PATH: only the system's own sees apt's python3-nftables.
PYTHON=/usr/bin/python3

LOCK=/run/cpe-agent-bootstrap.lock
# A mirror that does not answer is told of in half a minute, not in many.
APT=(apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15)

POLICY=/usr/sbin/policy-rc.d
POLICY_ASIDE=/usr/sbin/policy-rc.d.before-cpe-agent
POLICY_MARK='written by the bootstrap of cpe_agent'

say() { printf 'bootstrap: %s\n' "$*"; }
fail() { printf 'bootstrap: %s\n' "$*" >&2; exit 1; }

# What the environment was made from. The path and the interpreter belong to it: a venv survives neither a move nor an
# upgrade of Debian.
fingerprint() {
    printf '%s\n%s\n' "$ROOT" "$(readlink -f "$PYTHON")"
    sha256sum <"$ROOT/setup.cfg"
    sha256sum <"$ROOT/pyproject.toml"
    sha256sum <"$PACKAGES_FILE"
}

wanted_packages() {
    local files=("$PACKAGES_FILE")
    [ "$FOR" != deb ] || files+=("$HERE/apt-packages-deb.txt")
    if [ "$FOR" = guest ]; then
        files+=("$GUEST_PACKAGES_FILE")
        # From Debian 13 on the file server is a package of its own.
        [ "${distribution#debian }" = 12 ] || echo virtiofsd
    fi
    sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' "${files[@]}"
}

missing_packages() {
    local installed
    # dpkg-query exits 1 when it does not know one of the names; what it prints about the others still counts.
    # shellcheck disable=SC2046  # one word per package is what is wanted here
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $(wanted_packages) 2>/dev/null || true)
    wanted_packages | while read -r name; do
        grep -qxF "installed $name" <<<"$installed" || printf '%s\n' "$name"
    done
}

# Debian starts what it installs. A system charon would take UDP 500 and 4500, and a Prometheus server is wanted in the lab
# alone, so their start, and only theirs, is refused while we install; whatever policy was there before is asked about
# everything else.
refuse_start() {
    restore_policy # what a killed run may have left
    if [ -e "$POLICY" ] || [ -L "$POLICY" ]; then mv "$POLICY" "$POLICY_ASIDE"; fi
    cat >"$POLICY" <<POLICY_END
#!/bin/sh
# $POLICY_MARK; removed when it ends.
for word; do case "\$word" in strongswan*|ipsec|prometheus*) exit 101 ;; esac; done
[ ! -x $POLICY_ASIDE ] || exec $POLICY_ASIDE "\$@"
exit 0
POLICY_END
    chmod 755 "$POLICY"
}

restore_policy() {
    if [ -f "$POLICY" ] && grep -qF "$POLICY_MARK" "$POLICY"; then rm -f "$POLICY"; fi
    if [ -e "$POLICY_ASIDE" ] || [ -L "$POLICY_ASIDE" ]; then mv "$POLICY_ASIDE" "$POLICY"; fi
}

install_packages() {
    local missing=("$@") apt
    apt=("${APT[@]}" -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1

    say "installing ${#missing[@]} Debian packages (up to two minutes): ${missing[*]}"
    "${apt[@]}" update || say "apt-get update had errors; trying with the package lists that are here"
    refuse_start
    "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" </dev/null >"$LOG" 2>&1 9>&- ||
        { cat "$LOG" >&2; fail "apt-get could not install the packages; its words are above."; }
    restore_policy

    # Newly installed by us, so nobody configured it: it must not start at the next boot either.
    stay_off charon-systemd strongswan.service "${missing[@]}"
    stay_off prometheus prometheus.service "${missing[@]}"
}

# Of the guest's kernel there is one, the newest at the time: what is tested does not change with the mirror, and once it is
# here nothing more is downloaded.
kernel_is_here() { [ "$FOR" != guest ] || compgen -G "$KERNELS/linux-image-*.deb" >/dev/null; }

# Downloaded and never installed: this machine's boot is left alone.
download_kernel() {
    say "downloading Debian's kernel for the guest (30 MB)"
    fetch_kernel || { say "the package lists may be too old"; "${APT[@]}" update && fetch_kernel; } ||
        fail "apt-get could not download the kernel that $KERNEL_PACKAGE depends on; its words are above."
}

fetch_kernel() {
    local name
    # What the name stands for is empty.
    name=$(apt-cache depends --important "$KERNEL_PACKAGE" 2>/dev/null | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p')
    [ -n "$name" ] || return 1
    rm -rf "$KERNELS/download" && mkdir -p "$KERNELS/download"
    # Else apt would complain that its own user cannot write there.
    (cd "$KERNELS/download" && "${APT[@]}" -o APT::Sandbox::User=root download "$name") || return 1
    mv "$KERNELS/download/"linux-image-*.deb "$KERNELS/" && rmdir "$KERNELS/download"
}

stay_off() { # PACKAGE UNIT INSTALLED...
    local package=$1 unit=$2
    shift 2
    if printf '%s\n' "$@" | grep -qx "$package" && command -v systemctl >/dev/null; then
        systemctl disable --quiet "$unit" >/dev/null 2>&1 || say "could not disable $unit; it may start at the next boot"
    fi
}

make_environment() {
    say "making the virtual environment in .venv (about a minute; downloads from the Python package index)"
    unset PYTHONHOME PYTHONPATH
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$PYTHON is older than Python 3.11."
    "$PYTHON" -m venv --clear --system-site-packages "$VENV"
    # --ignore-installed: what Python packages this machine happens to have must not decide which versions are tested.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --ignore-installed \
        --editable "$ROOT[controller,dev]" || fail "pip could not install the Python packages; its words are above."
    "$VENV/bin/python" -c 'import nftables' || fail "the environment does not see Debian's python3-nftables."
    fingerprint >"$STAMP"
}

[ -r /etc/os-release ] || fail "this needs Debian 12 or 13: there is no /etc/os-release here."
# shellcheck source=/dev/null
distribution=$(. /etc/os-release && printf '%s %s' "${ID:-unknown}" "${VERSION_ID:-}")
case "$distribution" in
    'debian 12' | 'debian 13') ;;
    *) fail "this needs Debian 12 or 13, and this is '${distribution% }'." ;;
esac
[ "$(id -u)" -eq 0 ] || fail "this needs root, for network namespaces and Debian packages: run it again as root."

mapfile -t missing < <(missing_packages)
if [ ${#missing[@]} -eq 0 ] && kernel_is_here && [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ]; then
    exit 0
fi

# Two makes must not build one environment together, nor two checkouts install together; the second finds it finished.
# (Closed for apt-get: a daemon that it restarts would hold the lock for ever.)
exec 9>"$LOCK"
flock --nonblock 9 || { say "waiting for another bootstrap to finish"; flock 9; }
LOG=$(mktemp)
trap 'restore_policy; rm -f "$LOG"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
mapfile -t missing < <(missing_packages)
[ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
kernel_is_here || download_kernel
if [ ! -f "$STAMP" ] || [ "$(cat "$STAMP")" != "$(fingerprint)" ]; then make_environment; fi
say "ready"
