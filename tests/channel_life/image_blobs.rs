//! Blobs of images: memory of exactly the stated size that guest, host and services see alike, that nobody can shrink, and
//! that is gone with its resource.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat, ftruncate};
use rustix::io::{Errno, pread, pwrite};
use virtio_gpu_uring::protocol::cross_domain::{ChannelType, ImageRequirements};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_OUT_OF_MEMORY};
use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{Builder, HostWindow, Limits};

use crate::{PAGE, Scene, holders, until};

/// The image of most tests.
const SIDE: u32 = 64;
const IMAGE: u64 = 64 * 64 * 4;

/// A scene with a window, and the id of an image.
struct Studio {
    scene: Scene,
    window: HostWindow,
    id: u64,
}

impl Studio {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let window = HostWindow::new(1 << 20).expect("a window");
        let mut scene = Scene::with(Builder::new().window(window.clone()).limits(limits));
        let image = scene.channel.image(&mut scene.guest, SIDE, SIDE, *b"XR24");
        assert_eq!(image.size.get(), IMAGE);
        Self { scene, window, id: u64::from(image.blob_id.get()) }
    }

    #[track_caller]
    fn create(&mut self, resource: u32) {
        self.scene.guest.command(&Request::host_blob(1, resource, self.id, IMAGE)).ok();
    }

    #[track_caller]
    fn create_refused(&mut self, resource: u32, id: u64, size: u64, code: u32) {
        self.scene.guest.command(&Request::host_blob(1, resource, id, size)).expect_error(code);
    }

    /// Makes a blob and sends it: the service's descriptor of it.
    #[track_caller]
    fn sent(&mut self, resource: u32) -> OwnedFd {
        self.create(resource);
        self.scene.guest.command(&Request::ctx_attach(1, resource)).ok();
        self.send_again(resource)
    }

    #[track_caller]
    fn send_again(&mut self, resource: u32) -> OwnedFd {
        self.scene.channel.send(&mut self.scene.guest, b"b", &[resource]);
        let (data, mut files) = self.scene.peer.receive(1);
        assert_eq!((data.as_slice(), files.len()), (&b"b"[..], 1));
        files.remove(0)
    }

    #[track_caller]
    fn shown(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xff; len];
        self.window.read(offset, &mut bytes).expect("in the window");
        bytes
    }
}

fn read(file: &OwnedFd, offset: u64) -> u8 {
    let mut byte = [0];
    assert_eq!(pread(file, &mut byte, offset).expect("read"), 1);
    byte[0]
}

/// Mappings of a file in this process.
fn maps(file: &OwnedFd) -> usize {
    let inode = format!(" {} ", fstat(file).expect("a file").st_ino);
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    maps.lines().filter(|line| line.contains("memfd:") && line.contains(&inode)).count()
}

#[test]
fn guest_and_service_never_see_different_images() {
    let mut studio = Studio::new();
    let file = studio.sent(20);
    assert_eq!(fstat(&file).expect("a file").st_size, IMAGE.cast_signed());
    let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("a name");
    assert!(name.to_string_lossy().starts_with("/memfd:"), "no memfd but {name:?}");
    studio.scene.guest.map(20, 8 * PAGE);
    assert!(studio.shown(8 * PAGE, IMAGE as usize).iter().all(|byte| *byte == 0), "memory that somebody had before");
    for offset in [0, 1, PAGE - 1, PAGE, IMAGE - 1] {
        studio.window.write(8 * PAGE + offset, &[0xa0 | offset as u8 & 0xf]).expect("in the window");
        assert_eq!(read(&file, offset), 0xa0 | offset as u8 & 0xf, "what the guest has drawn at {offset}");
        assert_eq!(pwrite(&file, &[0x50 | offset as u8 & 0xf], offset).expect("written"), 1);
        assert_eq!(studio.shown(8 * PAGE + offset, 1), [0x50 | offset as u8 & 0xf], "what the service has drawn");
    }
    // The page behind it is not the image's.
    assert_eq!(studio.shown(8 * PAGE + IMAGE, 4), [0; 4]);
    let bytes = studio.scene.guest.device().read_blob(20, ..4).wait();
    assert_eq!(bytes.expect("a device").expect("a blob")[0], read(&file, 0));
}

#[test]
fn a_blob_that_is_sent_twice_is_never_two_files_nor_two_blobs_one() {
    let mut studio = Studio::new();
    let inode = |file: &OwnedFd| fstat(file).expect("a file").st_ino;
    let first = studio.sent(20);
    let again = studio.send_again(20);
    assert_eq!(inode(&first), inode(&again));
    let others = [21, 22, 23].map(|resource| studio.sent(resource));
    for (resource, other) in (21u32..).zip(&others) {
        assert_ne!(inode(&first), inode(other), "two blobs of one memory");
        pwrite(other, &[resource as u8], 0).expect("written");
    }
    assert_eq!(read(&first, 0), 0);
    for (resource, other) in (21u32..).zip(&others) {
        studio.scene.guest.map(resource, u64::from(resource - 20) * 8 * PAGE);
        assert_eq!(studio.shown(u64::from(resource - 20) * 8 * PAGE, 1), [resource as u8]);
        assert_eq!(read(other, 0), resource as u8);
    }
}

