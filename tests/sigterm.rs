//! SIGTERM under load: nothing more is taken from the rings, what is in flight completes and is published, exit 0.

use std::time::{Duration, Instant};

use outboard_frontend::driver::drain;
use outboard_frontend::{Connection, Driver, QueueOptions, Request, STATUS_OK};
use outboard_tests::daemon::{Daemon, Site};
use outboard_tests::load::Load;
use outboard_tests::process::{Process, SOON};

const MIB: u64 = 1 << 20;

/// Sends SIGTERM and waits for exit status 0. The bound is the promise (a second) with room for a loaded machine; what
/// it really took is printed.
fn terminate(process: &mut Process, what: &str, meanwhile: impl FnMut()) {
    let began = Instant::now();
    process.signal(libc::SIGTERM);
    ends(process, what, began, meanwhile);
}

fn ends(process: &mut Process, what: &str, began: Instant, mut meanwhile: impl FnMut()) {
    while process.is_running() {
        meanwhile();
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{what}: still running\n{}",
            process.stderr()
        );
        std::thread::yield_now();
    }
    eprintln!(
        "{what}: ended {} ms after SIGTERM",
        began.elapsed().as_millis()
    );
    let status = process.wait();
    assert_eq!(
        status.code(),
        Some(0),
        "{what}: {status}\n{}",
        process.end()
    );
    assert_eq!(process.end(), "", "{what}: an orderly end is a quiet one");
}

/// Takes everything that was published.
fn collect(queue: &mut Driver, load: &mut Load) {
    while let Some(done) = queue.try_next().unwrap() {
        load.answered(queue, done);
    }
}

fn start(daemon: &Daemon, queues: usize, shape: QueueOptions) -> (Connection, Vec<Driver>) {
    let mut connection = daemon.connect();
    let mut queues: Vec<_> = (0..queues)
        .map(|index| connection.queue(index, shape).unwrap())
        .collect();
    queues
        .iter_mut()
        .for_each(|queue| connection.start(queue).unwrap());
    (connection, queues)
}

#[test]
fn a_daemon_ends_at_once_when_idle_connected_or_ready() {
    for what in ["idle", "connected", "ready"] {
        let site = Site::new();
        let mut daemon = site.blk(&["--disk", "ram:1M"]);
        let queues = usize::from(what == "ready");
        let guest = (what != "idle").then(|| start(&daemon, queues, QueueOptions::default()));
        assert!(site.path("blk.sock").exists());
        terminate(&mut daemon.process, what, || ());
        assert_eq!(site.listing(), [""; 0], "{what}: the socket is gone");
        drop(guest);
    }
}

/// Four queues under full load from this process. A request that the device took has its effect in the image and its
/// answer on the ring; one that it did not take has neither.
#[test]
fn under_load_every_request_taken_is_answered_and_no_other_is_done() {
    for disk in ["file:{}/disk.raw", "delay:1ms-40ms:file:{}/disk.raw"] {
        let site = Site::new();
        let image = site.image("disk.raw", 4 * MIB);
        let mut daemon = site.blk(&["--disk", disk, "--num-queues", "4"]);
        let shape = QueueOptions {
            size: 256,
            ..QueueOptions::default()
        };
        let (connection, mut queues) = start(&daemon, 4, shape);
        let mut loads: Vec<_> = (0..4).map(|n| Load::new(n * 2048, 256, 4096, n)).collect();
        let mut answered = 0;
        // A while under load, then on until the process is gone: the guest knows nothing of its end.
        let mut push = || {
            for (queue, load) in queues.iter_mut().zip(&mut loads) {
                load.submit(queue, 48, usize::MAX);
                queue.kick().unwrap();
                let before = load.in_flight();
                collect(queue, load);
                answered += before - load.in_flight();
            }
            answered
        };
        let deadline = Instant::now() + SOON;
        while push() < 2000 {
            assert!(Instant::now() < deadline, "{}", daemon.process.stderr());
        }
        terminate(&mut daemon.process, disk, || {
            push();
        });
        queues
            .iter_mut()
            .zip(&mut loads)
            .for_each(|(queue, load)| collect(queue, load));
        let left: usize = loads.iter().map(Load::in_flight).sum();
        eprintln!("{disk}: {left} requests were never taken");
        let bytes = std::fs::read(&image).unwrap();
        loads.iter().for_each(|load| load.verify(&bytes));
        drop(connection);
    }
}

