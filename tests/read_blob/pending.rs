//! Reads that wait: a pipe stands in for a dma-buf whose writes are pending, because it too is readable only when somebody
//! has done something. The read goes on then, as far as a pipe lets it: that it cannot be mapped says that it went on.

use std::io::{PipeWriter, Write};
use std::time::{Duration, Instant};

use virtio_gpu_uring::testing::{DEADLINE, Guest, Request, census};
use virtio_gpu_uring::{Access, BufferKind, Builder, Device, DeviceGone, HostBuffer, Limits, ReadError, Reply};

use crate::setup::{CONTEXT, PAGE, Setup, memfd};
use crate::{Answer, pages, read};

/// The stand-in: who writes to it lets reads go on.
struct Pending {
    writer: PipeWriter,
    /// What its descriptors are called in `/proc`.
    name: String,
}

impl Pending {
    /// Makes a blob of it.
    fn blob(setup: &mut Setup, resource: u32) -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let name = format!("pipe:[{}]", rustix::fs::fstat(&reader).expect("a file").st_ino);
        setup.blob_of(resource, HostBuffer::stand_in(reader.into(), BufferKind::DmaBuf, PAGE, Access::ReadWrite), PAGE);
        Self { writer, name }
    }

    fn signal(&self) {
        (&self.writer).write_all(b"!").expect("a pipe with room");
    }

    /// Descriptors of the device's.
    fn open(&self) -> usize {
        census::fds_named(&self.name) - 1
    }
}

fn with_deadline(deadline: Duration) -> Builder {
    Builder::new().limits(Limits { deadline, ..Limits::default() })
}

/// The read has begun, and has not ended.
fn is_pending(guest: &mut Guest, reply: &mut Reply<Answer>) -> bool {
    guest.settle();
    futures_util::FutureExt::now_or_never(reply).is_none()
}

/// Waits for a reply, and not for ever.
#[track_caller]
fn soon(guest: &mut Guest, mut reply: Reply<Answer>) -> Answer {
    let started = Instant::now();
    while started.elapsed() < DEADLINE {
        if let Some(answer) = futures_util::FutureExt::now_or_never(&mut reply) {
            return answer.expect("a device");
        }
        guest.settle();
    }
    panic!("no reply within {DEADLINE:?}");
}

#[track_caller]
fn went_on(reply: Reply<Answer>) {
    let answer = reply.wait().expect("a device");
    assert!(matches!(&answer, Err(ReadError::Io(_))), "{answer:?}");
}

#[test]
fn a_read_that_waits_never_holds_up_commands_or_other_reads_and_goes_on_when_it_may() {
    let mut setup = Setup::with(with_deadline(Duration::MAX));
    let pending = Pending::blob(&mut setup, 7);
    let file = memfd("pending-others", 2 * PAGE);
    setup.blob(8, &file, 2 * PAGE);
    // More of them than copy at a time.
    let mut replies: Vec<_> = (0..8).map(|_| setup.guest.device().read_blob(7, ..)).collect();
    for _ in 0..50 {
        setup.guest.map(8, 0);
        setup.ok(&Request::unmap(8));
        setup.ok(&Request::ctx_attach(CONTEXT, 7));
        setup.ok(&Request::ctx_detach(CONTEXT, 7));
        assert_eq!(pages(read(&setup.guest, 8, ..)), [1, 2]);
    }
    for reply in &mut replies {
        assert!(is_pending(&mut setup.guest, reply), "read while a write was pending");
    }
    assert_eq!(pending.open(), 9);
    pending.signal();
    replies.into_iter().for_each(went_on);
    assert_eq!(pending.open(), 1);
    assert_eq!(setup.guest.device().counters().quarantined, 0);
}

#[test]
fn a_blob_that_ends_during_a_read_never_lends_its_id_to_it() {
    let mut setup = Setup::new();
    let pending = Pending::blob(&mut setup, 7);
    let mut reply = setup.guest.device().read_blob(7, 0..1);
    setup.ok(&Request::unref(7));
    setup.blob(7, &memfd("pending-next", PAGE), PAGE);
    assert!(is_pending(&mut setup.guest, &mut reply), "ended with the blob");
    assert_eq!(pending.open(), 1);
    pending.signal();
    went_on(reply);
    assert_eq!(pending.open(), 0);
    assert_eq!(pages(read(&setup.guest, 7, ..)), [1]);
}

