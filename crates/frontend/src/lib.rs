//! A vhost-user front end with a virtio-blk driver: the independent witness of tests and benches
