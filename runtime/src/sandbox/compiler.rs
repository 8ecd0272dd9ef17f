//! Compiling a component in a process of its own, with bounds on its memory and time: what somebody uploads can be made so that
//! compiling it takes all there is, and a compiler is no boundary of security.
//!
//! The process is this program under another name. It reads the component from its standard input and writes compiled code to
//! its standard output; it gets no arguments beyond that name, no environment and no files.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};

use super::engine;
use super::refusal::{Refusal, quoted};

/// The first argument of a process that compiles.
const NAME: &str = "__compile-component";
/// Memory that it may write to. A large interpreter needs about half of it.
const MEMORY_MAX_BYTES: u64 = 2 << 30;
/// Time of all its threads together.
const CPU_MAX: Duration = Duration::from_secs(60);
/// Time from its start, for where processors are scarce.
const TIME_MAX: Duration = Duration::from_secs(120);
/// Compiled code is some times larger than its component, and never by so much.
const ARTIFACT_MAX_BYTES: u64 = 1 << 30;
const REASON_MAX_BYTES: u64 = 4096;
/// How it ends if the component is at fault.
const INVALID: u8 = 1;

/// Where components are compiled.
#[derive(Clone, Debug, Default)]
pub enum Compiler {
    /// In this process: for components that whoever runs it has made.
    #[default]
    Here,
    /// In processes of this program, which calls [`compile_if_asked`] when it begins.
    Apart(PathBuf),
}

impl Compiler {
    /// In processes of the program that runs now, even if its file has been replaced since.
    #[must_use]
    pub fn apart() -> Self {
        Self::Apart(PathBuf::from("/proc/self/exe"))
    }
}

/// Compiles what comes on the standard input, if this process was started for that. To be called before anything else.
#[must_use]
pub fn compile_if_asked() -> Option<ExitCode> {
    let asked = std::env::args_os().nth(1).is_some_and(|first| first == OsStr::new(NAME));
    asked.then(|| match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // Where nobody reads it, nobody waits for it either.
            let _unread = io::stderr().write_all(reason.as_bytes());
            ExitCode::from(INVALID)
        }
    })
}

fn compile() -> Result<(), String> {
    let limited = limit(Resource::Data, MEMORY_MAX_BYTES)
        .and_then(|()| limit(Resource::Cpu, CPU_MAX.as_secs()))
        .and_then(|()| limit(Resource::Core, 0))
        .and_then(|()| limit(Resource::Fsize, 0));
    limited.map_err(|e| format!("the compiler cannot be bounded: {e}"))?;
    let mut component = Vec::new();
    io::stdin().read_to_end(&mut component).map_err(|e| format!("the component cannot be read: {e}"))?;
    let engine = wasmtime::Engine::new(&engine::compiler_config()).map_err(|e| format!("{e:#}"))?;
    let artifact = engine.precompile_component(&component).map_err(|e| format!("{e:#}"))?;
    io::stdout().write_all(&artifact).map_err(|e| format!("the compiled component cannot be handed over: {e}"))
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Has a component compiled by another process. Blocks.
pub(super) fn compile_apart(program: &Path, component: &[u8]) -> Result<Vec<u8>, Refusal> {
    let failed = |e: io::Error| Refusal::Compiler(format!("no process can be started for it: {e}"));
    let child = Command::new(program)
        .arg(NAME)
        .env_clear()
        // Memory counts once it can be written to: none is taken in advance.
        .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let Ended { status, artifact, reason } = hand_over(child, component).map_err(failed)?;
    if status.success() {
        return Ok(artifact);
    }
    if status.code() == Some(i32::from(INVALID)) {
        return Err(Refusal::Invalid(quoted(&reason)));
    }
    Err(match status.signal().map(Signal::from_named_raw) {
        Some(Some(Signal::XCPU | Signal::KILL)) => Refusal::TooCostly(format!("{} s of CPU time", CPU_MAX.as_secs())),
        Some(Some(Signal::ABORT | Signal::SEGV)) => {
            Refusal::TooCostly(format!("{} MiB of memory", MEMORY_MAX_BYTES >> 20))
        }
        _ => Refusal::Compiler(format!("it ended with {status}; {}", quoted(&reason))),
    })
}

struct Ended {
    status: ExitStatus,
    artifact: Vec<u8>,
    reason: String,
}

fn hand_over(mut child: Child, component: &[u8]) -> io::Result<Ended> {
    let pid = Pid::from_child(&child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (done, waiting) = mpsc::channel::<()>();
    let (artifact, reason) = std::thread::scope(|scope| {
        // It ends early if the component is at fault, which its exit tells.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(component)));
        scope.spawn(move || {
            // It has not been waited for yet, so that the number is its own.
            if waiting.recv_timeout(TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ended_meanwhile = kill_process(pid, Signal::KILL);
            }
        });
        let told = scope.spawn(move || read_up_to(stderr, REASON_MAX_BYTES));
        let artifact = read_up_to(stdout, ARTIFACT_MAX_BYTES);
        let told = told.join().unwrap_or_default();
        drop(done);
        (artifact, String::from_utf8_lossy(&told).into_owned())
    });
    Ok(Ended { status: child.wait()?, artifact, reason })
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
