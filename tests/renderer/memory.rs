//! Guest memory that changes under a renderer: regions that a VMM takes away while they are attached.

use std::sync::{Arc, Mutex};

use virtio_gpu_uring::testing::{Guest, GuestOptions, Request};
use virtio_gpu_uring::{
    Activation, Area, BlobRequest, Builder, Capset, Device, Fence, GuestBacking, RenderedBlob, Renderer, RendererError,
    Resource3d,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use super::rendered::FORMAT;

/// What the renderer has been given last.
type Given = Arc<Mutex<Option<GuestBacking>>>;

/// A renderer that lends what it is given to the test.
struct Lender(Given);

impl Renderer for Lender {
    fn capsets(&self) -> Vec<Capset> {
        vec![Capset { id: 1, max_version: 1, data: vec![1] }]
    }

    fn create_context(&mut self, _context: u32, _capset: u32, _name: &str) -> Result<(), RendererError> {
        Ok(())
    }

    fn destroy_context(&mut self, _context: u32) {}

    fn attach_resource(&mut self, _context: u32, _resource: u32) {}

    fn detach_resource(&mut self, _context: u32, _resource: u32) {}

    fn submit(&mut self, _context: u32, _stream: &[u8]) -> Result<(), RendererError> {
        Ok(())
    }

    fn create_blob(&mut self, _request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        Err(RendererError::Invalid("not here".into()))
    }

    fn create_resource(&mut self, _request: &Resource3d) -> Result<(), RendererError> {
        Ok(())
    }

    fn attach_backing(&mut self, _resource: u32, backing: GuestBacking) -> Result<(), RendererError> {
        *self.0.lock().expect("no panic under it") = Some(backing);
        Ok(())
    }

    fn read_pixels(&mut self, _resource: u32, _area: Area) -> Result<Vec<u8>, RendererError> {
        Ok(Vec::new())
    }

    fn destroy_resource(&mut self, _resource: u32) {}

    fn fence(&mut self, _context: u32, _ring: Option<u8>, fence: Fence) {
        fence.signal();
    }
}

fn lender() -> (Builder, Given) {
    let given = Given::default();
    let lender = Lender(Arc::clone(&given));
    (Builder::new().renderer(move || Ok(lender)), given)
}

fn take(given: &Given) -> GuestBacking {
    given.lock().expect("no panic under it").take().expect("the renderer was given guest memory")
}

#[test]
fn guest_memory_never_goes_while_a_renderer_holds_it() {
    let (builder, given) = lender();
    let mut guest = Guest::start(builder);
    let (start, len) = guest.page_range(8192);
    guest.ram().write(GuestAddress(start), b"alive");
    guest.command(&Request::create_3d(7, 2, FORMAT, 16, 8)).ok();
    guest.command(&Request::attach_backing(7, &[(start, len)])).ok();
    let held = take(&given);
    let memory = Arc::downgrade(&guest.ram().space());
    let mut seen = [0; 5];
    held.read(0, &mut seen).expect("guest memory");
    assert_eq!(&seen, b"alive");
    held.write(4096, b"there").expect("guest memory");
    assert_eq!(guest.ram().read(GuestAddress(start + 4096), 5), b"there");
    for (start, len) in [(8192, 1), (8188, 5), (u64::MAX, 1), (0, 8193)] {
        let refused = held.read(start, &mut vec![0; len]).expect_err("outside");
        assert_eq!((refused.start, refused.len, refused.have), (start, len as u64, 8192));
        assert_eq!(held.write(start, &vec![1; len]), Err(refused));
    }
    // What was refused may have been written in part. After a reset it is another driver's.
    held.write(0, b"alive").expect("guest memory");
    guest.reset();
    let ram = guest.ram().clone();
    held.read(0, &mut seen).expect_err("after the reset");
    held.write(0, b"wrong").expect_err("after the reset");
    assert_eq!(ram.read(GuestAddress(start), 5), b"alive");
    drop((ram, guest));
    held.write(0, b"wrong").expect_err("after the device");
    assert!(memory.upgrade().is_some());
    drop(held);
    drop(given);
    assert!(memory.upgrade().is_none(), "somebody holds the memory of a guest that is gone");
}

/// Where the region begins that comes and goes.
const PLUGGED: u64 = 1 << 30;

/// Guest memory whose regions a VMM exchanges. Clones are the same one.
#[derive(Clone)]
struct Changing(Arc<Mutex<Arc<GuestMemoryMmap>>>);

impl Changing {
    fn change(&self, memory: &Arc<GuestMemoryMmap>) {
        *self.0.lock().expect("no panic under it") = Arc::clone(memory);
    }
}

impl GuestAddressSpace for Changing {
    type M = GuestMemoryMmap;
    type T = Arc<GuestMemoryMmap>;

    fn memory(&self) -> Self::T {
        Arc::clone(&self.0.lock().expect("no panic under it"))
    }
}

#[test]
fn memory_that_is_taken_from_a_guest_is_never_read_by_its_renderer_nor_a_reason_to_crash() {
    let (builder, given) = lender();
    let device: Device<Changing> = builder.spawn().expect("a device");
    // The fake guest's queues, in memory that changes; its own device stays idle.
    let mut guest = Guest::powered_off(Builder::new().spawn().expect("a device"), GuestOptions::default());
    let Activation { control, cursor, interrupt, .. } = guest.activation();
    let low = guest.ram().space();
    let plugged = GuestMemoryMmap::from_ranges(&[(GuestAddress(PLUGGED), 8192)]).expect("memory");
    let (_, region) = plugged.remove_region(GuestAddress(PLUGGED), 8192).expect("a region");
    let more = Arc::new(low.insert_region(region).expect("one more region"));
    let memory = Changing(Arc::new(Mutex::new(Arc::clone(&more))));
    device.acknowledge(virtio_gpu_uring::protocol::features::OFFERED).expect("served");
    let activation = Activation { memory: memory.clone(), control, cursor, interrupt };
    device.activate(activation).wait().expect("a device").expect("activated");
    more.write_slice(b"there", GuestAddress(PLUGGED)).expect("plugged in");
    guest.command(&Request::create_3d(7, 2, FORMAT, 16, 8)).ok();
    guest.command(&Request::attach_backing(7, &[(PLUGGED, 8192)])).ok();
    let held = take(&given);
    let mut seen = [0; 5];
    held.read(0, &mut seen).expect("guest memory");
    assert_eq!(&seen, b"there");
    memory.change(&low);
    assert!(held.read(0, &mut seen).is_err(), "read from memory that the guest has not");
    assert!(held.write(0, b"gone!").is_err(), "written to memory that the guest has not");
    guest.settle();
    memory.change(&more);
    held.read(0, &mut seen).expect("guest memory");
    assert_eq!(&seen, b"there", "what was refused was written all the same");
    guest.settle();
}
