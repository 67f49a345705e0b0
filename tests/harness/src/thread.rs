//! Holds one thread of another process still, as a scheduler might for too long.
#![allow(unsafe_code)] // ptrace has no safe wrapper here.

use std::time::Duration;

use crate::process::Process;
use crate::wait;

/// A thread that does not run. It runs again when this is dropped.
pub struct Held {
    thread: libc::pid_t,
    is_gone: bool,
}

impl Held {
    /// Stops the thread of that name. `None` where the kernel does not let us.
    pub fn hold(process: &Process, name: &str) -> Option<Self> {
        let thread = find(process.id(), name).expect("a thread of that name");
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: neither call reads or writes memory of this process.
        let held = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, nothing, nothing) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, thread, nothing, nothing) == 0
        };
        if !held {
            return None;
        }
        let held = Self { thread, is_gone: false };
        wait::until("the thread stands still", Duration::from_secs(10), || held.look());
        Some(held)
    }

    /// Waits for the end of the thread, with its process; that can't be seen to end before.
    pub fn wait_for_end(mut self, at_most: Duration) {
        wait::until_true("the held thread ends", at_most, || self.look().is_some_and(has_ended));
        self.is_gone = true;
    }

    /// What became of the thread since the last look.
    fn look(&self) -> Option<libc::c_int> {
        let mut status = 0;
        // SAFETY: waitpid writes to `status` alone.
        let found =
            unsafe { libc::waitpid(self.thread, &mut status, libc::__WALL | libc::WNOHANG) };
        (found == self.thread).then_some(status)
    }
}

fn has_ended(status: libc::c_int) -> bool {
    libc::WIFEXITED(status) || libc::WIFSIGNALED(status)
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.is_gone {
            return;
        }
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: the call reads and writes no memory of this process. It fails if the thread was
        // killed meanwhile, and then there is nothing to let go.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.thread, nothing, nothing) };
    }
}

fn find(process: u32, name: &str) -> Option<libc::pid_t> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    tasks.flatten().find_map(|task| {
        let known = std::fs::read_to_string(task.path().join("comm")).ok()?;
        (known.trim_end() == name).then(|| task.file_name().to_str()?.parse().ok())?
    })
}
