//! The PNG file for one frame. It is opened before the story begins, so that a name that cannot be written is told at
//! once, and so that its descriptor is not taken for a leak of the story.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use png::{BitDepth, ColorType, Encoder};

/// A picture's file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {reason}", path.display())]
pub(super) struct PictureError {
    path: PathBuf,
    reason: String,
}

/// The file, empty or as it was until a picture is written to it.
#[derive(Debug)]
pub(super) struct PictureFile {
    path: PathBuf,
    file: File,
    /// It was made here, and nothing has been written yet: what is dropped like that is removed.
    blank: bool,
}

impl PictureFile {
    /// Opens or makes the file. What is in it stays until there is a picture.
    pub(super) fn create(path: &Path) -> Result<Self, PictureError> {
        let new = OpenOptions::new().write(true).create_new(true).open(path);
        let blank = new.is_ok();
        let opened = match new {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => OpenOptions::new().write(true).open(path),
            opened => opened,
        };
        match opened {
            Ok(file) => Ok(Self { path: path.to_path_buf(), file, blank }),
            Err(error) => Err(PictureError { path: path.to_path_buf(), reason: error.to_string() }),
        }
    }

    /// Writes a picture: `width * height` times red, green and blue.
    pub(super) fn write(&mut self, width: u32, height: u32, rgb: &[u8]) -> Result<(), PictureError> {
        self.blank = false;
        self.encode(width, height, rgb).map_err(|reason| PictureError { path: self.path.clone(), reason })
    }

    fn encode(&self, width: u32, height: u32, rgb: &[u8]) -> Result<(), String> {
        let words = |error: io::Error| error.to_string();
        if self.file.metadata().is_ok_and(|file| file.is_file()) {
            self.file.set_len(0).map_err(words)?;
        }
        let mut out = BufWriter::new(&self.file);
        let mut encoder = Encoder::new(&mut out, width, height);
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(BitDepth::Eight);
        let mut picture = encoder.write_header().map_err(|error| error.to_string())?;
        picture.write_image_data(rgb).map_err(|error| error.to_string())?;
        picture.finish().map_err(|error| error.to_string())?;
        out.flush().map_err(words)
    }
}

impl Drop for PictureFile {
    fn drop(&mut self) {
        if self.blank {
            let _ = fs::remove_file(&self.path);
        }
    }
}
