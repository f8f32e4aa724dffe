//! What a process in the sandbox cannot do any more, and that the device does its work in there all the same. Each test
//! has a process of its own, because nobody leaves the sandbox.
#![cfg(all(feature = "png", feature = "testing", feature = "vhost-user"))]

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::sandbox::{Entered, Needs, Sandbox};
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostService, Request};
use virtio_gpu_uring::{Builder, Format, HostWindow, Monitor, PngDisplay};

#[path = "sandbox/alone.rs"]
mod alone;
#[path = "sandbox/process.rs"]
mod process;
#[path = "sandbox/ring.rs"]
mod ring;

use alone::{alone, is_alone};

const PAGE: usize = 4096;

/// A folder of one test's own.
struct Folder(PathBuf);

impl Folder {
    /// The one that the process outside has made, with a file in it.
    fn new(name: &str) -> Self {
        let owner = if is_alone() { std::os::unix::process::parent_id() } else { std::process::id() };
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sandbox-{owner}-{name}"));
        if !is_alone() {
            fs::create_dir(&path).expect("a new folder");
            fs::write(path.join("there"), "before").expect("a file");
        }
        Self(path)
    }

    /// Outside, that nothing came of whatever was tried inside.
    #[track_caller]
    fn assert_untouched(&self) {
        let names = fs::read_dir(&self.0).expect("the folder").flatten().map(|entry| entry.file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["there"]);
        assert_eq!(fs::read(self.0.join("there")).expect("the file"), b"before");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !is_alone() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A guest whose device is in the sandbox with all threads of the process.
fn start(needs: Needs, builder: impl FnOnce() -> Builder) -> (Guest, Entered) {
    let sandbox = Sandbox::close_files(needs).expect("files closed");
    let guest = Guest::start(builder());
    let entered = sandbox.enter().expect("in the sandbox");
    println!("{entered}");
    (guest, entered)
}

/// Whether somebody said that it must not be: seccomp by `EPERM`, landlock and the ring by `EACCES`.
#[track_caller]
fn refused<T>(what: &str, done: io::Result<T>) {
    let error = done.err().unwrap_or_else(|| panic!("{what} was possible"));
    let errno = error.raw_os_error();
    assert!([Some(libc::EPERM), Some(libc::EACCES)].contains(&errno), "{what}: {error}");
}

/// Whether the system call was refused.
#[track_caller]
fn forbidden<T>(what: &str, done: io::Result<T>) {
    let errno = done.err().unwrap_or_else(|| panic!("{what} was possible")).raw_os_error();
    assert_eq!(errno, Some(libc::EPERM), "{what}");
}

/// What nobody in there can do, whatever the device needs.
fn nothing_of_the_host_is_left(folder: &Path) {
    for path in ["/etc/passwd", "/proc/self/status", "/dev/null", "/", "/proc/self/fd/0/../../environ"] {
        forbidden(path, File::open(path));
        forbidden(path, File::options().write(true).open(path));
    }
    forbidden("a folder", fs::read_dir(folder));
    forbidden("a new file", File::create(folder.join("new")));
    forbidden("a new file of its own", File::create_new(folder.join("new")));
    forbidden("a new folder", fs::create_dir(folder.join("new")));
    forbidden("a link", fs::hard_link(folder.join("there"), folder.join("new")));
    forbidden("a symbolic link", std::os::unix::fs::symlink("/", folder.join("new")));
    refused("a removal", fs::remove_file(folder.join("there")));
    refused("another name", fs::rename(folder.join("there"), folder.join("new")));
    forbidden("other permissions", fs::set_permissions(folder.join("there"), fs::Permissions::from_mode(0o777)));
    forbidden("TCP", TcpStream::connect("127.0.0.1:1"));
    forbidden("a TCP service", TcpListener::bind("127.0.0.1:0"));
    forbidden("UDP", UdpSocket::bind("127.0.0.1:0"));
    forbidden("a datagram to a socket with a path", UnixDatagram::unbound());
    forbidden("the same from a pair", UnixDatagram::pair());
    let netlink = rustix::net::AddressFamily::NETLINK;
    forbidden("netlink", rustix::net::socket(netlink, rustix::net::SocketType::RAW, None).map_err(io::Error::from));
    forbidden("a program in this place", Err::<(), _>(Command::new("/bin/true").exec()));
    forbidden("another process", Command::new("/bin/true").spawn());
    let parent = rustix::process::getpid();
    forbidden("a signal to a process", rustix::process::test_kill_process(parent).map_err(io::Error::from));
    let executable = vm_memory::MmapRegion::<()>::build(None, PAGE, libc::PROT_READ | libc::PROT_EXEC, PRIVATE);
    assert!(executable.is_err(), "memory that is executed");
    vm_memory::MmapRegion::<()>::build(None, PAGE, libc::PROT_READ | libc::PROT_WRITE, PRIVATE).expect("memory");
    forbidden("another ring", tokio_uring::Runtime::new(&tokio_uring::builder()));
}

const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

#[test]
fn nothing_of_the_host_is_ever_within_reach() {
    let folder = Folder::new("within-reach");
    let outside = alone("nothing_of_the_host_is_ever_within_reach", || {
        let (mut guest, entered) = start(Needs::default(), Builder::new);
        assert!(entered.is_whole(), "{entered}");
        nothing_of_the_host_is_left(&folder.0);
        forbidden("a removal", fs::remove_file(folder.0.join("there")));
        forbidden("another name", fs::rename(folder.0.join("there"), folder.0.join("new")));
        forbidden("a Unix socket", UnixStream::connect("/nonexistent"));
        guest.command(&Request::display_info()).ok();
        guest.reset();
        guest.activate();
        guest.command(&Request::display_info()).ok();
        guest.assert_all_answered();
    });
    if outside {
        folder.assert_untouched();
    }
}

#[test]
fn files_are_never_open_until_system_calls_are_refused() {
    let folder = Folder::new("landlock");
    let outside = alone("files_are_never_open_until_system_calls_are_refused", || {
        let _sandbox = Sandbox::close_files(Needs::default()).expect("files closed");
        let closed = |what: &str, done: io::Result<()>| {
            assert_eq!(done.expect_err(what).raw_os_error(), Some(libc::EACCES), "{what}");
        };
        closed("reading", File::open("/etc/passwd").map(drop));
        closed("a folder", fs::read_dir(&folder.0).map(drop));
        closed("a new file", File::create_new(folder.0.join("new")).map(drop));
        closed("another name", fs::rename(folder.0.join("there"), folder.0.join("new")));
        closed("a removal", fs::remove_file(folder.0.join("there")));
        closed("a program", Err(Command::new("/bin/true").exec()));
        let started = std::thread::spawn(|| File::open("/etc/passwd").map(drop)).join().expect("no panic");
        closed("a thread that was started since", started);
    });
    if outside {
        folder.assert_untouched();
    }
}

#[test]
fn a_buffer_of_a_host_service_is_never_kept_from_the_guest() {
    alone("a_buffer_of_a_host_service_is_never_kept_from_the_guest", || {
        let service = HostService::listen();
        let window = HostWindow::new(1 << 20).expect("a window");
        let needs = Needs::default().host_socket(service.path()).socket(service.path());
        let (mut guest, _) =
            start(needs, || Builder::new().window(window.clone()).host_socket(ChannelType::PIPEWIRE, service.path()));
        let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
        let peer = service.accept();
        for round in 0..3_u8 {
            let file = memfd_create("sandbox", MemfdFlags::CLOEXEC).expect("a memfd");
            ftruncate(&file, PAGE as u64).expect("a size");
            rustix::io::pwrite(&file, &[round + 1], 100).expect("written");
            peer.send(b"look", &[file.as_fd()]);
            let [(id, ..)] = channel.receive(&mut guest).identifiers[..] else { panic!("no buffer came") };
            guest.command(&Request::host_blob(1, 20, u64::from(id), PAGE as u64)).ok();
            guest.map(20, 0x2000);
            let mut seen = [0];
            window.read(0x2000 + 100, &mut seen).expect("in the window");
            assert_eq!(seen, [round + 1]);
            window.write(0x2000 + 100, &[7]).expect("in the window");
            rustix::io::pread(&file, &mut seen, 100).expect("read");
            assert_eq!(seen, [7]);
            guest.command(&Request::unmap(20)).ok();
            guest.command(&Request::unref(20)).ok();
        }
        guest.reset();
        assert_eq!(peer.receive(1).0, b"", "the channel ends with its guest");
        guest.activate();
        GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
        drop(service.accept());
        guest.assert_all_answered();
        for path in ["/etc/passwd", "/proc/self/environ", "/proc/self/maps"] {
            refused(path, File::open(path));
            refused(path, File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path));
        }
        forbidden("TCP", TcpStream::connect("127.0.0.1:1"));
        forbidden("a datagram to another service", UnixDatagram::unbound());
        let path = service.path().to_owned();
        drop(service);
        assert!(!path.exists(), "a socket that is to be removed stays");
    });
}

#[test]
fn an_eventfd_or_a_pipe_of_a_host_service_is_never_out_of_the_guest_s_reach() {
    alone("an_eventfd_or_a_pipe_of_a_host_service_is_never_out_of_the_guest_s_reach", || {
        let service = HostService::listen();
        let (mut guest, _) = start(Needs::default().host_socket(service.path()), || {
            Builder::new().host_socket(ChannelType::PIPEWIRE, service.path())
        });
        let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
        let peer = service.accept();
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd");
        let (reader, writer) = io::pipe().expect("a pipe");
        peer.send(b"both", &[event.as_fd(), writer.as_fd()]);
        let [(event_id, ..), (pipe_id, ..)] = channel.receive(&mut guest).identifiers[..] else { panic!("not both") };
        channel.submit(&mut guest, &Request::stream_write(event_id, &5_u64.to_le_bytes(), false)).ok();
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).expect("the counter");
        assert_eq!(u64::from_ne_bytes(count), 5);
        channel.submit(&mut guest, &Request::stream_write(pipe_id, b"through", true)).ok();
        drop(writer);
        let mut text = String::new();
        (&reader).read_to_string(&mut text).expect("to the end");
        assert_eq!(text, "through");
        // What landlock leaves open is known by its inode, which stays the same where somebody has it open.
        let mut links = (0..64).filter_map(|number| fs::read_link(format!("/proc/self/fd/{number}")).ok());
        assert!(
            links.any(|link| link.ends_with("fdinfo")),
            "what the kernel tells about descriptors may close at any time"
        );
    });
}

