# Data written before a reboot is there after it, while the VMM stays: its devices are reset and set up anew.
# The first sector tells which boot this is.
. /scenarios/lib.sh
disk=/dev/vda
wait_for $disk

state=$(head -c 512 $disk | tr -d '\0')
case $state in
"")
    known 8 0 >/tmp/data
    dd if=/tmp/data of=$disk bs=1M seek=1 conv=fsync 2>/dev/null
    printf 'written %s' "$(checksum /tmp/data)" | dd of=$disk bs=512 conv=sync,fsync 2>/dev/null
    say "first boot: wrote 8 MiB, rebooting"
    reboot -f
    while :; do sleep 60; done
    ;;
"written "*)
    sum=$(dd if=$disk bs=1M skip=1 count=8 2>/dev/null | sha256sum | cut -d ' ' -f 1)
    [ "written $sum" = "$state" ] || fail "after the reboot the disk holds other data: wanted '$state', read $sum"
    known 1 8 | dd of=$disk bs=1M seek=16 conv=fsync 2>/dev/null
    say "second boot: the data is there, and the disk takes new data"
    ;;
*) fail "the first sector holds neither zeroes nor our mark" ;;
esac
