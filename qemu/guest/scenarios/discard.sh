# Discard and write-zeroes as the kernel sends them: what was there is gone, the neighbours are not.
. /scenarios/lib.sh
disk=/dev/vda
mib=1048576
wait_for $disk

known 8 0 >/tmp/data
dd if=/tmp/data of=$disk bs=1M conv=fsync 2>/dev/null

# By its path, since the shell would take busybox's own, which knows no -z.
[ "$(cat /sys/block/vda/queue/discard_max_bytes)" -gt 0 ] || fail "the disk offers no discard"
/sbin/blkdiscard -o $((2 * mib)) -l $mib $disk
/sbin/blkdiscard -z -o $((5 * mib)) -l $mib $disk
sync
echo 3 >/proc/sys/vm/drop_caches

part() { dd if="$1" bs=1M skip="$2" count="$3" 2>/dev/null | sha256sum; }
zeroes=$(head -c $mib /dev/zero | sha256sum)
[ "$(part $disk 2 1)" = "$zeroes" ] || fail "the discarded range does not read as zeroes"
[ "$(part $disk 5 1)" = "$zeroes" ] || fail "the range zeroed by write-zeroes does not read as zeroes"
for range in "0 2" "3 2" "6 2"; do
    set -- $range
    [ "$(part $disk "$1" "$2")" = "$(part /tmp/data "$1" "$2")" ] || fail "data beside the discarded ranges changed (MiB $1)"
done
echo "discards=$(stat_of vda 12)"
say "discard and write-zeroes left zeroes, and nothing else changed"
