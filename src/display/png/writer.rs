//! The thread that encodes and writes, and the letter box in front of it: one picture and one cursor wait there at most, and
//! later ones take their place.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::watch;

use super::file::{Files, Sprite};
use crate::display::canvas::Canvas;
use crate::observe::warn_limited;

/// A cursor and its position, or none.
type Shown = Option<(Arc<Sprite>, (i32, i32))>;

/// What waits.
#[derive(Default)]
struct Letters {
    picture: Option<(u64, Canvas)>,
    cursor: Option<Shown>,
}

#[derive(Default)]
struct LetterBox {
    letters: Mutex<Letters>,
    filled: Condvar,
    over: AtomicBool,
}

impl LetterBox {
    /// Locked for moments only.
    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Waits for something to write; `None` where the display has gone. A cursor that came before is written still, as that
    /// takes no time worth mentioning.
    fn take(&self) -> Option<Letters> {
        let nothing = |letters: &mut Letters| letters.picture.is_none() && letters.cursor.is_none() && !self.is_over();
        let waited = self.filled.wait_while(self.lock(), nothing);
        let mut letters = waited.unwrap_or_else(PoisonError::into_inner);
        let Letters { picture, cursor } = std::mem::take(&mut *letters);
        match (self.is_over(), cursor) {
            (false, cursor) => Some(Letters { picture, cursor }),
            (true, Some(cursor)) => Some(Letters { picture: None, cursor: Some(cursor) }),
            (true, None) => None,
        }
    }
}

/// The display's end of the thread.
pub(super) struct Writer {
    letter_box: Arc<LetterBox>,
    path: PathBuf,
    /// The last picture's number.
    last: u64,
    written: watch::Receiver<u64>,
}

impl Writer {
    /// Starts the thread; it is named after the file, as far as the kernel's 15 bytes go.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub(super) fn start(files: Files) -> io::Result<Self> {
        let path = files.path().to_owned();
        let name = format!("png {}", path.file_stem().unwrap_or_default().to_string_lossy());
        let letter_box = Arc::<LetterBox>::default();
        let (tell, written) = watch::channel(0);
        let letters = Arc::clone(&letter_box);
        thread::Builder::new().name(name).spawn(move || serve(&letters, &files, &tell))?;
        Ok(Self { letter_box, path, last: 0, written })
    }

    /// Where the picture goes.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has a picture written; done when it, or a later one, has been, or could not be.
    pub(super) fn write(&mut self, picture: Canvas) -> impl Future<Output = ()> + use<> {
        self.last += 1;
        let number = self.last;
        let outdated = self.letter_box.lock().picture.replace((number, picture));
        self.letter_box.filled.notify_one();
        drop(outdated);
        let mut written = self.written.clone();
        async move {
            // A thread that has ended writes nothing any more.
            let _ = written.wait_for(|written| *written >= number).await;
        }
    }

    /// Has a cursor written.
    pub(super) fn cursor(&self, cursor: Shown) {
        self.letter_box.lock().cursor = Some(cursor);
        self.letter_box.filled.notify_one();
    }
}

/// Writes what comes until the display has gone.
fn serve(letter_box: &LetterBox, files: &Files, tell: &watch::Sender<u64>) {
    while let Some(Letters { picture, cursor }) = letter_box.take() {
        if let Some(cursor) = cursor {
            let cursor = cursor.as_ref().map(|(sprite, position)| (&**sprite, *position));
            if let Err(error) = files.write_cursor(cursor) {
                warn_limited!(%error, path = %files.path().display(), "a cursor could not be written beside its picture");
            }
        }
        if let Some((number, canvas)) = picture {
            let written = files.write_picture(&canvas, || letter_box.is_over());
            // What is drawn next need not be copied any more.
            drop(canvas);
            if let Err(error) = written
                && !letter_box.is_over()
            {
                warn_limited!(%error, path = %files.path().display(), "a picture could not be written");
            }
            tell.send_replace(number);
        }
    }
}

/// The thread ends by itself: an encode that is under way is given up between two rows.
impl Drop for Writer {
    fn drop(&mut self) {
        {
            // Under the lock, so that the thread does not fall asleep between its look and the call.
            let _locked = self.letter_box.lock();
            self.letter_box.over.store(true, Ordering::Relaxed);
        }
        self.letter_box.filled.notify_one();
    }
}
