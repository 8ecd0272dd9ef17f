//! `millrace openapi`.

use super::Context;
use super::error::{Error, Exit};

const EXAMPLES: &str = "\
Examples:
  millrace openapi > millrace.json      for a generator of clients, or a viewer

A server has the same at /v1/openapi.json.";

/// Arguments of `millrace openapi`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {}

/// Writes the description of the HTTP API to standard output.
pub(super) fn run(_: &Args, context: &mut Context) -> Result<Exit, Error> {
    context.console.line(format_args!("{:#}", crate::api::openapi_document()))?;
    Ok(Exit::Done)
}
