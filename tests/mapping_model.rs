//! Random programs of creations, mappings and their ends, held against a model of a few lines: after every step the
//! answer is the model's, and so is every page of the window.
#![cfg(feature = "testing")]

#[path = "blobs/setup.rs"]
mod setup;

use std::os::fd::OwnedFd;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, OK_MAP_INFO, OK_NODATA,
};
use virtio_gpu_uring::testing::{Request, census};
use virtio_gpu_uring::{Builder, HostWindow};

use setup::{CONTEXT, PAGE, Setup, memfd, put, read_only};

/// Pages of the window.
const WINDOW: usize = 8;
/// Resources that programs speak of.
const RESOURCES: u32 = 4;
/// Pages of each buffer; the last one is opened for reading only.
const BUFFERS: [usize; 3] = [1, 3, 4];
const READ_ONLY: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    Create { resource: u32, buffer: usize, pages: usize },
    Map { resource: u32, page: u64, odd: u64 },
    Unmap { resource: u32 },
    Unref { resource: u32 },
    CtxDestroy,
    CtxCreate,
    Reset,
    HostWrite { buffer: usize, page: usize, byte: u8 },
    GuestWrite { page: usize, byte: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let resource = || 0..=RESOURCES;
    let page = prop_oneof![
        12 => 0..WINDOW as u64 + 1,
        // The last page of all, so that the end wraps.
        1 => Just(u64::MAX / PAGE),
        1 => Just(1 << 20),
    ];
    let odd = prop_oneof![9 => Just(0), 1 => 1..PAGE];
    let step = prop_oneof![
        6 => (resource(), 0..BUFFERS.len(), 1..6usize)
            .prop_map(|(resource, buffer, pages)| Step::Create { resource, buffer, pages }),
        8 => (resource(), page, odd).prop_map(|(resource, page, odd)| Step::Map { resource, page, odd }),
        4 => resource().prop_map(|resource| Step::Unmap { resource }),
        3 => resource().prop_map(|resource| Step::Unref { resource }),
        1 => Just(Step::CtxDestroy),
        2 => Just(Step::CtxCreate),
        1 => Just(Step::Reset),
        4 => (0..BUFFERS.len(), 0..4usize, any::<u8>())
            .prop_map(|(buffer, page, byte)| Step::HostWrite { buffer, page: page % BUFFERS[buffer], byte }),
        6 => (0..WINDOW, any::<u8>()).prop_map(|(page, byte)| Step::GuestWrite { page, byte }),
    ];
    vec(step, 1..40)
}

/// A blob in the model: its buffer, its pages, and where it is mapped.
#[derive(Debug, Clone)]
struct Blob {
    buffer: usize,
    pages: usize,
    mapped: Option<usize>,
    /// The guest's own copies of a read-only buffer's pages.
    copies: [Option<u8>; 4],
}

/// What the device should be.
#[derive(Debug)]
struct Model {
    context: bool,
    blobs: [Option<Blob>; RESOURCES as usize + 1],
    buffers: [[u8; 4]; BUFFERS.len()],
    filler: [u8; WINDOW],
}

impl Model {
    fn new() -> Self {
        Self {
            context: true,
            blobs: Default::default(),
            buffers: [[1, 2, 3, 4]; BUFFERS.len()],
            filler: std::array::from_fn(|page| setup::gap(page as u64)),
        }
    }

    /// The blob that covers a page of the window, with its own page there.
    fn cover(&mut self, page: usize) -> Option<(&mut Blob, usize)> {
        let covers = |blob: &&mut Blob| blob.mapped.is_some_and(|first| (first..first + blob.pages).contains(&page));
        let blob = self.blobs.iter_mut().flatten().find(covers)?;
        let own = page - blob.mapped?;
        Some((blob, own))
    }

    fn page(&mut self, page: usize) -> u8 {
        match self.cover(page).map(|(blob, own)| (blob.buffer, own, blob.copies[own])) {
            None => self.filler[page],
            Some((_, _, Some(copy))) => copy,
            Some((buffer, own, None)) => self.buffers[buffer][own],
        }
    }

    fn window(&mut self) -> Vec<u8> {
        (0..WINDOW).map(|page| self.page(page)).collect()
    }

    /// Does a step that the guest sends; the answers that are right, the exact one or one of several faults' codes.
    fn step(&mut self, step: &Step) -> Vec<u32> {
        match *step {
            Step::Create { resource, buffer, pages } => self.create(resource, buffer, pages),
            Step::Map { resource, page, odd } => self.map(resource, page, odd),
            Step::Unmap { resource } => match &mut self.blobs[resource as usize] {
                None => vec![ERR_INVALID_RESOURCE_ID],
                Some(blob) => match blob.mapped.take() {
                    None => vec![ERR_INVALID_PARAMETER],
                    Some(_) => {
                        blob.copies = [None; 4];
                        vec![OK_NODATA]
                    }
                },
            },
            Step::Unref { resource } => match self.blobs[resource as usize].take() {
                None => vec![ERR_INVALID_RESOURCE_ID],
                Some(_) => vec![OK_NODATA],
            },
            Step::CtxDestroy => {
                vec![if std::mem::replace(&mut self.context, false) { OK_NODATA } else { ERR_INVALID_CONTEXT_ID }]
            }
            Step::CtxCreate => {
                vec![if std::mem::replace(&mut self.context, true) { ERR_INVALID_CONTEXT_ID } else { OK_NODATA }]
            }
            Step::Reset | Step::HostWrite { .. } | Step::GuestWrite { .. } => Vec::new(),
        }
    }

