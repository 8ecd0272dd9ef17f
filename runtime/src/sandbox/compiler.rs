//! Compiling a component in a process of its own, with bounds on its memory and time: what somebody uploads can be made so that
//! compiling it takes all there is, and a compiler is no boundary of security.
//!
//! The process is this program under another name. It reads the component from its standard input and writes compiled code to
//! its standard output; it gets no arguments beyond that name and its bounds, no environment and no files.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};

use super::engine;
use super::refusal::{Refusal, quoted};

/// The first argument of a process that compiles.
const NAME: &str = "__compile-component";
/// Compiled code is some times larger than its component, and never by so much.
const ARTIFACT_MAX_BYTES: u64 = 1 << 30;
const REASON_MAX_BYTES: u64 = 4096;
/// How it ends if the component is at fault.
const INVALID: u8 = 1;
/// How it ends if it could not even look at it.
const FAILED: u8 = 2;
/// What says that it has run out of stack or memory, which Rust writes before it aborts.
const STACK_OVERFLOW: &str = "overflowed its stack";
const NO_MEMORY: &str = "memory allocation of";
/// Errors of the system that pass.
const SHORTAGES: [Errno; 4] = [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE];

/// Where components are compiled.
#[derive(Clone, Debug, Default)]
pub enum Compiler {
    /// In this process: for components that whoever runs it has made.
    #[default]
    Here,
    /// In processes of this program, which calls [`compile_if_asked`] when it begins.
    Apart {
        /// The program.
        program: PathBuf,
        /// What one of them may use.
        bounds: Bounds,
    },
}

/// What compiling one component may take. The defaults suit a large interpreter, which needs about half of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Memory that it may write to.
    pub memory_bytes: u64,
    /// Time of all its threads together, in whole seconds.
    pub cpu: Duration,
    /// Time from its start, for where processors are scarce.
    pub time: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { memory_bytes: 2 << 30, cpu: Duration::from_secs(60), time: Duration::from_secs(120) }
    }
}

impl Compiler {
    /// In processes of the program that runs now, even if its file has been replaced since.
    #[must_use]
    pub fn apart() -> Self {
        Self::Apart { program: PathBuf::from("/proc/self/exe"), bounds: Bounds::default() }
    }
}

/// Compiles what comes on the standard input, if this process was started for that. To be called before anything else.
#[must_use]
pub fn compile_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let asked = arguments.next().is_some_and(|first| first == OsStr::new(NAME));
    asked.then(|| match compile(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, reason)) => {
            // Where nobody reads it, nobody waits for it either.
            let _unread = io::stderr().write_all(reason.as_bytes());
            ExitCode::from(code)
        }
    })
}

/// Answers with how to end, and why.
fn compile(arguments: impl Iterator<Item = OsString>) -> Result<(), (u8, String)> {
    let failed = |what: &str, error: &dyn fmt::Display| (FAILED, format!("{what}: {error}"));
    bound(arguments).map_err(|e| failed("it cannot be bounded", &e))?;
    let mut component = Vec::new();
    io::stdin().read_to_end(&mut component).map_err(|e| failed("the component cannot be read", &e))?;
    let engine = wasmtime::Engine::new(&engine::compiler_config());
    let engine = engine.map_err(|e| failed("there is no engine", &e))?;
    let artifact = engine.precompile_component(&component).map_err(|e| (INVALID, format!("{e:#}")))?;
    let handed_over = io::stdout().write_all(&artifact);
    handed_over.map_err(|e| failed("the compiled component cannot be handed over", &e))
}

/// Bounds this process by what it was told: bytes of memory, and seconds of processor time.
fn bound(arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let numbers: Option<Vec<u64>> = arguments.map(|number| number.to_str()?.parse().ok()).collect();
    let Some(&[memory, cpu]) = numbers.as_deref() else { return Err(io::ErrorKind::InvalidInput.into()) };
    limit(Resource::Data, memory, memory)?;
    // Whoever is not ended by the first is killed by the second, as is whoever takes all memory that there is.
    limit(Resource::Cpu, cpu, cpu + 1)?;
    limit(Resource::Core, 0, 0)?;
    limit(Resource::Fsize, 0, 0)
}

