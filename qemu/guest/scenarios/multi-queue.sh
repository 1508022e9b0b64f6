# Every queue carries requests: one writer pinned to each CPU, then all data is read back.
. /scenarios/lib.sh
disk=/dev/vda
wait_for $disk
cpus=$(nproc)
queues=$(ls /sys/block/vda/mq | wc -l)
echo "queues=$queues"
[ "$queues" -eq "$cpus" ] || fail "$queues queues for $cpus CPUs: the kernel did not spread them one to one"

cpu=0
while [ $cpu -lt $cpus ]; do
    known 4 $((cpu * 4)) >/tmp/data.$cpu
    taskset -c $cpu dd if=/tmp/data.$cpu of=$disk bs=64k seek=$((cpu * 64)) oflag=direct 2>/dev/null &
    cpu=$((cpu + 1))
done
wait
cpu=0
while [ $cpu -lt $cpus ]; do
    got=$(taskset -c $cpu dd if=$disk bs=64k skip=$((cpu * 64)) count=64 iflag=direct 2>/dev/null | sha256sum)
    [ "$got" = "$(sha256sum </tmp/data.$cpu)" ] || fail "queue of CPU $cpu: other data than was written"
    cpu=$((cpu + 1))
done

# The interrupts tell which queues were used: one line for each, with one count for each CPU.
cpu=0
while [ $cpu -lt $cpus ]; do
    count=$(awk -v name="virtio0-req.$cpu" '$NF == name { n = 0; for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) n += $i; print n }' /proc/interrupts)
    echo "interrupts_queue_$cpu=${count:-0}"
    [ "${count:-0}" -gt 0 ] || fail "queue $cpu never interrupted"
    cpu=$((cpu + 1))
done
say "every queue carried its writes and reads"