#[test]
fn a_read_never_waits_beyond_the_deadline_and_leaves_nothing_open() {
    let limit = Duration::from_millis(30);
    let mut setup = Setup::with(with_deadline(limit));
    let pending = Pending::blob(&mut setup, 7);
    let started = Instant::now();
    let reply = setup.guest.device().read_blob(7, ..);
    match soon(&mut setup.guest, reply) {
        Err(ReadError::Deadline { deadline, waiting_for }) => {
            assert_eq!((deadline, waiting_for), (limit, "writes that are pending"));
        }
        other => panic!("{other:?}"),
    }
    assert!(started.elapsed() >= limit);
    assert_eq!(pending.open(), 1);
    assert_eq!(setup.guest.device().counters().quarantined, 0, "nothing is stuck");
}

#[test]
fn a_reset_never_waits_for_a_read_that_waits() {
    let mut setup = Setup::with(with_deadline(DEADLINE));
    for _ in 0..3 {
        let pending = Pending::blob(&mut setup, 7);
        let mut reply = setup.guest.device().read_blob(7, ..);
        assert!(is_pending(&mut setup.guest, &mut reply));
        setup.guest.reset();
        assert_eq!(pending.open(), 0, "a descriptor is open after a reset");
        let answer = reply.wait().expect("a device");
        assert!(matches!(answer, Err(ReadError::Reset)), "{answer:?}");
        setup.guest.activate();
        setup.ok(&Request::ctx_create(CONTEXT, 5));
    }
    let pending = Pending::blob(&mut setup, 7);
    let reply = setup.guest.device().read_blob(7, ..);
    pending.signal();
    went_on(reply);
    assert_eq!(setup.guest.device().counters().quarantined, 0);
}

#[test]
fn a_device_that_stops_or_is_dropped_never_waits_for_a_read_that_waits() {
    for stopped in [true, false] {
        let mut setup = Setup::with(with_deadline(DEADLINE));
        let pending = Pending::blob(&mut setup, 7);
        let mut reply = setup.guest.device().read_blob(7, ..);
        assert!(is_pending(&mut setup.guest, &mut reply));
        if stopped {
            setup.guest.device().stop().wait().expect("a device");
        } else {
            drop(setup);
        }
        assert_eq!(pending.open(), 0, "a descriptor is open after the end");
        let answer = reply.wait().expect("answered before the end");
        assert!(matches!(answer, Err(ReadError::Reset)), "{answer:?}");
    }
}

#[test]
fn a_task_that_is_dropped_never_leaves_a_waiting_reads_descriptor_open() {
    let (device, task) = with_deadline(DEADLINE).build().expect("a device");
    let device: Device<std::sync::Arc<vm_memory::GuestMemoryMmap>> = device;
    let guest = Guest::powered_off(device, virtio_gpu_uring::testing::GuestOptions::default());
    // The task runs here for as long as it takes, and is then dropped in the middle of its wait.
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let runtime = std::thread::spawn(move || {
        tokio_uring::start(async {
            let running = std::pin::pin!(task.run());
            futures_util::future::select(running, ended).await;
        });
    });
    let mut guest = guest;
    guest.activate();
    guest.command(&Request::ctx_create(CONTEXT, 5)).ok();
    let window = virtio_gpu_uring::HostWindow::new(PAGE as usize).expect("a window");
    let mut setup = Setup { guest, window };
    let pending = Pending::blob(&mut setup, 7);
    let mut reply = setup.guest.device().read_blob(7, ..);
    assert!(is_pending(&mut setup.guest, &mut reply));
    drop(end);
    runtime.join().expect("a runtime that ends");
    assert_eq!(pending.open(), 0, "a descriptor is open after the end");
    assert_eq!(reply.wait().expect_err("nobody is there"), DeviceGone);
}