/// A driver that has gone to sleep is woken for what the drain publishes.
#[test]
fn a_drain_waits_for_slow_requests_and_signals_their_end() {
    let site = Site::new();
    let mut daemon = site.blk(&["--disk", "delay:300ms-600ms:ram:1M"]);
    let (_connection, mut queues) = start(&daemon, 1, QueueOptions::default());
    let queue = &mut queues[0];
    let slots: Vec<_> = (0..32)
        .map(|n| queue.submit(&Request::write(n, &[n as u8; 512])).unwrap())
        .collect();
    queue.kick().unwrap();
    taken(queue, 32);
    assert!(
        !queue.ring().arm(),
        "nothing is answered yet, so the next answer is signalled"
    );
    // Twice, as from a supervisor that signals the process and its group.
    let socket = site.path("blk.sock");
    let pid = daemon.process.pid();
    let mut again = true;
    terminate(&mut daemon.process, "32 requests of 300 to 600 ms", || {
        if again && !socket.exists() {
            again = false;
            // SAFETY: kill takes plain numbers; the child is only waited for after this, so its pid is still its own.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        }
    });
    assert!(drain(queue.call_fd()).unwrap() > 0, "a call");
    for slot in slots {
        assert_eq!(
            queue.wait_for(slot, Duration::ZERO).unwrap().status,
            STATUS_OK
        );
    }
}

/// Waits until the device has taken `count` requests from a new ring: it then waits for the next.
fn taken(queue: &Driver, count: u16) {
    let deadline = Instant::now() + SOON;
    while queue.state().avail_event != count {
        assert!(Instant::now() < deadline, "{}", queue.state());
        std::thread::yield_now();
    }
}

#[test]
fn several_devices_drain_together() {
    let site = Site::new();
    let device = |name: &str| {
        format!(
            "[[device]]\nname = \"{name}\"\ntype = \"blk\"\nsocket = \"{{}}/{name}.sock\"\ndisk = \"delay:100ms-200ms:ram:1M\"\n"
        )
    };
    let names = ["a", "b", "c", "d"];
    let sockets = names.map(|name| format!("{name}.sock"));
    let sockets: Vec<&str> = sockets.iter().map(String::as_str).collect();
    let mut process = site.serve(&names.map(device).concat(), &sockets);
    let mut guests = vec![];
    for socket in &sockets {
        let mut connection =
            Connection::open(&outboard_frontend::Options::new(site.path(socket))).unwrap();
        let mut queue = connection.queue(0, QueueOptions::default()).unwrap();
        connection.start(&mut queue).unwrap();
        for sector in 0..16 {
            queue.submit(&Request::read(sector, 512)).unwrap();
        }
        queue.kick().unwrap();
        taken(&queue, 16);
        guests.push((connection, queue));
    }
    terminate(&mut process, "four devices", || ());
    for (_, queue) in &mut guests {
        for _ in 0..16 {
            assert_eq!(queue.next(Duration::ZERO).unwrap().status, STATUS_OK);
        }
    }
    assert_eq!(site.listing(), ["outboard.toml"]);
}

#[test]
fn a_second_signal_gives_up_on_requests_that_do_not_end() {
    let site = Site::new();
    let mut daemon = site.blk(&["--disk", "delay:1000s-1000s:ram:1M"]);
    let (_connection, mut queues) = start(&daemon, 1, QueueOptions::default());
    queues[0].submit(&Request::read(0, 512)).unwrap();
    queues[0].kick().unwrap();
    taken(&queues[0], 1);
    daemon.process.signal(libc::SIGTERM);
    // The socket goes first: a sign that the first signal was taken.
    let deadline = Instant::now() + SOON;
    while site.path("blk.sock").exists() {
        assert!(Instant::now() < deadline, "{}", daemon.process.stderr());
        std::thread::yield_now();
    }
    while daemon.process.is_running() {
        assert!(
            Instant::now() < deadline,
            "later signals are ignored\n{}",
            daemon.process.stderr()
        );
        daemon.process.signal(libc::SIGTERM);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        deadline - SOON + Duration::from_secs(1) <= Instant::now(),
        "the first second is for the drain"
    );
    let status = daemon.process.wait();
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    assert!(daemon.process.end().contains("second signal"));
    assert_eq!(
        queues[0].state().used_idx,
        0,
        "what did not end is not answered"
    );
}
