//! Random programs of images, their backing, transfers, scanouts and flushes, right and wrong, held against a model of a
//! few lines: every answer is the model's, and so is what every display was told and shows.
#![cfg(feature = "testing")]

#[path = "images/model.rs"]
mod model;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Lane, Request, Screen, Shown, Viewer};
use virtio_gpu_uring::{Builder, Format, Limits, Monitor};
use vm_memory::GuestAddress;

use model::{ARENA, Entry, From, IMAGE_BYTES, Model, RESOURCES, SCANOUTS, SIDE, Step, Where};

fn places() -> impl Strategy<Value = Where> {
    let odd = prop_oneof![4 => 0..SIDE + 2, 1 => Just(u32::MAX), 1 => Just(1 << 31)];
    prop_oneof![
        3 => Just(Where::All),
        8 => any::<[u32; 4]>().prop_map(Where::Inside),
        2 => any::<([u32; 4], bool)>().prop_map(|(rect, across)| Where::Beyond(rect, across)),
        1 => [odd.clone(), odd.clone(), odd.clone(), odd].prop_map(Where::Raw),
    ]
}

fn lists() -> impl Strategy<Value = Vec<Entry>> {
    let good = || {
        prop_oneof![
            2 => (0..ARENA - 300, 1..300u32).prop_map(|(at, len)| Entry::Arena(at, len)),
            2 => (1..40u32).prop_map(Entry::Next),
        ]
    };
    let bad = prop_oneof![Just(Entry::Empty), (1..9u32).prop_map(Entry::Outside), Just(Entry::Wraps)];
    prop_oneof![
        8 => vec(good(), 1..14),
        1 => (vec(good(), 0..3), bad, vec(good(), 0..3)).prop_map(|(mut list, bad, rest)| {
            list.push(bad);
            list.extend(rest);
            list
        }),
        1 => Just(Vec::new()),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let resource = || prop_oneof![1 => Just(0u32), 24 => 1..RESOURCES];
    let format = prop_oneof![12 => (0..8usize).prop_map(|index| Format::ALL[index].wire()), 1 => 0..140u32];
    let side = || 1..=SIDE;
    let wrong = || prop_oneof![Just(0), Just(32_769), Just(u32::MAX), Just(1 << 30), 1..=SIDE];
    let size = prop_oneof![14 => (side(), side()), 1 => (wrong(), wrong()), 1 => Just((32_768, 32_768))];
    let end = -5..=5i64;
    let from = prop_oneof![2 => end.prop_map(From::End),6 => Just(From::Linux), 2 => (0..600u64).prop_map(From::Raw), 1 => (0..600u64).prop_map(|n| From::Raw(u64::MAX - n))];
    let scanout = prop_oneof![20 => 0..SCANOUTS, 1 => Just(SCANOUTS), 1 => Just(u32::MAX)];
    let step = prop_oneof![
        6 => (resource(), format, size).prop_map(|(resource, format, size)| Step::Create { resource, format, size }),
        6 => (resource(), lists()).prop_map(|(resource, entries)| Step::Attach { resource, entries }),
        1 => resource().prop_map(|resource| Step::Detach { resource }),
        8 => (resource(), places(), from)
            .prop_map(|(resource, place, from)| Step::Transfer { resource, place, from }),
        6 => (scanout, resource(), places())
            .prop_map(|(scanout, resource, place)| Step::SetScanout { scanout, resource, place }),
        9 => (resource(), places()).prop_map(|(resource, place)| Step::Flush { resource, place }),
        2 => resource().prop_map(|resource| Step::Unref { resource }),
        3 => (0..ARENA - 200, 1..200usize, any::<u8>()).prop_map(|(at, len, seed)| Step::Draw { at, len, seed }),
    ];
    vec(step, 1..60)
}

/// A guest, its displays, and the model of both.
struct Machine {
    guest: Guest,
    viewers: Vec<Viewer>,
    model: Model,
}

impl Machine {
    fn new() -> Self {
        let mut builder =
            Builder::new().scanouts(SCANOUTS).limits(Limits { image_bytes: IMAGE_BYTES, ..Limits::default() });
        let mut viewers = Vec::new();
        for scanout in 0..SCANOUTS {
            let (screen, viewer) = Screen::new();
            builder = builder.display(scanout, Monitor::new(64, 64), screen);
            viewers.push(viewer);
        }
        let guest = Guest::with_options(builder, GuestOptions { ram: 1 << 20, ..GuestOptions::default() });
        let (base, _) = guest.page_range(ARENA);
        let model = Model::new(base, guest.ram().end().0);
        guest.ram().write(GuestAddress(base), &model.arena);
        Self { guest, viewers, model }
    }

    /// Every display was told what the model's was, and shows the same.
    fn compare(&mut self) -> Result<(), TestCaseError> {
        for (scanout, (viewer, panel)) in self.viewers.iter().zip(&mut self.model.panels).enumerate() {
            let (drawn, told): (Vec<_>, Vec<_>) =
                viewer.take().into_iter().partition(|shown| matches!(shown, Shown::Drawn(..)));
            let frames = panel.told.iter().map(|shown| match shown {
                Shown::Frame(area) => (area.width * area.height * 4) as usize,
                _ => 0,
            });
            let pixels = drawn.iter().map(|shown| if let Shown::Drawn(_, pixels) = shown { pixels.len() } else { 0 });
            prop_assert_eq!(pixels.sum::<usize>(), frames.sum::<usize>(), "bytes drawn on scanout {}", scanout);
            prop_assert_eq!(told, std::mem::take(&mut panel.told), "what scanout {} was told", scanout);
            let (width, height, canvas) = viewer.picture();
            prop_assert_eq!((width, height), panel.size, "size of scanout {}", scanout);
            prop_assert!(canvas == panel.canvas, "scanout {scanout} shows {canvas:?}, not {:?}", panel.canvas);
        }
        Ok(())
    }

    /// Writes to guest memory what the model's guest has drawn.
    fn draw(&self) {
        self.guest.ram().write(GuestAddress(self.model.base), &self.model.arena);
    }
}

/// Runs a program step by step.
fn program_is_the_model_s(program: &[Step]) -> Result<(), TestCaseError> {
    let mut machine = Machine::new();
    for (number, step) in program.iter().enumerate() {
        let request = machine.model.request(step);
        let right = machine.model.step(step);
        let outcome = match request {
            None => {
                machine.draw();
                Ok(())
            }
            Some(request) => {
                let kind = machine.guest.command(&request).kind();
                let is_right = right.contains(&kind);
                let wrong = || TestCaseError::fail(format!("answered {kind:#x}, right were {right:x?}"));
                if is_right { machine.compare() } else { Err(wrong()) }
            }
        };
        outcome.map_err(|error| TestCaseError::fail(format!("step {number}, {step:?}: {error}")))?;
    }
    machine.guest.assert_all_answered();
    Ok(())
}

/// Runs a program as fast as the queue takes it, but for what the guest draws, which waits for all before it.
fn program_in_a_hurry_is_the_model_s(program: &[Step]) -> Result<(), TestCaseError> {
    let mut machine = Machine::new();
    let mut open = Vec::new();
    for step in program.iter().chain([&Step::Draw { at: 0, len: 1, seed: 0 }]) {
        let request = machine.model.request(step);
        let right = machine.model.step(step);
        if let Some(request) = request {
            open.push((machine.guest.add(Lane::Control, &request), right, step));
            continue;
        }
        machine.guest.publish(Lane::Control);
        for (token, right, step) in open.drain(..) {
            let kind = machine.guest.wait(token).kind();
            prop_assert!(right.contains(&kind), "{step:?} answered {kind:#x}, right were {right:x?}");
        }
        machine.compare()?;
        machine.draw();
    }
    machine.guest.assert_all_answered();
    Ok(())
}

#[test]
fn an_image_that_the_guest_has_given_up_never_counts_against_the_limit() {
    let [width, height] = [2048, 1024];
    let limits = Limits { image_bytes: 8 << 20, ..Limits::default() };
    let mut guest = Guest::start(Builder::new().limits(limits));
    let piece = guest.page_range(8 << 20);
    for _ in 0..10 {
        guest.command(&Request::create_2d(1, Format::B8G8R8X8.wire(), width, height)).ok();
        guest.command(&Request::attach_backing(1, &[piece])).ok();
        guest.command(&Request::transfer_2d(1, [0, 0, width, height], 0)).ok();
        guest.command(&Request::unref(1)).ok();
    }
}

fn config(cases: u32) -> Config {
    Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() }
}

proptest! {
    #![proptest_config(config(250))]

    #[test]
    fn no_program_ever_shows_or_answers_what_the_model_does_not(program in steps()) {
        program_is_the_model_s(&program)?;
    }

    #[test]
    fn no_program_in_one_kick_ever_shows_or_answers_what_the_model_does_not(program in steps()) {
        program_in_a_hurry_is_the_model_s(&program)?;
    }
}
