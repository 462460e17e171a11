#!/bin/sh
# Installs what the project needs on Debian or Ubuntu: etcd, SoftHSM, a Python virtual environment with pinned packages.
# Says what it installs; does nothing where all is there; needs root only if a Debian package is missing.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

find_python() {
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
}

missing=""
command -v etcd >/dev/null || missing="$missing etcd-server"
ls /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so /usr/local/lib/softhsm/libsofthsm2.so \
    2>/dev/null | grep -q . || missing="$missing softhsm2"
# For drills: cut networks (namespaces, iptables) and wrong clocks (libfaketime).
command -v ip >/dev/null || missing="$missing iproute2"
command -v iptables >/dev/null || [ -x /usr/sbin/iptables ] || missing="$missing iptables"
ls /usr/lib/*/faketime/libfaketimeMT.so.1 2>/dev/null | grep -q . || missing="$missing libfaketime"
python=$(find_python)
[ -n "$python" ] || missing="$missing python3"
if [ -n "$python" ] && [ ! -x .venv/bin/python ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
fi

if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || stop "missing:$missing; no apt-get here, install them by hand and run this again"
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || stop "missing:$missing; as root run: apt-get install$missing"
        as_root=sudo
    fi
    say "installing Debian packages:$missing"
    $as_root apt-get update -qq
    # The packages may start services of their own; ours run elsewhere, so those are kept from starting.
    $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >&2
    python=$(find_python)
    [ -n "$python" ] || stop "Python 3.11 or newer is needed; this release of the distribution has none"
fi

stamp=.venv/installed
wanted=$(cat requirements.lock pyproject.toml | cksum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    if [ ! -x .venv/bin/python ]; then
        say "making the virtual environment .venv with $python"
        "$python" -m venv .venv
    fi
    say "installing $(grep -c '^[a-z]' requirements.lock) pinned Python packages into .venv, a minute or two"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock &
    installing=$! began=$(date +%s)
    while kill -0 "$installing" 2>/dev/null; do
        sleep 1
        passed=$(($(date +%s) - began))
        [ $((passed % 10)) -ne 0 ] || say "still installing, $passed s"
    done
    wait "$installing" || stop "pip has failed, as it says above; mend that and run this again"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
    echo "$wanted" > "$stamp"
fi
say "ready: .venv/bin/utrn"