#[test]
fn pictures_are_never_kept_from_their_folder_nor_written_anywhere_else() {
    let (folder, elsewhere) = (Folder::new("pictures"), Folder::new("elsewhere"));
    let picture = folder.0.join("0.png");
    let outside = alone("pictures_are_never_kept_from_their_folder_nor_written_anywhere_else", || {
        let (mut guest, entered) = start(Needs::default().pictures(&folder.0), || {
            let display = PngDisplay::new(&picture).expect("a display");
            Builder::new().scanouts(1).display(0, Monitor::new(64, 64), display)
        });
        assert!(entered.is_whole(), "{entered}");
        let (address, len) = guest.page_range(64 * 64 * 4);
        guest.command(&Request::create_2d(7, Format::B8G8R8X8.wire(), 64, 64)).ok();
        guest.command(&Request::attach_backing(7, &[(address, len)])).ok();
        guest.command(&Request::set_scanout(0, 7, [0, 0, 64, 64])).ok();
        guest.command(&Request::update_cursor(0, 7, (3, 4), (0, 0)));
        for _ in 0..3 {
            guest.command(&Request::transfer_2d(7, [0, 0, 64, 64], 0)).ok();
            guest.command(&Request::flush(7, [0, 0, 64, 64])).ok();
            fs::remove_file(&picture).expect("a picture of each flush");
        }
        guest.command(&Request::flush(7, [0, 0, 64, 64])).ok();
        nothing_of_the_host_is_left(&elsewhere.0);
        refused("to read a picture", File::open(&picture));
        refused("to write into a picture", File::options().write(true).open(&picture));
        refused("a folder of pictures", fs::create_dir(folder.0.join("more")));
        refused("a picture from elsewhere", fs::rename(elsewhere.0.join("there"), folder.0.join("there")));
    });
    if outside {
        elsewhere.assert_untouched();
        let size = fs::read(&picture).expect("the picture")[16..24].to_vec();
        assert_eq!(size, [0, 0, 0, 64, 0, 0, 0, 64]);
    }
}

#[test]
fn what_is_needed_and_not_there_is_never_passed_over() {
    let error = Sandbox::close_files(Needs::default().pictures("/nonexistent/pictures")).expect_err("no such folder");
    assert_eq!(error.to_string(), "/nonexistent/pictures: No such file or directory (os error 2)");
}
