//! Kernels that refuse something.
#![allow(unsafe_code)] // seccomp has no safe wrapper here.

use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the command's process do everything but set up io_uring, as container runtimes do.
pub fn without_io_uring(command: &mut Command) {
    // SAFETY: prctl and nothing else, which is async-signal-safe.
    unsafe { command.pre_exec(refuse_io_uring) };
}

fn refuse_io_uring() -> std::io::Result<()> {
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const CALL: u32 = libc::SYS_io_uring_setup as u32;
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    // The number of the call stands first in what the filter is shown.
    let mut steps = [
        step(LOAD, 0, 0, 0),
        step(IS, CALL, 0, 1),
        step(RETURN, REFUSE, 0, 0),
        step(RETURN, ALLOW, 0, 0),
    ];
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies the filter, which outlives the call.
    let is_set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    };
    if is_set { Ok(()) } else { Err(Error::last_os_error()) }
}
