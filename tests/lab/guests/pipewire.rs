//! The seed's own story: a PipeWire client in a Linux guest sees the host's camera. The bridge in the guest talks to the host's
//! daemon over a cross-domain channel, and the camera's dma-bufs arrive as blobs. Then everybody is killed in turn, and nobody
//! else takes harm.

mod daemon;
mod frames;

use std::time::{Duration, Instant};

use vmm_sys_util::tempdir::TempDir;

use self::daemon::{CLIENT, Host, HostClient, Limit, Process};
use self::frames::{Frame, distinct, equal};
use super::vm::{Vm, figure, given, open_files};
use crate::exporters::say;

const TRACE: &str = "trace";

/// All of it takes less.
const LIMIT: Duration = Duration::from_secs(240);
/// Frames that are compared.
const FRAMES: usize = 10;
/// Frames that show no more than that there are some.
const FEW: usize = 3;
/// What a shell says of a program that was killed, and of one that has failed.
const KILLED: u64 = 137;
const FAILED: u64 = 1;
/// The buffers that the clients ask for, and get.
const BUFFERS: usize = 16;

/// How the daemon's own memory, which its clients share, is called in /proc.
const MEMORY: &str = "/memfd:pipewire-memfd";

/// The guest does what is typed on its console, a line each.
const COMMANDS: &str = "
stty -F /dev/ttyS0 -echo
exec 3</dev/ttyS0
echo 'guest: listens'
while read -r order <&3; do
    eval \"$order\"
    echo \"guest: did $((n += 1)) status=$?\"
done
";

/// What it learns first: `serve` starts the bridge, and `take` a client, in a root of its own;
/// `took` waits for its end. Its complaints, which come in pieces, are kept apart until then: other lines stay whole.
const LESSONS: [&str; 5] = [
    "export PIPEWIRE_RUNTIME_DIR=/run; socket=/pipewire/run/pipewire-0; mount -t proc proc /pipewire/proc",
    "appear() { for i in $(seq 300); do [ -S $socket ] && return; usleep 100000; done; return 1; }",
    "serve() { rm -f $socket; lab-guest pipewire --socket $socket 3<&- & bridge=$!; appear; }",
    "take() { chroot /pipewire pipewire-client \"$@\" 3<&- 2>/tmp/words & client=$!; }",
    "took() { wait $client; set -- $?; cat /tmp/words; return $1; }",
];

/// The guest, and the host around it.
struct Story {
    vm: Vm,
    oracle: HostClient,
    daemon: Process,
    host: Host,
    /// What the VMM has open while the guest has no channel, and how much the daemon has open then.
    baseline: (Vec<String>, usize),
    limit: Limit,
    /// What the device says of itself.
    trace: TempDir,
    /// How many orders the guest has had.
    orders: u64,
}

impl Story {
    fn start() -> Self {
        let limit = Limit::new(LIMIT);
        let host = Host::new(limit);
        let daemon = host.start_daemon();
        let oracle = host.start_client("oracle");
        let socket = format!("pipewire={}", host.socket().display());
        let trace = TempDir::new().expect("a temporary folder");
        let file = trace.as_path().join(TRACE);
        let options = ["--socket", &socket, "--trace", file.to_str().expect("a name in UTF-8")];
        let mut vm = Vm::boot(&given("LAB_PIPEWIRE_INITRD"), &options, COMMANDS);
        vm.says("guest: listens");
        oracle.goes_on();
        let baseline = (sorted(open_files(vm.id())), open_files(daemon.id()).len());
        let mut story = Self { vm, oracle, daemon, host, baseline, limit, trace, orders: 0 };
        LESSONS.iter().for_each(|lesson| story.has(lesson));
        story.has("serve");
        story
    }

    /// Has the guest do something, which must not fail.
    fn has(&mut self, order: &str) {
        assert_eq!(self.status_of(order), 0, "{order}: {:#?}", self.vm.heard);
    }

    fn status_of(&mut self, order: &str) -> u64 {
        self.orders += 1;
        self.vm.tell(order);
        figure(&self.vm.said(&format!("guest: did {} ", self.orders)), "status")
    }

    /// Starts a client in the guest, and links it.
    fn take(&mut self, name: &str, frames: &str) {
        let [_, format, size, rate, buffers] = CLIENT;
        self.has(&format!("echo 'guest: take {name}'"));
        self.has(&format!(
            "take --name {name} --frames {frames} --format {format} --size {size} --rate {rate} --buffers {buffers}"
        ));
        self.host.link(name);
    }

    /// Lets a client take frames until it ends by itself.
    fn completes(&mut self, name: &str, frames: usize) -> Vec<Frame> {
        self.take(name, &frames.to_string());
        self.has("took");
        let seen = self.frames(name);
        assert_eq!(seen.len(), frames, "{:#?}", self.vm.heard);
        seen
    }

    /// Lets a client take frames for as long as it can.
    fn streams(&mut self, name: &str) {
        self.take(name, CLIENT[0]);
        let limit = self.limit;
        limit.wait(&format!("frames of {name}"), || {
            self.vm.listen();
            let frames = self.frames(name).len();
            if frames >= FEW { Ok(()) } else { Err(format!("{frames} so far: {:#?}", self.vm.heard)) }
        });
        assert_eq!(self.vm.dma_bufs_in_window(), BUFFERS, "dma-bufs in the window while {name} streams");
        assert!(self.vm.maps().contains(MEMORY), "no memory of the daemon's while {name} streams");
    }

