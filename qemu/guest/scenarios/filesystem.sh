# A file system lives through its whole life on the disk: made, mounted, filled with 64 MiB of known data, unmounted,
# checked, mounted again read-only and read back. Every read at the end comes from the disk, and that is checked too.
. /scenarios/lib.sh
disk=/dev/vda
files=16
file_mib=4
sectors=$((files * file_mib * 2048))

wait_for $disk
say "$disk has $(blockdev --getsize64 $disk) bytes"

mkfs.ext4 -q -F -L outboard $disk
say "made an ext4 file system"

mount -t ext4 $disk /mnt
mkdir /mnt/known
n=0
while [ $n -lt $files ]; do
    known $file_mib $((n * file_mib)) >/tmp/data
    checksum /tmp/data >>/tmp/sums
    cp /tmp/data /mnt/known/$n
    n=$((n + 1))
done
rm /tmp/data
sync
umount /mnt
say "wrote $files files, $((files * file_mib)) MiB in all; unmounted"
[ "$(stat_of vda 7)" -ge $sectors ] || fail "fewer sectors were written to the disk than the files hold"

e2fsck -f -n $disk || fail "e2fsck found faults after the first unmount"

mount -t ext4 -o ro $disk /mnt
before=$(stat_of vda 3)
n=0
while [ $n -lt $files ]; do
    checksum /mnt/known/$n >>/tmp/sums.read
    n=$((n + 1))
done
read=$(($(stat_of vda 3) - before))
umount /mnt
[ $read -ge $sectors ] || fail "only $read sectors were read back: the rest came out of a cache"
cmp /tmp/sums /tmp/sums.read || fail "checksums differ between what was written and what was read back"
say "read $((read / 2048)) MiB back; all $files checksums are equal"
echo "sum=$(checksum /tmp/sums.read)"
