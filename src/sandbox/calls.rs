//! Seccomp: the system calls that a device makes once it is there, and the arguments that they may have.
//!
//! What is refused answers `EPERM`. Two filters, because one of seccompiler's has two answers: `clone3`, whose flags lie in
//! memory that no filter sees, does not exist (`ENOSYS`), so that the C library uses `clone`.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use super::{Needs, SandboxError};

/// System calls, each with the conditions of which one has to hold; none for a call that is not looked at.
type Calls = BTreeMap<i64, Vec<SeccompRule>>;

/// Whatever their arguments: none of them reaches beyond memory, descriptors and threads that the process has.
const HARMLESS: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    // Buffers of the device's own: images, the window's filler.
    libc::SYS_ftruncate,
    libc::SYS_memfd_create,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_eventfd2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // What a descriptor is: `/proc/self/fd`. It tells where links lead, and no more.
    libc::SYS_readlinkat,
    // Waiting, and the ring that is there.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_io_uring_enter,
    libc::SYS_ppoll,
    // Connections: of a listening socket, of a front-end, of a host service.
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Threads, their locks and their ends.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    // Signals to this process.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Time and chance.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
];

/// The same by the older names that the C library uses where they exist.
#[cfg(target_arch = "x86_64")]
const HARMLESS_OLD: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const HARMLESS_OLD: &[i64] = &[];

/// Removing and replacing a file, where landlock leaves one.
#[cfg(target_arch = "x86_64")]
const REMOVING: &[i64] = &[libc::SYS_unlink, libc::SYS_unlinkat];
#[cfg(not(target_arch = "x86_64"))]
const REMOVING: &[i64] = &[libc::SYS_unlinkat];
#[cfg(target_arch = "x86_64")]
const REPLACING: &[i64] = &[libc::SYS_rename, libc::SYS_renameat, libc::SYS_renameat2];
#[cfg(not(target_arch = "x86_64"))]
const REPLACING: &[i64] = &[libc::SYS_renameat, libc::SYS_renameat2];

/// Opening, each with the number of the argument that holds its flags.
#[cfg(target_arch = "x86_64")]
const OPENING: &[(i64, u8)] = &[(libc::SYS_openat, 2), (libc::SYS_open, 1)];
#[cfg(not(target_arch = "x86_64"))]
const OPENING: &[(i64, u8)] = &[(libc::SYS_openat, 2)];

/// The bits of a socket's type that are no flags.
const SOCKET_TYPE: i32 = 0xf;

