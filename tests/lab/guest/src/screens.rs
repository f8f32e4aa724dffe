//! Subcommands for what the device shows: one that draws what its standard input says, and one that tells what the console
//! of the kernel looks like.

use std::fs;
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

use crate::buffers::Digest;
use crate::failure::{Failure, In, Result, ensure};
use crate::gpu::wait_readable;
use crate::hotplug::Events;
use crate::kms::{self, Connector, Framebuffer};
use crate::pattern::{cursor_pixel, pixel};

const NODE: &str = "/dev/dri/card0";
const CURSOR_SIDE: u32 = 64;
/// `DRM_EVENT_FLIP_COMPLETE`.
const FLIP_COMPLETE: u32 = 2;
/// Of the console's framebuffer.
const CONSOLE: &str = "/sys/class/graphics/fb0";
/// A descriptor of this kind in an EDID is the monitor's name.
const EDID_NAME: [u8; 5] = [0, 0, 0, 0xfc, 0];

/// What to do, as a line says it. The first number is the screen's.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    /// A new picture in the mode that the screen prefers: its seed.
    Draw(usize, u32),
    /// The same in the mode that is set, by a page flip.
    Flip(usize, u32),
    /// The pixels that are shown become another picture's, and are told to have changed.
    Dirty(usize, u32),
    /// A part of a larger picture, from this pixel on.
    Part(usize, u32, (u32, u32)),
    /// A cursor: its seed, and its hotspot.
    Cursor(usize, u32, (i32, i32)),
    Move(usize, (i32, i32)),
    Hide(usize),
    /// Waits for an event after which the screen has this preferred mode, or is gone.
    Await(usize, Option<(u16, u16)>),
    Quit,
}

fn parse(line: &str) -> Option<Order> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, numbers) = words.split_first()?;
    if let ("await", [screen, mode]) = (*name, numbers) {
        let sides = |mode: &str| {
            mode.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)))
        };
        let mode = if *mode == "off" { None } else { Some(sides(mode)?) };
        return Some(Order::Await(screen.parse().ok()?, mode));
    }
    let numbers = numbers.iter().map(|number| number.parse().ok()).collect::<Option<Vec<i32>>>()?;
    let natural = |number: i32| u32::try_from(number).ok();
    let screen = || usize::try_from(*numbers.first()?).ok();
    Some(match (*name, &numbers[..]) {
        ("draw", &[_, seed]) => Order::Draw(screen()?, natural(seed)?),
        ("flip", &[_, seed]) => Order::Flip(screen()?, natural(seed)?),
        ("dirty", &[_, seed]) => Order::Dirty(screen()?, natural(seed)?),
        ("part", &[_, seed, x, y]) => Order::Part(screen()?, natural(seed)?, (natural(x)?, natural(y)?)),
        ("cursor", &[_, seed, hot_x, hot_y]) => Order::Cursor(screen()?, natural(seed)?, (hot_x, hot_y)),
        ("move", &[_, x, y]) => Order::Move(screen()?, (x, y)),
        ("hide", &[_]) => Order::Hide(screen()?),
        ("quit", []) => Order::Quit,
        _ => return None,
    })
}

/// A card, and what this program shows on it.
struct Card {
    file: OwnedFd,
    events: Events,
    shown: Vec<Shown>,
}

/// What one screen shows.
#[derive(Default)]
struct Shown {
    picture: Option<Framebuffer>,
    cursor: Option<Framebuffer>,
}

/// Draws what its standard input says, line by line, until that ends.
pub(crate) fn screens() -> Result<()> {
    let mut card = Card::open()?;
    println!("guest: screens ready count={}", card.shown.len());
    for (number, line) in (1..).zip(std::io::stdin().lock().lines()) {
        let line = line.during("standard input")?;
        let order = parse(&line).ok_or_else(|| Failure::new("order", format_args!("{line:?}")))?;
        if order == Order::Quit {
            break;
        }
        card.obey(order)?;
        println!("guest: done {number} {line}");
    }
    Ok(())
}

