//! Processes: what a program asks its C library for fails for the program's sake first, so these ask the kernel.
#![expect(unsafe_code, reason = "a system call by its number has no safe form")]

use std::io;

use virtio_gpu_uring::Builder;

use super::{Needs, alone, forbidden, start};

/// A system call with arguments that it would take, or not.
fn call(number: i64, arguments: [i64; 2]) -> io::Result<i64> {
    let [first, second] = arguments;
    // SAFETY: a process that is forked here ends at once, and `clone3` is given no memory to read.
    let answer = unsafe { libc::syscall(number, first, second, 0, 0, 0) };
    if answer == 0 {
        // SAFETY: this is the child, which has done nothing.
        unsafe { libc::_exit(0) }
    }
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[test]
fn no_process_is_ever_forked_and_threads_start_all_the_same() {
    alone("process::no_process_is_ever_forked_and_threads_start_all_the_same", || {
        let (_guest, _) = start(Needs::default(), Builder::new);
        forbidden("a process", call(libc::SYS_clone, [libc::SIGCHLD.into(), 0]));
        let spaces = i64::from(libc::CLONE_NEWUSER | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM);
        forbidden("a thread elsewhere", call(libc::SYS_clone, [spaces, 0]));
        let error = call(libc::SYS_clone3, [0, 0]).expect_err("a call whose flags nobody sees");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
        assert_eq!(std::thread::spawn(|| 5).join().expect("no panic"), 5);
    });
}