/// What may be asked of a descriptor's flags, its pipe and its seals. Not who gets signals for it.
const FCNTL: [i32; 9] = [
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETPIPE_SZ,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// `FIONREAD`, `FIONBIO` and `TCGETS` (whether it is a terminal) of `asm-generic/ioctls.h`; `DMA_BUF_IOCTL_SYNC` and
/// `DMA_BUF_IOCTL_EXPORT_SYNC_FILE` of `linux/dma-buf.h`.
const IOCTL: [u64; 5] = [0x541b, 0x5421, 0x5401, 0x4008_6200, 0xc008_6202];

/// Namespaces of its own are not for a thread.
const CLONE_NEW: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Restricts all threads of the process, and says how many calls are left.
///
/// # Errors
/// [`SandboxError::SystemCalls`].
pub(super) fn restrict(needs: &Needs) -> Result<usize, SandboxError> {
    let calls = allowed(needs).map_err(refused)?;
    let count = calls.len() - 1;
    let missing = Calls::from([(libc::SYS_clone3, Vec::new())]);
    let errno = |errno: i32| SeccompAction::Errno(errno as u32);
    let missing = program(missing, SeccompAction::Allow, errno(libc::ENOSYS))?;
    let program = program(calls, errno(libc::EPERM), SeccompAction::Allow)?;
    // This order: the second refuses more filters.
    apply_filter_all_threads(&missing).map_err(refused)?;
    apply_filter_all_threads(&program).map_err(refused)?;
    Ok(count)
}

fn refused(reason: impl ToString) -> SandboxError {
    SandboxError::SystemCalls { reason: reason.to_string() }
}

fn program(calls: Calls, otherwise: SeccompAction, then: SeccompAction) -> Result<BpfProgram, SandboxError> {
    let processor = TargetArch::try_from(std::env::consts::ARCH).map_err(refused)?;
    let filter = SeccompFilter::new(calls, otherwise, then, processor).map_err(refused)?;
    filter.try_into().map_err(refused)
}

/// Why a rule makes no sense; none of those below does not.
type Wrong = seccompiler::BackendError;

/// The calls of a device that needs this.
fn allowed(needs: &Needs) -> Result<Calls, Wrong> {
    let mut calls: Calls = HARMLESS.iter().chain(HARMLESS_OLD).map(|&call| (call, Vec::new())).collect();
    // It has an answer already.
    calls.insert(libc::SYS_clone3, Vec::new());
    let thread = masked(0, CLONE_NEW | libc::CLONE_THREAD, libc::CLONE_THREAD)?;
    let unix = || is(0, libc::AF_UNIX as u64);
    let this = u64::from(std::process::id());
    let not_executable = || masked(2, libc::PROT_EXEC, 0);
    // Meant for descriptors; that the path is empty is nothing that a filter could see.
    let empty_path = |argument| masked(argument, libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH);
    let looked_at = [
        (libc::SYS_mmap, vec![rule([not_executable()?])?]),
        (libc::SYS_mprotect, vec![rule([not_executable()?])?]),
        (libc::SYS_clone, vec![rule([thread])?]),
        (libc::SYS_prctl, vec![rule([is(0, libc::PR_SET_NAME as u64)?])?]),
        (libc::SYS_tgkill, vec![rule([is(0, this)?])?]),
        // Its own limits, to read.
        (libc::SYS_prlimit64, vec![rule([is(0, 0)?, is_null(2)?])?]),
        (libc::SYS_newfstatat, vec![rule([empty_path(3)?])?]),
        (libc::SYS_statx, vec![rule([empty_path(2)?])?]),
        (libc::SYS_setsockopt, vec![rule([is(1, libc::SOL_SOCKET as u64)?])?]),
        // Of streams: datagrams go to any socket that has a path, without being connected.
        (libc::SYS_socketpair, vec![rule([unix()?, masked(1, SOCKET_TYPE, libc::SOCK_STREAM)?])?]),
        (libc::SYS_fcntl, one_of(1, FCNTL.map(|command| command as u64))?),
        (libc::SYS_ioctl, one_of(1, IOCTL)?),
    ];
    calls.extend(looked_at);
    let mut opening = Vec::new();
    if needs.pictures.is_some() {
        opening.push((libc::O_ACCMODE | libc::O_CREAT | libc::O_EXCL, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL));
        calls.extend(REPLACING.iter().map(|&call| (call, Vec::new())));
    }
    if needs.pictures.is_some() || needs.socket.is_some() {
        calls.extend(REMOVING.iter().map(|&call| (call, Vec::new())));
    }
    if !needs.host_sockets.is_empty() {
        calls.insert(libc::SYS_connect, Vec::new());
        calls.insert(libc::SYS_pipe2, Vec::new());
        calls.insert(libc::SYS_socket, vec![rule([unix()?, masked(1, SOCKET_TYPE, libc::SOCK_STREAM)?])?]);
        let written = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
        // What the kernel tells about descriptors, and a pipe that a host service has sent.
        opening.extend([(written, libc::O_RDONLY), (written | libc::O_NONBLOCK, libc::O_WRONLY | libc::O_NONBLOCK)]);
    }
    if !opening.is_empty() {
        for &(call, flags) in OPENING {
            let rules = opening.iter().map(|&(mask, value)| rule([masked(flags, mask, value)?]));
            calls.insert(call, rules.collect::<Result<_, _>>()?);
        }
    }
    Ok(calls)
}

/// All of these hold.
fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, Wrong> {
    SeccompRule::new(conditions.into())
}

/// The argument, of which the kernel looks at 32 bits, has this value.
fn is(argument: u8, value: u64) -> Result<SeccompCondition, Wrong> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn is_null(argument: u8) -> Result<SeccompCondition, Wrong> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

/// Of these bits of the argument, all flags that there are lie in its lower 32, exactly those are set.
fn masked(argument: u8, mask: i32, value: i32) -> Result<SeccompCondition, Wrong> {
    let [mask, value] = [mask, value].map(|bits| u64::from(bits.cast_unsigned()));
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

fn one_of<const N: usize>(argument: u8, values: [u64; N]) -> Result<Vec<SeccompRule>, Wrong> {
    values.into_iter().map(|value| rule([is(argument, value)?])).collect()
}