impl Card {
    /// Opens the card, and so becomes its master; whoever has been it before must be gone.
    fn open() -> Result<Self> {
        let events = Events::listen()?;
        let file = open(NODE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).during("open of the card")?;
        let connectors = kms::connectors(file.as_fd()).during("GETRESOURCES")?;
        let shown = connectors.iter().map(|_| Shown::default()).collect();
        for (screen, connector) in connectors.iter().enumerate() {
            describe(screen, connector);
        }
        Ok(Self { file, events, shown })
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        let card = self.file.as_fd();
        match order {
            Order::Draw(screen, seed) => self.draw(screen, seed, (0, 0)),
            Order::Part(screen, seed, from) => self.draw(screen, seed, from),
            Order::Flip(screen, seed) => self.flip(screen, seed),
            Order::Dirty(screen, seed) => {
                let picture = self.shown.get(screen).and_then(|shown| shown.picture.as_ref());
                let picture = picture.ok_or_else(|| Failure::new("dirty", "nothing is shown there"))?;
                picture.draw(|x, y| pixel(seed, x, y));
                picture.dirty(card).during("DIRTYFB")
            }
            Order::Cursor(screen, seed, hot) => {
                let connector = self.connector(screen)?;
                let image = Framebuffer::new(card, CURSOR_SIDE, CURSOR_SIDE).during("a cursor's picture")?;
                image.draw(|x, y| cursor_pixel(seed, x, y));
                kms::set_cursor(card, connector.crtc, &image, hot).during("CURSOR2")?;
                let before = self.shown[screen].cursor.replace(image);
                before.map_or(Ok(()), |before| before.close(self.file.as_fd()).during("RMFB"))
            }
            Order::Move(screen, to) => {
                kms::move_cursor(card, self.connector(screen)?.crtc, to).during("CURSOR2 that moves")
            }
            Order::Hide(screen) => {
                kms::hide_cursor(card, self.connector(screen)?.crtc).during("CURSOR2 without a picture")
            }
            Order::Await(screen, mode) => self.await_mode(screen, mode),
            Order::Quit => Ok(()),
        }
    }

    fn connector(&self, screen: usize) -> Result<Connector> {
        let mut connectors = kms::connectors(self.file.as_fd()).during("GETCONNECTOR")?;
        ensure(screen < connectors.len(), "order", format_args!("there is no screen {screen}"))?;
        Ok(connectors.swap_remove(screen))
    }

    /// Shows a picture from this pixel on. One that is larger than the screen goes on on all sides.
    fn draw(&mut self, screen: usize, seed: u32, from: (u32, u32)) -> Result<()> {
        let connector = self.connector(screen)?;
        let mode = preferred(&connector).ok_or_else(|| Failure::new("draw", "there is no preferred mode"))?;
        let size = (u32::from(mode.width) + 2 * from.0, u32::from(mode.height) + 2 * from.1);
        let picture = self.picture(size, seed)?;
        kms::set_mode(self.file.as_fd(), &connector, mode, &picture, from).during("SETCRTC")?;
        self.show(screen, picture)
    }

    fn flip(&mut self, screen: usize, seed: u32) -> Result<()> {
        const STEP: &str = "PAGE_FLIP";
        let connector = self.connector(screen)?;
        let mode = preferred(&connector).ok_or_else(|| Failure::new("flip", "there is no preferred mode"))?;
        let picture = self.picture((mode.width.into(), mode.height.into()), seed)?;
        kms::flip(self.file.as_fd(), connector.crtc, &picture).during(STEP)?;
        wait_readable(&self.file, STEP)?;
        let mut event = [0; 64];
        let len = rustix::io::read(&self.file, &mut event).during(STEP)?;
        let kind = event.first_chunk().filter(|_| len >= 4).map(|bytes| u32::from_ne_bytes(*bytes));
        ensure(kind == Some(FLIP_COMPLETE), STEP, format_args!("an event of kind {kind:?}"))?;
        self.show(screen, picture)
    }

    fn picture(&self, (width, height): (u32, u32), seed: u32) -> Result<Framebuffer> {
        let picture = Framebuffer::new(self.file.as_fd(), width, height).during("a picture")?;
        picture.draw(|x, y| pixel(seed, x, y));
        Ok(picture)
    }

    /// Keeps a picture that is shown, and closes the one before it.
    fn show(&mut self, screen: usize, picture: Framebuffer) -> Result<()> {
        let before = self.shown[screen].picture.replace(picture);
        before.map_or(Ok(()), |before| before.close(self.file.as_fd()).during("RMFB"))
    }

