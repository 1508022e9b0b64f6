//! A disk that answers out of order: every answer finds its own request.

use outboard_frontend::{Completion, QueueOptions, Request, STATUS_OK};
use outboard_tests::daemon::Site;
use outboard_tests::load::Load;
use outboard_tests::process::SOON;

const MIB: u64 = 1 << 20;

#[test]
fn requests_that_overtake_each_other_keep_their_data() {
    for disk in ["delay:0ms-8ms:ram:4M", "delay:0ms-8ms:file:{}/disk.raw"] {
        let site = Site::new();
        let image = site.image("disk.raw", 4 * MIB);
        let daemon = site.blk(&["--disk", disk, "--num-queues", "2"]);
        let mut connection = daemon.connect();
        let mut loads = [Load::new(0, 256, 4096, 1), Load::new(4096, 256, 4096, 2)];
        let shapes = [
            QueueOptions::default(),
            QueueOptions {
                completion: Completion::Polled,
                indirect: true,
                ..QueueOptions::default()
            },
        ];
        let mut queues = [0, 1].map(|index| connection.queue(index, shapes[index]).unwrap());
        queues
            .iter_mut()
            .for_each(|queue| connection.start(queue).unwrap());
        std::thread::scope(|scope| {
            for (queue, load) in queues.iter_mut().zip(&mut loads) {
                scope.spawn(move || load.run(queue, 32, 1000));
            }
        });
        for load in &loads {
            assert!(
                load.overtakings > 100,
                "{disk}: in order, but for {} answers",
                load.overtakings
            );
        }
        if disk.contains("file:") {
            let bytes = std::fs::read(&image).unwrap();
            loads.iter().for_each(|load| load.verify(&bytes));
        }
    }
}

#[test]
fn stopping_a_ring_waits_for_all_that_was_taken() {
    let site = Site::new();
    let daemon = site.blk(&["--disk", "delay:1ms-60ms:ram:1M"]);
    let mut connection = daemon.connect();
    let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
    let mut done = 0;
    for round in 0..10u64 {
        connection.start(&mut queue).unwrap();
        let slots: Vec<_> = (0..30u64)
            .map(|n| {
                queue
                    .submit(&Request::write(n, &[(round * 30 + n) as u8; 512]))
                    .unwrap()
            })
            .collect();
        queue.kick().unwrap();
        // Some of them may not be taken yet; those stay on the ring for the next start.
        let base = connection.stop(&mut queue).unwrap();
        let state = queue.state();
        assert_eq!(
            state.used_idx, base,
            "round {round}: all that was taken is answered; {state}"
        );
        connection.start(&mut queue).unwrap();
        for (n, slot) in slots.into_iter().enumerate() {
            assert_eq!(queue.wait_for(slot, SOON).unwrap().status, STATUS_OK);
            assert_eq!(
                queue.read(n as u64, 512).unwrap(),
                [(round as usize * 30 + n) as u8; 512]
            );
        }
        done += 60;
        assert_eq!(connection.stop(&mut queue).unwrap(), done);
    }
}
