# What the guest's kernel made of the disk, one key=value a line.
. /scenarios/lib.sh
wait_for /dev/vda
sys=/sys/block/vda

show() { echo "$1=$(cat "$2" | tr -d '\n')"; }

show serial $sys/serial
show sectors $sys/size
show read_only $sys/ro
show cache_type $sys/cache_type
show logical_block_size $sys/queue/logical_block_size
show physical_block_size $sys/queue/physical_block_size
show minimum_io_size $sys/queue/minimum_io_size
show optimal_io_size $sys/queue/optimal_io_size
show max_segments $sys/queue/max_segments
show discard_max_bytes $sys/queue/discard_max_bytes
show discard_granularity $sys/queue/discard_granularity
show write_zeroes_max_bytes $sys/queue/write_zeroes_max_bytes
show write_cache $sys/queue/write_cache
echo "queues=$(ls $sys/mq | wc -l)"
echo "cpus=$(nproc)"
show features $sys/device/features