#[test]
fn nobody_can_shrink_an_image_under_those_who_have_it_mapped() {
    let mut studio = Studio::new();
    let file = studio.sent(20);
    studio.scene.guest.map(20, 0);
    for len in [0, PAGE, IMAGE - 1] {
        assert_eq!(ftruncate(&file, len), Err(Errno::PERM), "shrunk to {len} bytes");
    }
    assert!(fcntl_get_seals(&file).expect("seals").contains(SealFlags::SHRINK));
    assert_eq!(fstat(&file).expect("a file").st_size, IMAGE.cast_signed());
    studio.window.write(IMAGE - 1, &[7]).expect("in the window");
    assert_eq!(read(&file, IMAGE - 1), 7);
}

#[test]
fn a_blob_is_never_larger_than_its_image() {
    let mut studio = Studio::new();
    let id = studio.id;
    for size in [0, IMAGE + 1, IMAGE + PAGE, 2 * IMAGE, 1 << 40, u64::MAX, u64::MAX - PAGE + 1] {
        studio.create_refused(20, id, size, ERR_INVALID_PARAMETER);
    }
    for unknown in [id + 1, id | 1 << 32, 0, u64::from(u32::MAX)] {
        studio.create_refused(20, unknown, IMAGE, ERR_INVALID_PARAMETER);
    }
    // The refusals have used nothing up, and neither does a blob.
    for resource in 20..24 {
        studio.create(resource);
    }
}

#[test]
fn no_image_is_allocated_beyond_the_limit_and_each_is_paid_back() {
    let mut studio = Studio::with(Limits { image_bytes: 2 * IMAGE, ..Limits::default() });
    let id = studio.id;
    let refusals = |studio: &Studio| studio.scene.guest.device().counters().limit_refusals;
    for round in 0..50 {
        studio.create(20);
        studio.create(21);
        studio.create_refused(22, id, IMAGE, ERR_OUT_OF_MEMORY);
        assert_eq!(refusals(&studio), round + 1);
        if round % 2 == 0 {
            studio.scene.guest.map(20, 0);
        }
        for resource in [20, 21] {
            studio.scene.guest.command(&Request::unref(resource)).ok();
        }
    }
    studio.scene.assert_lives();
}

#[test]
fn an_image_larger_than_the_limit_is_never_allocated_though_it_may_be_asked_about() {
    let mut scene = Scene::with(Builder::new().limits(Limits { image_bytes: 64 << 20, ..Limits::default() }));
    let huge = scene.channel.image(&mut scene.guest, 32_768, 32_768, *b"AR4H");
    assert_eq!((huge.size.get(), huge.strides[0].get()), (8 << 30, 8 * 32_768));
    let create = Request::host_blob(1, 20, u64::from(huge.blob_id.get()), 8 << 30);
    scene.guest.command(&create.fenced(5)).expect_error(ERR_OUT_OF_MEMORY);
    let small = scene.channel.image(&mut scene.guest, 64, 64, *b"AR4H");
    scene.guest.command(&Request::host_blob(1, 20, u64::from(small.blob_id.get()), small.size.get())).ok();
    assert_eq!(scene.guest.device().counters().limit_refusals, 1);
}

#[test]
fn an_image_takes_one_descriptor_and_gives_it_back() {
    // One is the context's own.
    let mut studio = Studio::with(Limits { fds: 3, ..Limits::default() });
    let id = studio.id;
    for _ in 0..50 {
        studio.create(20);
        studio.create(21);
        studio.create_refused(22, id, IMAGE, ERR_OUT_OF_MEMORY);
        for resource in [20, 21] {
            studio.scene.guest.command(&Request::unref(resource)).ok();
        }
    }
    // What was refused has taken nothing else: the resource's number, the bytes, the item.
    studio.create(22);
}

#[test]
fn memory_never_outlives_its_resource_nor_goes_before_it() {
    let mut studio = Studio::new();
    let file = studio.sent(20);
    studio.scene.guest.map(20, 0);
    assert_eq!((holders(&file), maps(&file)), (2, 1), "the device's, and the service's");
    // A resource is no part of its context.
    studio.scene.guest.command(&Request::ctx_destroy(1)).ok();
    studio.window.write(0, &[9]).expect("in the window");
    assert_eq!((read(&file, 0), holders(&file)), (9, 2));
    studio.scene.guest.command(&Request::unref(20)).ok();
    assert_eq!((holders(&file), maps(&file)), (1, 0));
    assert_eq!(studio.shown(0, 1), [0]);
    assert_eq!(read(&file, 0), 9, "the service keeps what it was sent");
}

