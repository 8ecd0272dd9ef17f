//! A process that is measured, and what it takes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use millrace_tests::process;

/// Something that answers events.
pub(super) struct Contestant {
    /// For people.
    pub(super) name: String,
    /// The consumer group whose positions tell how far it is.
    pub(super) group: String,
    pub(super) command: Command,
}

/// A contestant's process; killed when dropped.
pub(super) struct Running {
    name: String,
    child: Child,
}

/// What a process has taken so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) cpu_nanos: f64,
    /// At most, so far.
    pub(super) peak_bytes: f64,
}

impl Contestant {
    pub(super) fn start(&mut self) -> Running {
        let child = self.command.stdout(Stdio::null()).stdin(Stdio::null()).spawn();
        Running { name: self.name.clone(), child: child.expect("it can be started") }
    }
}

impl Running {
    /// What it has taken so far.
    pub(super) fn usage(&mut self) -> Usage {
        let ended = self.child.try_wait().expect("it was started");
        assert!(ended.is_none(), "{} ended: {ended:?}", self.name);
        let read =
            |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("it is running");
        // The name in parentheses may hold anything; of what follows, the 12th and 13th are user and system time.
        let stat = read("stat");
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let ticks: f64 =
            fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number")).sum();
        let status = read("status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
        let kibibytes: f64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        // Linux tells of time in hundredths of a second, whatever the machine (proc(5), sysconf(_SC_CLK_TCK)).
        Usage { cpu_nanos: ticks * 1e7, peak_bytes: kibibytes * 1024.0 }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Fetches Kafka Streams with Maven, once, and answers with the directory.
pub(super) fn fetch_streams() -> PathBuf {
    let libraries = super::super::target().join("bench-streams");
    let here = streams();
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B", "-f"]).arg(here.join("pom.xml")).arg("dependency:copy-dependencies");
    maven.arg("-DincludeScope=runtime").arg(format!("-DoutputDirectory={}", libraries.display()));
    let fetched = maven.status().expect("Maven can be run");
    assert!(fetched.success(), "Maven could not fetch Kafka Streams: {fetched}");
    libraries
}

/// Java, about to run the peer. It says what went wrong, and nothing else.
pub(super) fn java(libraries: &Path) -> Command {
    let mut java = Command::new("java");
    java.arg("-Xmx1g").arg("-cp").arg(libraries.join("*"));
    java.arg(streams().join("Transform.java"));
    java
}

fn streams() -> PathBuf {
    process::root().join("tests/bench/streams")
}
