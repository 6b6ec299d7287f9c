# shellcheck shell=bash
# What the scripts share: where the project is, how they speak, and how they become root. Sourced, never run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck disable=SC2034  # used by the scripts that source this file
VENV="$ROOT/.venv"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# usage: prints the comment block at the top of the running script (from its second line on).
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//;t print;d;:print;p}' "$0"; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo: run as root: $*"
    fi
}

# apt_install PACKAGE…: installs; the package lists are fetched only when they are not there or too old.
apt_install() {
    command -v apt-get >/dev/null || die "missing: $*; install them (there is no apt-get here)"
    say "installing $*"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends "$@")
    as_root "${install[@]}" >/dev/null 2>&1 && return
    as_root apt-get update --quiet=2
    as_root "${install[@]}" >/dev/null || die "apt-get could not install $*"
}

# need_fuse: /dev/fuse exists and can be opened, or one line that says what to do.
need_fuse() {
    if [ ! -e /dev/fuse ] && [ "$(id -u)" -eq 0 ]; then
        modprobe fuse 2>/dev/null || true
    fi
    [ -e /dev/fuse ] || die "there is no /dev/fuse: run 'modprobe fuse' as root, or start the container with --device /dev/fuse"
    { : <>/dev/fuse; } 2>/dev/null || die "/dev/fuse cannot be opened: run as root, or 'chmod 0666 /dev/fuse'"
}

# reachable_by_all PROGRAM: every user can run it: nothing on its path, links followed, is closed to others.
reachable_by_all() {
    local place
    place=$(realpath "$1") || return 1
    while [ "$place" != / ]; do
        [ $(($(stat --format=0%a "$place") & 1)) -eq 1 ] || return 1
        place=$(dirname "$place")
    done
}

# find_python MODE: the interpreter for .venv: $PYTHON, or that of .venv, or the newest in PATH. What root installs for
# services (MODE is not dev) is run by their users: there an interpreter below root's home is passed over.
find_python() {
    local name candidate passed_over=''
    local -a candidates=(${PYTHON:+"$PYTHON"} "$VENV/bin/python")
    for name in python3.13 python3.12 python3.11 python3; do
        mapfile -t -O "${#candidates[@]}" candidates < <(type -aP "$name")
    done
    for candidate in "${candidates[@]}"; do
        candidate=$("$candidate" -c 'import sys
print(sys.executable)
sys.exit(sys.version_info < (3, 11))' 2>/dev/null) || continue
        if [ "$1" = dev ] || [ "$(id -u)" -ne 0 ] || reachable_by_all "$candidate"; then
            [ -z "$passed_over" ] || say "using $candidate: users of services cannot reach $passed_over"
            echo "$candidate"
            return
        fi
        passed_over=${passed_over:-$candidate}
    done
    [ -z "$passed_over" ] || say "users of services cannot reach $passed_over"
    return 1
}

# end_process PID: ends a process in an orderly way, and not so orderly after ten seconds.
end_process() {
    local _
    kill "$1" 2>/dev/null || return 0
    for _ in {1..100}; do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
}
