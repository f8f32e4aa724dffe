//! A picture whose copies share their rows until one of them is drawn on: a frame is set aside without a copy of it, and
//! later drawing copies no more rows than it touches.

use std::sync::Arc;

use crate::protocol::format::{Format, PIXEL};
use crate::seams::{Area, Picture, Pixels};

/// Most pixels of a picture: twice 8K.
pub(crate) const MOST_PIXELS: u64 = 1 << 26;

/// Rows of pixels in the guest's format.
#[derive(Clone)]
pub(crate) struct Canvas {
    format: Format,
    width: u32,
    rows: Vec<Arc<[u8]>>,
}

impl Canvas {
    /// A picture that is black: in every format that is zeros.
    pub(crate) fn new(format: Format, width: u32, height: u32) -> Self {
        let blank: Arc<[u8]> = Arc::from(vec![0; (width * PIXEL) as usize]);
        Self { format, width, rows: vec![blank; height as usize] }
    }

    /// Width and height in pixels.
    pub(crate) fn size(&self) -> (u32, u32) {
        (self.width, self.rows.len() as u32)
    }

    /// Whether a picture has this one's size and format.
    pub(crate) fn is_like(&self, picture: &Picture<'_>) -> bool {
        (picture.format, (picture.width, picture.height)) == (self.format, self.size())
    }

    /// Draws pixels over an area; what lies outside the picture is left out.
    pub(crate) fn draw(&mut self, area: Area, pixels: Pixels<'_>) {
        let start = area.x as usize * PIXEL as usize;
        let rows = self.rows.iter_mut().skip(area.y as usize).take(area.height as usize);
        for (row, drawn) in rows.zip(pixels.rows()) {
            if start == 0 && drawn.len() == row.len() && Arc::get_mut(row).is_none() {
                // Nothing of the shared row stays.
                *row = Arc::from(drawn);
            } else if let Some(part) = Arc::make_mut(row).get_mut(start..start + drawn.len()) {
                part.copy_from_slice(drawn);
            }
        }
    }

    /// Format of its pixels.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Its rows from the top.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.rows.iter().map(|row| &**row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(canvas: &Canvas) -> Vec<u8> {
        canvas.rows().flatten().copied().collect()
    }

    #[test]
    fn a_picture_that_was_set_aside_never_changes_and_shares_what_was_not_drawn_over() {
        let mut canvas = Canvas::new(Format::R8G8B8X8, 2, 3);
        canvas.draw(Area { x: 0, y: 0, width: 2, height: 3 }, Pixels::new(&[1; 24], 8, 2, 3));
        let before = canvas.clone();
        canvas.draw(Area { x: 1, y: 1, width: 1, height: 1 }, Pixels::new(&[2; 4], 4, 1, 1));
        canvas.draw(Area { x: 0, y: 2, width: 2, height: 1 }, Pixels::new(&[3; 8], 8, 2, 1));
        assert_eq!(drawn(&before), [1; 24]);
        assert_eq!(drawn(&canvas), [[1; 4], [1; 4], [1; 4], [2; 4], [3; 4], [3; 4]].concat());
        assert!(Arc::ptr_eq(&before.rows[0], &canvas.rows[0]));
    }

    #[test]
    fn drawing_never_leaves_the_picture() {
        let mut canvas = Canvas::new(Format::B8G8R8A8, 2, 2);
        for (x, y) in [(1, 0), (0, 2), (u32::MAX, 0), (0, u32::MAX)] {
            canvas.draw(Area { x, y, width: 2, height: 2 }, Pixels::new(&[9; 16], 8, 2, 2));
        }
        assert_eq!(drawn(&canvas), [0; 16]);
    }
}
