//! What of a picture a front-end has not been sent yet: a handful of rectangles, so that two distant corners are not all that lies
//! between them, and no flood of small ones grows.

use smallvec::SmallVec;

use crate::display::intersection;
use crate::seams::Area;

/// Most rectangles.
const MOST: usize = 8;

/// An area of any shape, and perhaps a little more.
#[derive(Debug, Default)]
pub(super) struct Damage(SmallVec<[Area; MOST]>);

impl Damage {
    /// Adds what of `area` lies in a picture of this size.
    pub(super) fn add(&mut self, area: Area, (width, height): (u32, u32)) {
        let Some(mut added) = intersection(area, Area { x: 0, y: 0, width, height }) else { return };
        while let Some(index) = self.0.iter().position(|area| is_worth_it(*area, added)) {
            added = around(added, self.0.swap_remove(index));
        }
        if self.0.len() == MOST {
            added = self.0.drain(..).fold(added, around);
        }
        self.0.push(added);
    }

    /// The rectangle around all of it; `None` where there is nothing.
    pub(super) fn bounds(&self) -> Option<Area> {
        self.0.iter().copied().reduce(around)
    }

    pub(super) fn areas(&self) -> &[Area] {
        &self.0
    }
}

/// Whether one rectangle around both has no more pixels than the two.
fn is_worth_it(a: Area, b: Area) -> bool {
    pixels(around(a, b)) <= pixels(a) + pixels(b)
}

fn pixels(area: Area) -> u64 {
    u64::from(area.width) * u64::from(area.height)
}

fn around(a: Area, b: Area) -> Area {
    let (x, y) = (a.x.min(b.x), a.y.min(b.y));
    let right = (a.x + a.width).max(b.x + b.width);
    let bottom = (a.y + a.height).max(b.y + b.height);
    Area { x, y, width: right - x, height: bottom - y }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: (u32, u32) = (100, 50);

    fn area(x: u32, y: u32, width: u32, height: u32) -> Area {
        Area { x, y, width, height }
    }

    #[test]
    fn no_pixel_is_forgotten_none_lies_outside_and_the_list_never_grows() {
        let mut damage = Damage::default();
        let mut seed = 9_u32;
        let mut next = |most: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % most
        };
        let mut added = Vec::new();
        for _ in 0..500 {
            let one = area(next(120), next(60), next(9), next(9));
            damage.add(one, SIZE);
            added.extend(intersection(one, area(0, 0, 100, 50)));
            assert!(damage.areas().len() <= MOST);
            for area in damage.areas() {
                assert!(area.x + area.width <= 100 && area.y + area.height <= 50 && pixels(*area) > 0, "{area:?}");
            }
            for one in &added {
                for (x, y) in [(one.x, one.y), (one.x + one.width - 1, one.y + one.height - 1)] {
                    let point = area(x, y, 1, 1);
                    assert!(damage.areas().iter().any(|area| intersection(*area, point).is_some()), "{point:?}");
                }
            }
        }
    }

    #[test]
    fn distant_corners_do_not_make_the_whole_picture_new() {
        let mut damage = Damage::default();
        damage.add(area(0, 0, 2, 2), SIZE);
        damage.add(area(98, 48, 2, 2), SIZE);
        assert_eq!(damage.areas(), [area(0, 0, 2, 2), area(98, 48, 2, 2)]);
        assert_eq!(damage.bounds(), Some(area(0, 0, 100, 50)));
        damage.add(area(0, 2, 2, 1), SIZE);
        damage.add(area(1, 0, 1, 1), SIZE);
        assert!(damage.areas().contains(&area(0, 0, 2, 3)) && damage.areas().len() == 2, "{damage:?}");
    }
}
