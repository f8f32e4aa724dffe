//! Monitors at random: whatever passes the check is told whole, and nothing panics.

use proptest::option;
use proptest::prelude::*;

use super::super::edid;
use super::reader::{Edid, Read};
use crate::display::monitor::{Mode, Monitor};

fn modes() -> impl Strategy<Value = Mode> {
    let side = || prop_oneof![4 => 1..=16384_u32, 4 => 300..=4200_u32, 1 => 1..=130_u32];
    let usual = prop::sample::select(Monitor::new(640, 480).modes).prop_map(|mode| (mode.width, mode.height));
    let size = prop_oneof![3 => (side(), side()), 2 => usual];
    let refresh = prop_oneof![4 => Just(60), 2 => Just(75), 2 => 24..=240_u32, 1 => 1..=1000_u32];
    (size, refresh).prop_map(|((width, height), refresh)| Mode { width, height, refresh })
}

prop_compose! {
    fn monitors()(
        name in ".{0,20}",
        serial in any::<u32>(),
        preferred in modes(),
        modes in prop::collection::vec(modes(), 0..44),
        size_mm in option::of((0..5000_u32, 0..5000_u32)),
    ) -> Monitor {
        Monitor { name, serial, preferred, modes, position: (0, 0), size_mm, edid: None }
    }
}

/// So few pixels a second that not even the longest line hits the refresh in steps of 10 kHz.
fn too_slow(mode: Mode) -> bool {
    u64::from(mode.height + 15) * u64::from(mode.refresh) * 0xffff < 10_000_000
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_monitor_that_passes_the_check_is_told_wrongly(monitor in monitors()) {
        if monitor.check().is_err() {
            return Ok(());
        }
        let read = Edid::read(&edid(&monitor));
        prop_assert_eq!(read.serial, monitor.serial);
        for mode in monitor.modes.iter().chain([&monitor.preferred]) {
            prop_assert!(too_slow(*mode) || read.offers(mode.width, mode.height, mode.refresh), "{mode:?} is lost");
        }
        let Mode { width, height, refresh } = monitor.preferred;
        let is_it = |mode: &Read| (mode.width, mode.height) == (width, height) && (too_slow(monitor.preferred) || mode.near(refresh));
        let preferred = read.preferred();
        prop_assert_eq!(is_it(&preferred[0]), read.native);
        prop_assert!(is_it(&preferred[preferred.len() - 1]));
        prop_assert_eq!(read.extension.iter().filter(|mode| mode.preferred).count(), usize::from(!read.extension.is_empty()));
    }
}
