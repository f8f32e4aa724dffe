//! The files of a display: each is written beside itself and then takes its own place, so that it is always whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{self, Path, PathBuf};

use png::{BitDepth, ColorType, Compression, Encoder};

use crate::display::canvas::Canvas;
use crate::seams::Cursor;

/// Bytes of compressed picture that are written at a time.
const CHUNK: usize = 64 << 10;

/// A cursor's image.
pub(super) struct Sprite {
    size: (u32, u32),
    hot: (u32, u32),
    rgba: Vec<u8>,
}

impl Sprite {
    pub(super) fn new(cursor: &Cursor<'_>) -> Self {
        let pixels = cursor.pixels.rows().flat_map(|row| row.as_chunks().0);
        let rgba = pixels.flat_map(|pixel| cursor.format.rgba(*pixel)).collect();
        Self { size: (cursor.width, cursor.height), hot: (cursor.hot_x, cursor.hot_y), rgba }
    }
}

/// A file, and the one that becomes it.
struct Target {
    path: PathBuf,
    part: PathBuf,
}

impl Target {
    fn new(path: PathBuf) -> Self {
        let mut part = OsString::from(&path);
        part.push(".part");
        Self { path, part: part.into() }
    }

    /// Puts what `fill` writes in place of the file.
    ///
    /// # Errors
    /// Of the disk, or what `fill` says; the file is as it was then.
    fn replace(&self, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
        // Made anew: what somebody else has put there, a link perhaps, is not written to.
        remove(&self.part)?;
        // And not to be read: in a sandbox that cannot be had.
        let part = File::options().write(true).create_new(true).open(&self.part)?;
        let mut out = BufWriter::with_capacity(CHUNK, part);
        let written = fill(&mut out).and_then(|()| out.flush());
        drop(out.into_parts());
        let replaced = written.and_then(|()| fs::rename(&self.part, &self.path));
        if replaced.is_err() {
            let _ = remove(&self.part);
        }
        replaced
    }
}

/// Removes a file that may be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The picture's file and the cursor's.
pub(super) struct Files {
    picture: Target,
    cursor: Target,
}

impl Files {
    /// Makes sure that both can be written, and that neither is there.
    ///
    /// # Errors
    /// Why they cannot.
    pub(super) fn new(path: PathBuf) -> io::Result<Self> {
        let path = path::absolute(path)?;
        let no_file = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        let mut name = path.file_stem().ok_or_else(no_file)?.to_os_string();
        name.push("-cursor.png");
        let files = Self { cursor: Target::new(path.with_file_name(name)), picture: Target::new(path) };
        for target in [&files.picture, &files.cursor] {
            remove(&target.path)?;
            target.replace(|_| Ok(()))?;
            remove(&target.path)?;
        }
        Ok(files)
    }

    /// Where the picture goes.
    pub(super) fn path(&self) -> &Path {
        &self.picture.path
    }

    /// Writes a picture, unless it is `given_up` meanwhile: then the file stays as it was.
    ///
    /// # Errors
    /// Of the disk; `Interrupted` where it was given up.
    pub(super) fn write_picture(&self, canvas: &Canvas, given_up: impl Fn() -> bool) -> io::Result<()> {
        self.picture.replace(|out| {
            let (width, height) = canvas.size();
            let mut encoder = Encoder::new(out, width, height);
            encoder.set_color(ColorType::Rgb);
            encoder.set_depth(BitDepth::Eight);
            encoder.set_compression(Compression::Fastest);
            let mut file = encoder.write_header()?;
            let mut picture = file.stream_writer_with_size(CHUNK)?;
            let mut rgb = vec![[0; 3]; width as usize];
            for row in canvas.rows() {
                if given_up() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                for (to, from) in rgb.iter_mut().zip(row.as_chunks().0) {
                    let [red, green, blue, _] = canvas.format().rgba(*from);
                    *to = [red, green, blue];
                }
                picture.write_all(rgb.as_flattened())?;
            }
            picture.finish()?;
            Ok(file.finish()?)
        })
    }

    /// Writes a cursor, or removes it.
    ///
    /// # Errors
    /// Of the disk.
    pub(super) fn write_cursor(&self, cursor: Option<(&Sprite, (i32, i32))>) -> io::Result<()> {
        let Some((sprite, (x, y))) = cursor else { return remove(&self.cursor.path) };
        self.cursor.replace(|out| {
            let mut encoder = Encoder::new(out, sprite.size.0, sprite.size.1);
            encoder.set_color(ColorType::Rgba);
            encoder.set_depth(BitDepth::Eight);
            encoder.set_compression(Compression::Fastest);
            encoder.add_text_chunk("Hotspot".to_owned(), format!("{} {}", sprite.hot.0, sprite.hot.1))?;
            encoder.add_text_chunk("Position".to_owned(), format!("{x} {y}"))?;
            let mut picture = encoder.write_header()?;
            picture.write_image_data(&sprite.rgba)?;
            Ok(picture.finish()?)
        })
    }
}
