//! The `millrace` binary: everything is in the library.

fn main() -> std::process::ExitCode {
    millrace::cli::main()
}
