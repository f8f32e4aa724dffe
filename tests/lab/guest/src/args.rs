//! The command line: one subcommand with options that each take a value.

pub(crate) const USAGE: &str = "\
usage: lab-guest SUBCOMMAND
  camera [--frames N]              watch the camera for N frames (60)
  cycles [--rounds R]              map, read a frame, unmap, R times (10)
  leave                            close the device under live mappings, and end without unmapping
  memory-type                      how the guest's kernel maps the window
  vandal [--frames N]              write all over a buffer and the gaps; N frames (12) before and after the gaps
  gap                              touch a page of the window that no blob takes
  refused --channel TYPE [--factor F]  blobs F times (2) as long as announced must not be mapped; keeps them until
                                   the host says a second line
  buffers --channel TYPE           map what comes, and do what the host says: hash I, fill I BYTE, quit
  turns --channel TYPE             map what comes, and do what the host says: take SEED, check SEED, drop, quit
  pipewire --socket PATH           listen there, and take each PipeWire client to the host's daemon, for ever
  screens                          draw what lines on standard input say
  console                          the console's pixels: how many are lit, and a checksum of all
TYPE is wayland, camera, pipewire, x11 or a number.";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Camera { frames: usize },
    Cycles { rounds: usize },
    Leave,
    MemoryType,
    Vandal { frames: usize },
    Gap,
    Refused { channel: u32, factor: usize },
    Buffers { channel: u32 },
    Turns { channel: u32 },
    PipeWire { socket: String },
    Screens,
    Console,
}

/// None where the command line is not understood.
pub(crate) fn parse(args: &[String]) -> Option<Job> {
    let (name, rest) = args.split_first()?;
    let mut options =
        Options { rest: rest.chunks(2).map(|pair| Some((pair.first()?, pair.get(1)?))).collect::<Option<_>>()? };
    let job = match name.as_str() {
        "camera" => Job::Camera { frames: options.number("--frames", 60)? },
        "cycles" => Job::Cycles { rounds: options.number("--rounds", 10)? },
        "leave" => Job::Leave,
        "memory-type" => Job::MemoryType,
        "vandal" => Job::Vandal { frames: options.number("--frames", 12)? },
        "gap" => Job::Gap,
        "refused" => {
            Job::Refused { channel: channel(options.take("--channel")?)?, factor: options.number("--factor", 2)? }
        }
        "buffers" => Job::Buffers { channel: channel(options.take("--channel")?)? },
        "turns" => Job::Turns { channel: channel(options.take("--channel")?)? },
        "pipewire" => Job::PipeWire { socket: options.take("--socket")?.to_owned() },
        "screens" => Job::Screens,
        "console" => Job::Console,
        _ => return None,
    };
    options.rest.is_empty().then_some(job)
}

/// The options that nobody has asked for yet.
struct Options<'a> {
    rest: Vec<(&'a String, &'a String)>,
}

impl<'a> Options<'a> {
    fn take(&mut self, name: &str) -> Option<&'a str> {
        let at = self.rest.iter().position(|(given, _)| *given == name)?;
        Some(self.rest.remove(at).1)
    }

    /// A positive number.
    fn number(&mut self, name: &str, default: usize) -> Option<usize> {
        let number = self.take(name).map_or(Some(default), |value| value.parse().ok())?;
        (number > 0).then_some(number)
    }
}

fn channel(name: &str) -> Option<u32> {
    match name {
        "wayland" => Some(1),
        "camera" => Some(crate::camera::CHANNEL),
        "pipewire" => Some(crate::pipewire::CHANNEL),
        "x11" => Some(0x11),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Job> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn subcommands_take_their_own_options_and_defaults() {
        assert_eq!(parsed("camera"), Some(Job::Camera { frames: 60 }));
        assert_eq!(parsed("camera --frames 7"), Some(Job::Camera { frames: 7 }));
        assert_eq!(parsed("refused --factor 3 --channel pipewire"), Some(Job::Refused { channel: 16, factor: 3 }));
        assert_eq!(parsed("buffers --channel 7"), Some(Job::Buffers { channel: 7 }));
        assert_eq!(parsed("pipewire --socket /run/s"), Some(Job::PipeWire { socket: "/run/s".into() }));
    }

    #[test]
    fn what_is_not_understood_is_not_run() {
        for line in [
            "",
            "film",
            "camera --frames",
            "camera --frames 0",
            "camera --frames x",
            "camera --rounds 1",
            "leave now",
            "screens 0",
            "leave --frames 1",
            "refused",
            "pipewire",
            "refused --channel tv",
            "camera --frames 1 --frames 2",
        ] {
            assert_eq!(parsed(line), None, "{line:?}");
        }
    }
}
