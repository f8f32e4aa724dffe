//! A display that nobody looks at: a guest without one draws less, so this is what a VMM connects to find out what it draws.

use crate::seams::{Area, Cursor, Display, Picture, Pixels, Work};

/// Takes every frame at once and shows none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullDisplay;

impl Display for NullDisplay {
    fn attach(&mut self, _picture: &Picture<'_>) {}

    fn draw(&mut self, _area: Area, _pixels: Pixels<'_>) {}

    fn frame(&mut self, _damage: Area) -> Work<()> {
        Work::Done(())
    }

    fn cursor(&mut self, _cursor: Option<&Cursor<'_>>, _position: (i32, i32)) {}

    fn move_cursor(&mut self, _position: (i32, i32)) {}

    fn detach(&mut self) {}
}
