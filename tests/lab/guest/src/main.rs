//! What the lab's guest runs: a program that talks to its virtio-gpu with the kernel's own DRM ioctls and nothing
//! else, and says on the console what it saw.

mod args;
mod buffers;
mod camera;
mod channel;
mod drm;
mod failure;
mod gpu;
mod hotplug;
mod ioctl;
mod kms;
mod pattern;
mod pipewire;
mod screens;
mod serve;
mod turns;
mod vandal;
mod watch;
mod window;
mod words;

use std::process::ExitCode;

use args::Job;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(job) = args::parse(&args) else {
        eprintln!("{}", args::USAGE);
        return ExitCode::from(2);
    };
    let outcome = match job {
        Job::Camera { frames } => watch::camera(frames),
        Job::Cycles { rounds } => watch::cycles(rounds),
        Job::Leave => watch::leave(),
        Job::MemoryType => watch::memory_type(),
        Job::Vandal { frames } => vandal::vandal(frames),
        Job::Gap => vandal::gap(),
        Job::Refused { channel, factor } => serve::refused(channel, factor),
        Job::Buffers { channel } => serve::buffers(channel),
        Job::Turns { channel } => turns::turns(channel),
        Job::PipeWire { socket } => pipewire::bridge(&socket),
        Job::Screens => screens::screens(),
        Job::Console => screens::console(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("guest: FAILED in {failure}");
            ExitCode::FAILURE
        }
    }
}
