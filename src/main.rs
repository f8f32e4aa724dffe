//! The command line program: the device's main job, played and checked on this machine.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
