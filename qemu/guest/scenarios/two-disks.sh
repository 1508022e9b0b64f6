# Two disks at once: each gets its own data under load of both, and keeps it.
. /scenarios/lib.sh
mib=16

fill() { known $mib "$2" | dd of="/dev/$1" bs=1M conv=fsync 2>/dev/null; }
wait_for /dev/vda
wait_for /dev/vdb
echo "serial_vda=$(cat /sys/block/vda/serial)"
echo "serial_vdb=$(cat /sys/block/vdb/serial)"

fill vda 0 &
first=$!
fill vdb 64 &
second=$!
wait $first || fail "writing vda failed"
wait $second || fail "writing vdb failed"

echo 3 >/proc/sys/vm/drop_caches
for pair in vda:0 vdb:64; do
    disk=${pair%:*}
    wanted=$(known $mib "${pair#*:}" | sha256sum)
    got=$(head -c $((mib * 1048576)) /dev/$disk | sha256sum)
    [ "$wanted" = "$got" ] || fail "$disk holds other data than was written to it"
    [ "$(stat_of $disk 3)" -ge $((mib * 2048)) ] || fail "$disk was read from a cache"
done
say "both disks hold their own data"
