//! A disk that is soon full.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A small file system in memory. A shell in a mount namespace of its own mounts it, so that no rights are needed and nothing is
/// left behind; everybody else reaches it through that process.
#[derive(Debug)]
pub struct SmallDisk {
    shell: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    mounted_at: String,
}

impl SmallDisk {
    /// Mounts one of this size over an empty directory; or says why that is not permitted here.
    ///
    /// # Errors
    /// If this machine permits no namespaces or mounts.
    pub fn mount(over: &Path, mebibytes: u32) -> Result<Self, String> {
        let mut shell = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("unshare: {e}"))?;
        let (commands, answers) = shell.stdin.take().zip(shell.stdout.take()).ok_or("the shell has no pipes")?;
        let mounted_at = over.to_str().ok_or("the directory's name is not UTF-8")?.to_owned();
        let mut disk = Self { shell, commands, answers: BufReader::new(answers), mounted_at };
        let mount = format!("mount -t tmpfs -o size={mebibytes}m millrace-test '{}'", disk.mounted_at);
        disk.run(&mount)?;
        Ok(disk)
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn resize(&mut self, mebibytes: u32) -> Result<(), String> {
        self.run(&format!("mount -o remount,size={mebibytes}m '{}'", self.mounted_at))
    }

    /// From now on nobody can write to it.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn forbid_writing(&mut self) -> Result<(), String> {
        self.run(&format!("mount -o remount,ro '{}'", self.mounted_at))
    }

    /// Where it is for processes outside of the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.shell.id(), self.mounted_at))
    }

    fn run(&mut self, command: &str) -> Result<(), String> {
        writeln!(self.commands, "{command} && echo done || echo failed").map_err(|e| e.to_string())?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).map_err(|e| e.to_string())?;
        if answer.trim() == "done" {
            Ok(())
        } else {
            Err(format!("`{command}` is not permitted here; permit user namespaces, or run as root"))
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.shell.kill());
        drop(self.shell.wait());
    }
}