    fn create(&mut self, resource: u32, buffer: usize, pages: usize) -> Vec<u32> {
        let faults = [
            (resource == 0 || self.blobs[resource as usize].is_some(), ERR_INVALID_RESOURCE_ID),
            (!self.context, ERR_INVALID_CONTEXT_ID),
            (pages > BUFFERS[buffer], ERR_INVALID_PARAMETER),
        ];
        let faults: Vec<u32> = faults.iter().filter(|(is, _)| *is).map(|(_, code)| *code).collect();
        if faults.is_empty() {
            self.blobs[resource as usize] = Some(Blob { buffer, pages, mapped: None, copies: [None; 4] });
            return vec![OK_NODATA];
        }
        faults
    }

    fn map(&mut self, resource: u32, page: u64, odd: u64) -> Vec<u32> {
        let Some(blob) = &self.blobs[resource as usize] else { return vec![ERR_INVALID_RESOURCE_ID] };
        let (pages, mapped) = (blob.pages, blob.mapped.is_some());
        let first = usize::try_from(page).unwrap_or(usize::MAX);
        let fits = first.checked_add(pages).is_some_and(|end| end <= WINDOW);
        let free = fits && (first..first + pages).all(|page| self.cover(page).is_none());
        match &mut self.blobs[resource as usize] {
            Some(blob) if !mapped && free && odd == 0 => {
                blob.mapped = Some(first);
                vec![OK_MAP_INFO]
            }
            _ => vec![ERR_INVALID_PARAMETER],
        }
    }
}

/// A device and its buffers.
struct Machine {
    setup: Setup,
    files: [OwnedFd; BUFFERS.len()],
    reader: OwnedFd,
}

impl Machine {
    fn new(name: &str, populated: bool) -> Self {
        let len = WINDOW * PAGE as usize;
        let window = HostWindow::with_scratch(len, len).expect("a window").populated(populated);
        let setup = Setup::on(window, Builder::new());
        setup.paint();
        let files = BUFFERS.map(|pages| memfd(name, pages as u64 * PAGE));
        let reader = read_only(&files[READ_ONLY]);
        Self { setup, files, reader }
    }

    fn run(&mut self, model: &mut Model, step: &Step) -> Result<(), TestCaseError> {
        let right = model.step(step);
        let request = match *step {
            Step::Create { resource, buffer, pages } => {
                let file = if buffer == READ_ONLY { &self.reader } else { &self.files[buffer] };
                let id = self.setup.offer(file);
                Request::host_blob(CONTEXT, resource, id, pages as u64 * PAGE)
            }
            Step::Map { resource, page, odd } => Request::map(resource, (page * PAGE).wrapping_add(odd)),
            Step::Unmap { resource } => Request::unmap(resource),
            Step::Unref { resource } => Request::unref(resource),
            Step::CtxDestroy => Request::ctx_destroy(CONTEXT),
            Step::CtxCreate => Request::ctx_create(CONTEXT, CAPSET_CROSS_DOMAIN),
            Step::Reset => {
                self.setup.guest.reset();
                self.setup.guest.activate();
                (model.context, model.blobs) = (false, Default::default());
                return Ok(());
            }
            Step::HostWrite { buffer, page, byte } => {
                put(&self.files[buffer], page as u64 * PAGE, byte);
                model.buffers[buffer][page] = byte;
                return Ok(());
            }
            Step::GuestWrite { page, byte } => {
                self.setup.window.write(page as u64 * PAGE, &[byte]).expect("in the window");
                match model.cover(page) {
                    None => model.filler[page] = byte,
                    Some((blob, own)) if blob.buffer == READ_ONLY => blob.copies[own] = Some(byte),
                    Some((blob, own)) => {
                        let buffer = blob.buffer;
                        model.buffers[buffer][own] = byte;
                    }
                }
                return Ok(());
            }
        };
        let answer = self.setup.guest.command(&request);
        prop_assert!(right.contains(&answer.kind()), "answered {:#x}, right were {right:x?}", answer.kind());
        Ok(())
    }

    /// Every page of the window, and every page of the buffers, are the model's.
    fn compare(&self, model: &mut Model) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.setup.pages(0..WINDOW as u64), model.window(), "the window");
        for (buffer, pages) in BUFFERS.iter().enumerate() {
            for page in 0..*pages {
                let byte = setup::get(&self.files[buffer], page as u64 * PAGE);
                prop_assert_eq!(byte, model.buffers[buffer][page], "page {} of buffer {}", page, buffer);
            }
        }
        Ok(())
    }
}

/// Runs a program on a device of its own, and sees it go without a trace.
fn program_is_the_model_s(name: &str, populated: bool, program: &[Step]) -> Result<(), TestCaseError> {
    let mut machine = Machine::new(name, populated);
    let mut model = Model::new();
    for (number, step) in program.iter().enumerate() {
        let outcome = machine.run(&mut model, step).and_then(|()| machine.compare(&mut model));
        outcome.map_err(|error| TestCaseError::fail(format!("step {number}, {step:?}: {error}")))?;
    }
    let Machine { setup, files, reader } = machine;
    let mapped = model.blobs.iter().flatten().filter(|blob| blob.mapped.is_some()).count();
    prop_assert_eq!(census::maps_named(name), mapped, "mappings of the buffers");
    drop(setup);
    prop_assert_eq!(census::fds_named(name), files.len() + 1, "descriptors of the buffers");
    prop_assert_eq!(census::maps_named(name), 0, "mappings of the buffers");
    drop(reader);
    Ok(())
}

fn config(cases: u32) -> Config {
    Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn no_program_ever_shows_what_the_model_does_not(program in steps()) {
        program_is_the_model_s("model-plain", false, &program)?;
    }
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn no_program_ever_shows_what_the_model_does_not_in_a_populated_window(program in steps()) {
        program_is_the_model_s("model-populated", true, &program)?;
    }
}
