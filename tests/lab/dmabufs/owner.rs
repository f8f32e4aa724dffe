//! What the owner of a mapped dma-buf does to itself: it draws on, closes everything, or gives the camera back.

use std::path::Path;

use virtio_gpu_uring::sources::camera::Camera;
use virtio_gpu_uring::sources::{PictureSize, Source, SourceKind, open};
use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{Builder, HostWindow};

use crate::desk::{Desk, PAGE, PLACE, WINDOW, Way, assert_same, dma_bufs, host_buffer, scenario};
use crate::exporters::{CAMERA, Exporter};

#[test]
fn an_owner_that_closes_everything_never_takes_mapped_pages_with_it() {
    for exporter in Exporter::ALL {
        for way in Way::BOTH {
            scenario(&format!("owner-gone exporter={} way={way:?}", exporter.name()), || {
                let mut desk = Desk::new();
                let before = dma_bufs();
                let buffer = exporter.writable(15 * PAGE);
                buffer.paint(1);
                let (bytes, len) = (buffer.bytes(), buffer.len);
                let resource = desk.show(&buffer, way, PLACE);
                drop(buffer);
                assert_eq!(dma_bufs(), (before.0 + 1, before.1 + 1));
                desk.expect(PLACE, &bytes);
                desk.store(PLACE + 2 * PAGE, 0x77);
                desk.window.write(PLACE + 5 * PAGE, b"still").expect("in the window");
                let mut want = bytes;
                want[2 * PAGE as usize] = 0x77;
                want.splice(5 * PAGE as usize..5 * PAGE as usize + 5, *b"still");
                // Another buffer of the same owner's is another buffer.
                let next = exporter.writable(15 * PAGE);
                next.paint(2);
                desk.expect(PLACE, &want);
                desk.ok(&Request::unmap(resource));
                desk.expect_filler(0, WINDOW);
                desk.guest.map(resource, PLACE + PAGE);
                desk.expect(PLACE + PAGE, &want);
                desk.ok(&Request::unref(resource));
                drop(next);
                assert_eq!(dma_bufs(), before);
                format!("size={len:#x} pages=kept")
            });
        }
    }
}

/// Maps all buffers of a source, one beside the other; the resources and their places.
fn show_all(desk: &mut Desk, source: &dyn Source, way: Way) -> Vec<(u32, u64)> {
    let mut at = PLACE;
    let mut mapped = Vec::new();
    for index in 0..source.buffers() {
        let file = source.buffer(index).try_clone_to_owned().expect("a duplicate");
        let id = match way {
            Way::Offered => desk.offer(host_buffer(&file)),
            Way::Sent => u64::from(desk.send(&file).0),
        };
        let resource = desk.make(id, source.len(index));
        desk.guest.map(resource, at);
        mapped.push((resource, at));
        at += source.len(index);
    }
    mapped
}

#[test]
fn no_frame_of_a_source_is_ever_zeros_or_another_in_the_guest() {
    const FRAMES: usize = 16;
    let camera = SourceKind::V4l2(CAMERA.into());
    let kinds = [SourceKind::Udmabuf, SourceKind::DmaHeap, camera.clone(), camera];
    for (kind, way) in kinds.into_iter().zip([Way::Offered, Way::Sent].into_iter().cycle()) {
        scenario(&format!("frames source={kind} way={way:?}"), || {
            // 15 pages, and a window for four of the camera's.
            let size = PictureSize::new(128, 120).expect("a size");
            let mut source = open(&kind, size, 4).expect("the lab has every source");
            let mut desk = Desk::on(HostWindow::new(4 << 20).expect("a window"), Builder::new());
            let places = show_all(&mut desk, &*source, way);
            let (mut bytes, mut used) = (Vec::new(), vec![0; source.buffers()]);
            for _ in 0..FRAMES {
                let frame = source.next_frame().expect("a frame");
                source.read(frame.index, &mut bytes).expect("read");
                let seen = desk.seen(places[frame.index].1, source.len(frame.index));
                assert_same(&seen, &bytes, "the guest and the source differ");
                assert!(seen.iter().any(|byte| *byte != 0), "a frame of zeros");
                used[frame.index] += 1;
                source.release(frame.index).expect("given back");
            }
            assert!(used.iter().all(|frames| *frames > 0) && used.len() >= 4, "{used:?}");
            format!("buffers={} frames={FRAMES} zero=0 mismatched=0", used.len())
        });
    }
}

#[test]
fn a_camera_that_is_given_back_never_takes_its_frames_from_the_guest() {
    scenario("camera-given-back exporter=v4l2", || {
        let mut desk = Desk::new();
        let before = dma_bufs();
        let mut camera = Camera::open(Path::new(CAMERA), 2).expect("the lab has a camera");
        let held = camera.next_frame().expect("a frame").index;
        let file = camera.buffer(held).try_clone_to_owned().expect("a duplicate");
        let (id, len) = (desk.offer(host_buffer(&file)), camera.len(held));
        drop(file);
        let resource = desk.make(id, len);
        desk.guest.map(resource, PLACE);
        let mut bytes = Vec::new();
        camera.read(held, &mut bytes).expect("read");
        desk.expect(PLACE, &bytes);
        // Stops the stream and gives all buffers back, of which the guest still has one.
        drop(camera);
        assert_eq!(dma_bufs(), (before.0 + 1, before.1 + 1));
        desk.expect(PLACE, &bytes);
        // The next user's frames go elsewhere.
        let mut camera = Camera::open(Path::new(CAMERA), 2).expect("the camera is free again");
        for _ in 0..4 {
            let frame = camera.next_frame().expect("a frame");
            camera.release(frame.index).expect("given back");
        }
        desk.expect(PLACE, &bytes);
        desk.store(PLACE + PAGE, 0xee);
        desk.ok(&Request::unmap(resource));
        desk.expect_filler(0, WINDOW);
        desk.guest.map(resource, 0);
        desk.expect(0, &bytes);
        desk.ok(&Request::unref(resource));
        drop(camera);
        assert_eq!(dma_bufs(), before);
        format!("size={len:#x} pages=kept next-camera=ok")
    });
}