    /// What a client has said of its frames.
    fn frames(&self, name: &str) -> Vec<Frame> {
        let take = format!("guest: take {name}");
        let said = self.vm.heard.console.iter().skip_while(|line| **line != take).skip(1);
        let said = said.take_while(|line| !line.starts_with("guest: take "));
        said.filter_map(|line| Frame::read(line)).collect()
    }

    /// How many buffers the device took for dma-bufs that must not be written, of all that it has mapped.
    fn dma_bufs_placed(&self) -> usize {
        let trace = std::fs::read_to_string(self.trace.as_path().join(TRACE)).expect("a trace");
        trace.lines().filter(|line| line.contains(" placing ") && line.contains("kind=DmaBuf access=ReadOnly")).count()
    }

    /// The client has left nothing behind, and the others go on.
    fn is_rid_of(&self, name: &str) {
        self.vm_is_rid_of(name);
        self.daemon_is_rid_of(name);
    }

    fn vm_is_rid_of(&self, name: &str) {
        self.vm.expect_no_dma_buf();
        let before = &self.baseline.0;
        self.limit.wait(&format!("the end of what {name} had open"), || {
            let now = sorted(open_files(self.vm.id()));
            if now == *before { Ok(()) } else { Err(format!("{now:#?} instead of {before:#?}")) }
        });
        self.limit.wait(&format!("the end of what {name} had mapped"), || {
            match self.vm.maps().matches(MEMORY).count() {
                0 => Ok(()),
                count => Err(format!("{count} mappings of {MEMORY}")),
            }
        });
    }

    fn daemon_is_rid_of(&self, name: &str) {
        self.host.forgets(name);
        self.oracle.goes_on();
        let before = self.baseline.1;
        self.limit.wait(&format!("the end of what the daemon had for {name}"), || {
            let now = open_files(self.daemon.id()).len();
            if now == before { Ok(()) } else { Err(format!("{now} descriptors instead of {before}")) }
        });
    }
}

/// Sockets, eventfds and the like are told apart by nothing but numbers, which are others each time.
fn sorted(files: Vec<String>) -> Vec<String> {
    let kind = |file: String| file.split_once(":[").map(|(kind, _)| kind.to_owned()).unwrap_or(file);
    let mut kinds: Vec<String> = files.into_iter().map(kind).collect();
    kinds.sort();
    kinds
}

/// Ten frames, held against what a client on the host has seen of the same.
fn frames_are_the_hosts(story: &mut Story) -> String {
    let guest = story.completes("first", FRAMES);
    let host = story.oracle.until(guest.last().expect("a frame").sequence);
    let (equal, distinct) = (equal(&guest, &host), distinct(&guest));
    assert!(guest.iter().all(Frame::is_full), "bytes that are zero: {guest:#?}");
    assert!(equal >= 8 && distinct >= 9, "equal={equal} distinct={distinct}: {guest:#?}; the host's: {host:#?}");
    let buffers = story.vm.heard.console.iter().filter(|line| line.starts_with("buffer ")).count();
    assert_eq!(buffers, BUFFERS, "{:#?}", story.vm.heard);
    assert_eq!(story.dma_bufs_placed(), BUFFERS, "dma-bufs as the device itself takes them");
    story.is_rid_of("first");
    format!("frames={FRAMES} equal={equal} distinct={distinct} buffers={buffers}")
}

fn killed_client_is_nobodys_end(story: &mut Story) {
    story.streams("slain");
    assert_eq!(story.status_of("kill -9 $client; took"), KILLED);
    story.is_rid_of("slain");
    story.completes("second", FEW);
}

fn killed_bridge_is_its_clients_end_alone(story: &mut Story) {
    story.streams("orphan");
    assert_eq!(story.status_of("kill -9 $bridge; wait $bridge"), KILLED);
    assert_eq!(story.status_of("took"), FAILED, "the client has not seen the end of its socket");
    story.is_rid_of("orphan");
    story.has("serve");
    story.completes("third", FEW);
}

/// The daemon's end is that of all its clients, but neither the bridge's nor the VMM's.
fn killed_daemon_is_its_clients_end_alone(story: &mut Story) {
    story.streams("forsaken");
    story.daemon.kill();
    assert_eq!(story.status_of("took"), FAILED, "the client has not seen the end of its socket");
    story.vm_is_rid_of("forsaken");
    story.daemon = story.host.start_daemon();
    story.oracle = story.host.start_client("oracle-again");
    story.oracle.goes_on();
    story.completes("fourth", FEW);
}

fn killed_vmm_is_its_guests_end_alone(story: &mut Story) {
    story.has("dmesg -r | grep '^<[0-4]>' | sed 's/^<[0-9]*>/kernel: /'");
    story.streams("last");
    story.vm.heard.expect_no_complaints(&[]);
    story.vm.kill();
    story.daemon_is_rid_of("last");
}

#[test]
fn a_camera_behind_a_daemon_is_never_seen_otherwise_and_no_end_is_anothers() {
    let begin = Instant::now();
    let mut story = Story::start();
    let booted = begin.elapsed().as_secs();
    let figures = frames_are_the_hosts(&mut story);
    let compared = begin.elapsed().as_secs();
    say(&format!("pipewire {figures} booted_s={booted} compared_s={compared}"));
    killed_client_is_nobodys_end(&mut story);
    killed_bridge_is_its_clients_end_alone(&mut story);
    killed_daemon_is_its_clients_end_alone(&mut story);
    killed_vmm_is_its_guests_end_alone(&mut story);
    say(&format!("pipewire killed=client,bridge,daemon,vmm leaked=0 seconds={}", begin.elapsed().as_secs()));
}