    fn await_mode(&self, screen: usize, mode: Option<(u16, u16)>) -> Result<()> {
        loop {
            self.events.wait_hotplug()?;
            let connector = self.connector(screen)?;
            describe(screen, &connector);
            if preferred(&connector).map(|mode| (mode.width, mode.height)) == mode {
                return Ok(());
            }
        }
    }
}

fn preferred(connector: &Connector) -> Option<kms::Mode> {
    connector.modes.iter().find(|mode| mode.is_preferred()).filter(|_| connector.connected).copied()
}

/// Tells what the kernel knows of a screen.
fn describe(screen: usize, connector: &Connector) {
    let Connector { id, number, connected, ref modes, .. } = *connector;
    let mode = preferred(connector).map_or("none".to_owned(), |mode| format!("{}x{}", mode.width, mode.height));
    let edid = fs::read(format!("/sys/class/drm/card0-Virtual-{number}/edid")).unwrap_or_default();
    let name = monitor_name(&edid).unwrap_or_default();
    let (modes, edid) = (modes.len(), edid.len());
    println!(
        "guest: screen {screen} connector={id} connected={connected} modes={modes} preferred={mode} edid={edid} \
         name={name:?}"
    );
}

/// The name in an EDID's first block.
fn monitor_name(edid: &[u8]) -> Option<String> {
    let descriptors = edid.get(54..126)?.chunks(18);
    let name = descriptors.filter_map(|descriptor| descriptor.strip_prefix(&EDID_NAME)).next()?;
    Some(String::from_utf8_lossy(name).trim_end().to_owned())
}

/// Tells what is on the kernel's console, pixel by pixel: the checksum of all (XRGB, X being 0), and how many are not black.
pub(crate) fn console() -> Result<()> {
    const STEP: &str = "the console's framebuffer";
    let attribute = |name: &str| fs::read_to_string(format!("{CONSOLE}/{name}")).during(STEP);
    let number = |text: &str| text.trim().parse::<usize>().during(STEP);
    let (size, stride, depth) = (attribute("virtual_size")?, attribute("stride")?, attribute("bits_per_pixel")?);
    ensure(depth.trim() == "32", STEP, format_args!("{depth} bits a pixel"))?;
    let (width, height) = size.split_once(',').ok_or_else(|| Failure::new(STEP, &size))?;
    let (width, height, stride) = (number(width)?, number(height)?, number(&stride)?);
    let bytes = fs::read("/dev/fb0").during(STEP)?;
    let rows = bytes.chunks(stride).take(height).map(|row| row.get(..width * 4).unwrap_or_default());
    let mut pixels: Vec<u8> = rows.flatten().copied().collect();
    pixels.iter_mut().skip(3).step_by(4).for_each(|byte| *byte = 0);
    let lit = pixels.chunks(4).filter(|pixel| **pixel != [0; 4]).count();
    println!("guest: console {width}x{height} lit={lit} hash={:016x}", Digest::of(&pixels).hash);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_nothing_else_is_taken_for_one() {
        assert_eq!(parse("draw 1 7"), Some(Order::Draw(1, 7)));
        assert_eq!(parse("part 0 9 3 4"), Some(Order::Part(0, 9, (3, 4))));
        assert_eq!(parse("cursor 0 9 3 4"), Some(Order::Cursor(0, 9, (3, 4))));
        assert_eq!(parse("move 0 -3 4"), Some(Order::Move(0, (-3, 4))));
        assert_eq!(parse("await 2 1280x800"), Some(Order::Await(2, Some((1280, 800)))));
        assert_eq!(parse("await 2 off"), Some(Order::Await(2, None)));
        for line in
            ["", "draw", "draw 1", "draw -1 7", "draw 1 -7", "part 0 9 -3 4", "await 0 1280", "await 0", "quit 1"]
        {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_name_is_found_among_an_edids_descriptors() {
        let mut edid = [0; 128];
        edid[54 + 18..][..18].copy_from_slice(b"\0\0\0\xfc\0Screen 1\n    ");
        assert_eq!(monitor_name(&edid).as_deref(), Some("Screen 1"));
        assert_eq!(monitor_name(&[0; 128]), None);
        assert_eq!(monitor_name(&[]), None);
    }
}
