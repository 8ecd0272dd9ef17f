//! `millrace completions`.

use super::Context;
use super::error::{Error, Exit};

const EXAMPLES: &str = "\
Examples:
  millrace completions bash > ~/.local/share/bash-completion/completions/millrace
  millrace completions zsh > ~/.zfunc/_millrace
  millrace completions fish > ~/.config/fish/completions/millrace.fish";

/// Arguments of `millrace completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Shell to write them for
    shell: clap_complete::Shell,
}

/// Writes the completions to standard output.
pub(super) fn run(args: &Args, command: &mut clap::Command, context: &mut Context) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "millrace", &mut script);
    context.console.line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Done)
}
