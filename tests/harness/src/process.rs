//! Processes that end with the test, whatever happens to it.
#![allow(unsafe_code)] // One block: what a child does between fork and exec.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::wait;

/// A running program. Dropping it kills it.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
}

/// What a program has printed so far.
#[derive(Default)]
struct Output {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    all: Vec<String>,
    open_ends: usize,
}

impl Process {
    /// Starts the command; stdout and stderr are read line by line, stdin is empty.
    pub fn start(name: &str, mut command: Command) -> std::io::Result<Self> {
        command.stdin(Stdio::null());
        Self::launch(name, command)
    }

    /// The same for a program that is told what to do on its stdin.
    pub fn start_told(name: &str, mut command: Command) -> std::io::Result<(Self, ChildStdin)> {
        command.stdin(Stdio::piped());
        let mut process = Self::launch(name, command)?;
        let input = process.child.stdin.take().expect("piped");
        Ok((process, input))
    }

    fn launch(name: &str, mut command: Command) -> std::io::Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: prctl and nothing else, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut child = spawn(command)?;
        let output = Arc::new(Output::default());
        output.lock().open_ends = 2;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        collect(out.expect("piped"), output.clone());
        collect(err.expect("piped"), output.clone());
        Ok(Self { name: name.to_owned(), child, output })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that was printed so far.
    pub fn text(&self) -> String {
        self.output.lock().all.join("\n")
    }

    /// Waits for a line on which `find` finds something. Panics, with what was printed, if the
    /// time passes or the program closes its output before.
    pub fn wait_for_line<T>(&self, at_most: Duration, find: impl Fn(&str) -> Option<T>) -> T {
        self.wait_for_line_after(0, at_most, find)
    }

    /// How many lines were printed so far.
    pub fn lines(&self) -> usize {
        self.output.lock().all.len()
    }

    /// The same, without the first `seen` lines.
    pub fn wait_for_line_after<T>(
        &self,
        mut seen: usize,
        at_most: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + at_most;
        let mut lines = self.output.lock();
        loop {
            if let Some(found) = lines.all[seen..].iter().find_map(|line| find(line)) {
                return found;
            }
            seen = lines.all.len();
            let rest = deadline.saturating_duration_since(Instant::now());
            assert!(
                !rest.is_zero() && lines.open_ends > 0,
                "{} did not print what was waited for; it printed:\n{}",
                self.name,
                lines.all.join("\n")
            );
            let waited = self.output.changed.wait_timeout(lines, rest);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // It may have ended meanwhile.
        let _ = kill_process(id.expect("a process id"), signal);
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP: frozen until `thaw`.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end. Panics, with what was printed, if it does not come in time.
    pub fn wait_for_end(&mut self, at_most: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        let status = wait::until(&what, at_most, || self.child.try_wait().ok().flatten());
        // What it printed last may still be on its way through the pipes.
        wait::until_true("its output ends", at_most, || self.output.lock().open_ends == 0);
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} printed:\n{}", self.name, self.text());
        }
    }
}

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A child dies with the *thread* that started it, so all are started by one that never ends.
fn spawn(command: Command) -> std::io::Result<Child> {
    type Job = (Command, mpsc::Sender<std::io::Result<Child>>);
    static STARTER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (reply, answer) = mpsc::channel();
    let starter = starter.lock().unwrap_or_else(PoisonError::into_inner);
    starter.send((command, reply)).expect("the starter never ends");
    answer.recv().expect("the starter never ends")
}

fn collect(end: impl Read + Send + 'static, output: Arc<Output>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(end);
        let mut line = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            output.lock().all.push(text);
            output.changed.notify_all();
            line.clear();
        }
        output.lock().open_ends -= 1;
        output.changed.notify_all();
    });
}