#[test]
fn neither_a_reset_nor_an_end_leaves_an_image_behind_or_its_charge() {
    let mut studio = Studio::with(Limits { image_bytes: IMAGE, fds: 2, ..Limits::default() });
    for round in 0..4 {
        let file = studio.sent(20);
        studio.scene.guest.map(20, 0);
        if round % 2 == 0 {
            studio.scene.guest.command(&Request::ctx_destroy(1)).ok();
        }
        studio.scene.guest.reset();
        assert_eq!((holders(&file), maps(&file)), (1, 0), "after a reset");
        let Studio { scene, window, .. } = studio;
        let Scene { mut guest, service, .. } = scene;
        guest.activate();
        let mut scene = Scene::on(guest, service);
        let image: ImageRequirements = scene.channel.image(&mut scene.guest, SIDE, SIDE, *b"XR24");
        studio = Studio { scene, window, id: u64::from(image.blob_id.get()) };
    }
    let file = studio.sent(20);
    studio.scene.guest.map(20, 0);
    let Studio { scene: Scene { guest, peer, .. }, .. } = studio;
    guest.device().stop().wait().expect("a device");
    assert_eq!((holders(&file), maps(&file)), (1, 0), "after the stop");
    drop((guest, peer));
}

#[test]
fn an_image_that_waits_for_its_service_never_goes_with_its_resource() {
    let mut studio = Studio::with(Limits { image_bytes: IMAGE, ..Limits::default() });
    let id = studio.id;
    studio.create(20);
    studio.scene.guest.command(&Request::ctx_attach(1, 20)).ok();
    studio.scene.guest.map(20, 0);
    studio.window.write(0, &[0x77]).expect("in the window");
    // Behind what the service has not read, so that it waits here.
    for _ in 0..16 {
        studio.scene.channel.send(&mut studio.scene.guest, &[1; 32 << 10], &[]);
    }
    studio.scene.channel.send(&mut studio.scene.guest, b"b", &[20]);
    studio.scene.guest.command(&Request::unref(20)).ok();
    studio.create_refused(21, id, IMAGE, ERR_OUT_OF_MEMORY);
    let mut files = Vec::new();
    let mut len = 0;
    while len < (16 << 15) + 1 {
        let (data, more) = studio.scene.peer.receive(64 << 10);
        len += data.len();
        files.extend(more);
    }
    assert_eq!((files.len(), read(&files[0], 0)), (1, 0x77));
    until("the device has let go of it", || holders(&files[0]) == 1);
    until("its bytes are paid back", || {
        studio.scene.guest.command(&Request::host_blob(1, 21, id, IMAGE)).kind() < 0x1200
    });
}

/// Nobody will ever take it: its memory is there for the next one at once.
#[test]
fn an_image_that_waits_for_its_service_goes_with_its_channel() {
    for hung_up in [false, true] {
        let mut studio = Studio::with(Limits { image_bytes: IMAGE, fds: 2, ..Limits::default() });
        studio.create(20);
        studio.scene.guest.command(&Request::ctx_attach(1, 20)).ok();
        for _ in 0..16 {
            studio.scene.channel.send(&mut studio.scene.guest, &[1; 32 << 10], &[]);
        }
        studio.scene.channel.send(&mut studio.scene.guest, b"b", &[20]);
        studio.scene.guest.command(&Request::unref(20)).ok();
        if hung_up {
            assert_eq!(studio.scene.guest.device().hang_up(ChannelType::PIPEWIRE).wait(), Ok(1));
        }
        studio.scene.guest.command(&Request::ctx_destroy(1)).ok();
        let Scene { mut guest, service, .. } = studio.scene;
        for ring in [10, 11] {
            guest.command(&Request::unref(ring)).ok();
        }
        let mut scene = Scene::on(guest, service);
        let image = scene.channel.image(&mut scene.guest, SIDE, SIDE, *b"XR24");
        scene.guest.command(&Request::host_blob(1, 20, u64::from(image.blob_id.get()), IMAGE)).ok();
        scene.assert_lives();
    }
}

#[test]
fn an_image_of_a_reused_context_is_never_that_of_its_earlier_life() {
    let mut studio = Studio::new();
    let old = studio.id;
    studio.scene.guest.command(&Request::ctx_destroy(1)).ok();
    let kind = studio.scene.guest.command(&Request::host_blob(1, 20, old, IMAGE)).kind();
    assert!((0x1200..0x1206).contains(&kind), "an image without a context: answered {kind:#x}");
    let Scene { mut guest, service, .. } = studio.scene;
    for ring in [10, 11] {
        guest.command(&Request::unref(ring)).ok();
    }
    let mut scene = Scene::on(guest, service);
    scene.guest.command(&Request::host_blob(1, 20, old, IMAGE)).expect_error(ERR_INVALID_PARAMETER);
    scene.assert_lives();
}
