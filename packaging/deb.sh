#!/bin/bash
# Builds the Debian packages: packaging/deb.sh [RELEASE-ARCH...], by default 12-amd64 and 13-amd64; 12-arm64 and 13-arm64
# are possible too, and are built without running anything of them. Leaves them in build/deb/, or in $CPE_DEB_OUT. Two
# builds of one commit are byte-identical, wherever: all times are the changelog's, and the libraries are pinned by hash.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT=$PWD
OUT=${CPE_DEB_OUT:-build/deb}
# What pip has fetched is checked against its hash at each build, and need not be fetched again.
WHEELHOUSE=build/deb/wheels
# Debian release -> its Python and the one after.
declare -A PYTHON=([12]=3.11 [13]=3.13) NEXT=([12]=3.12 [13]=3.14)
# Wheels say the oldest C library that they run on; Debian 12 has 2.36.
declare -A WHEELS=([amd64]=x86_64 [arm64]=aarch64)
GLIBCS=(2_34 2_31 2_28 2_27 2_26 2_24 2_17)

fail() { printf 'deb: %s\n' "$*" >&2; exit 1; }

platforms() {
    local machine=${WHEELS[$1]} glibc
    for glibc in "${GLIBCS[@]}"; do printf 'manylinux_%s_%s ' "$glibc" "$machine"; done
    printf 'manylinux2014_%s' "$machine"
}

# The wheels that a package's requirements name, for one release and machine: those that are there are checked against
# their hashes, and the index is only asked where one is missing or another.
download() { # PACKAGE RELEASE ARCH
    local platform arguments=() wheels=$WHEELHOUSE/$2-$3/cpe-$1
    mkdir -p "$wheels"
    for platform in $(platforms "$3"); do arguments+=(--platform "$platform"); done
    arguments+=(--implementation cp --python-version "${PYTHON[$2]}" --dest "$wheels" --find-links "$wheels")
    arguments+=(--quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all:)
    arguments+=(--requirement "packaging/requirements/$1.txt")
    .venv/bin/python -m pip download --no-index "${arguments[@]}" >"$OUT/pip.log" 2>&1 ||
        .venv/bin/python -m pip download "${arguments[@]}" >"$OUT/pip.log" 2>&1 ||
        { cat "$OUT/pip.log" >&2; fail "pip could not get the libraries of cpe-$1 for Debian $2 on $3; its words are above."; }
}

build() { # RELEASE ARCH
    local release=$1 arch=$2 work=$OUT/work/$1-$2 version
    printf 'deb: building for Debian %s, %s\n' "$release" "$arch"
    rm -rf "$work"
    mkdir -p "$work/source/wheels"
    git ls-files -z --cached --others --exclude-standard -- cpe_agent cpe_controller configs docs packaging systemd \
        README.md CHANGELOG.md LICENSE | xargs -0 cp -a --parents -t "$work/source" --
    cp -a packaging/debian "$work/source/debian"
    for package in agent controller; do
        download "$package" "$release" "$arch"
        cp -a "$WHEELHOUSE/$release-$arch/cpe-$package" "$work/source/wheels/"
    done
    # A package of Debian 12 makes room for Debian 13's when the router is upgraded.
    # (CPE_DEB_NEXT is what a test appends, to have something to upgrade to.)
    sed -i "1s/(\([^)]*\))/(\1+deb$release${CPE_DEB_NEXT:-})/" "$work/source/debian/changelog"
    version=$(dpkg-parsechangelog -l"$work/source/debian/changelog" -SVersion)
    (cd "$work/source" && umask 022 &&
        CPE_PYTHON=${PYTHON[$release]} CPE_PYTHON_NEXT=${NEXT[$release]} CPE_PLATFORMS=$(platforms "$arch") \
        CPE_VERSION=$version PYTHONDONTWRITEBYTECODE=1 DEB_BUILD_OPTIONS='nocheck nostrip' \
        PATH=$ROOT/.venv/bin:$PATH LC_ALL=C.UTF-8 TZ=UTC \
        dpkg-buildpackage -b -d -us -uc -a"$arch" -rfakeroot) >"$work/log" 2>&1 ||
        { tail -n 40 "$work/log" >&2; fail "the build failed; the whole log is $work/log"; }
    mv "$work"/*.deb "$OUT/"
}

only=
if [ "${1:-}" = fetch ]; then only=fetch; shift; fi
[ $# -gt 0 ] || set -- 12-amd64 13-amd64
mkdir -p "$OUT"
for target; do
    release=${target%-*} arch=${target#*-}
    [ -n "${PYTHON[$release]:-}" ] && [ -n "${WHEELS[$arch]:-}" ] || fail "no such target: $target (12 or 13, amd64 or arm64)"
    if [ -n "$only" ]; then
        for package in agent controller; do download "$package" "$release" "$arch"; done
    else
        build "$release" "$arch"
    fi
done
[ -n "$only" ] || sha256sum "$OUT"/*.deb
