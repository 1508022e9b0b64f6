# What the scenarios share. They run under `sh -eu`: any command that fails ends them.

say() { echo "guest: $*"; }

fail() {
    echo "$*" >/tmp/reason
    exit 1
}

# The disk is probed while init goes on: waits for its node, at most 20 s.
wait_for() {
    tries=200
    until [ -b "$1" ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "$1 did not appear within 20 s"
        usleep 100000
    done
}

# Known data: $1 MiB, beginning with MiB number $2 (0 to 118) of an endless tape on which no two blocks are alike.
# A base of ascending numbers with its ten digits replaced by other bytes for each MiB: cheap enough for an emulated CPU.
# The host makes the same data with this same function.
known() {
    local base=${TMPDIR:-/tmp}/known.base mib=$2
    [ -s "$base" ] || seq 100000000 100104857 | head -c 1048576 >"$base"
    while [ "$mib" -lt $(($1 + $2)) ]; do
        LC_ALL=C tr '0-9' "\\$(printf %o $((mib + 128)))-\\$(printf %o $((mib + 137)))" <"$base"
        mib=$((mib + 1))
    done
}

# Sectors read from (3) or written to (7) disk $1 since the boot.
stat_of() { awk -v n="$2" '{ print $n }' "/sys/block/$1/stat"; }

checksum() { sha256sum "$@" | cut -d ' ' -f 1; }