fn limit(resource: Resource, current: u64, maximum: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) })?)
}

/// Has a component compiled by another process. Blocks.
pub(super) fn compile_apart(program: &Path, bounds: Bounds, component: &[u8]) -> Result<Vec<u8>, Refusal> {
    let failed = |e: io::Error| {
        let passes = e.raw_os_error().map(Errno::from_raw_os_error).is_some_and(|errno| SHORTAGES.contains(&errno));
        if passes {
            Refusal::Unavailable(e.to_string())
        } else {
            Refusal::Compiler(format!("it cannot be started: {e}"))
        }
    };
    let child = Command::new(program)
        .arg(NAME)
        .args([bounds.memory_bytes.to_string(), bounds.cpu.as_secs().to_string()])
        .env_clear()
        // Memory counts once it can be written to: none is taken in advance.
        .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let ended = hand_over(child, component, bounds.time).map_err(failed)?;
    if ended.status.success() { Ok(ended.artifact) } else { Err(ended.refusal(bounds)) }
}

struct Ended {
    status: ExitStatus,
    /// Whether its time was over.
    late: bool,
    artifact: Vec<u8>,
    /// What it has said last.
    reason: String,
}

impl Ended {
    /// Why there is no compiled component.
    fn refusal(self, bounds: Bounds) -> Refusal {
        let Self { status, late, reason, .. } = self;
        if status.code() == Some(i32::from(INVALID)) {
            return Refusal::Invalid(quoted(&reason));
        }
        let signal = status.signal().and_then(Signal::from_named_raw);
        Refusal::TooCostly(match signal {
            Some(Signal::KILL) if late => format!("{} s", bounds.time.as_secs()),
            Some(Signal::KILL) => "the memory that this machine has left".to_owned(),
            Some(Signal::XCPU) => format!("{} s of CPU time", bounds.cpu.as_secs()),
            Some(Signal::ABORT) if reason.contains(STACK_OVERFLOW) => "the stack of the compiler".to_owned(),
            Some(Signal::ABORT) if reason.contains(NO_MEMORY) => format!("{} MiB of memory", bounds.memory_bytes >> 20),
            _ => return Refusal::Compiler(format!("it ended with {status}; {}", quoted(&reason))),
        })
    }
}

fn hand_over(mut child: Child, component: &[u8], time: Duration) -> io::Result<Ended> {
    let (pid, late) = (Pid::from_child(&child), AtomicBool::new(false));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (done, waiting) = mpsc::channel::<()>();
    let handed_over = std::thread::scope(|scope| {
        let late = &late;
        // It ends early if the component is at fault, which its exit tells.
        let writing = thread(scope, move || drop(stdin.map(|mut stdin| stdin.write_all(component))));
        let watching = thread(scope, move || {
            // It has not been waited for yet, so that the number is its own.
            if waiting.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout) {
                late.store(true, Ordering::Relaxed);
                let _ended_meanwhile = kill_process(pid, Signal::KILL);
            }
        });
        let told = thread(scope, move || read_up_to(stderr, REASON_MAX_BYTES));
        let helped = writing.and(watching).and(told).inspect_err(|_| {
            let _ended_meanwhile = kill_process(pid, Signal::KILL);
        });
        let artifact = read_up_to(stdout, ARTIFACT_MAX_BYTES);
        let told = helped.map(|told| told.join().unwrap_or_default());
        drop(done);
        told.map(|told| (artifact, String::from_utf8_lossy(&told).into_owned()))
    });
    // Also where nobody could help: what has ended is waited for.
    let status = child.wait()?;
    let (artifact, reason) = handed_over?;
    Ok(Ended { status, late: late.into_inner(), artifact, reason })
}

fn thread<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new().spawn_scoped(scope, work)
}

/// What comes, as far as it is wanted; what comes after it is dropped, so that whoever writes it can end.
fn read_up_to(from: Option<impl Read>, most: u64) -> Vec<u8> {
    let mut read = Vec::new();
    if let Some(mut from) = from {
        let taken = from.by_ref().take(most).read_to_end(&mut read);
        drop(taken.and_then(|_| io::copy(&mut from, &mut io::sink())));
    }
    read
}
