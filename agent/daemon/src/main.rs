//! `limpet`: the agent on the gateway.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    limpet_agent::main()
}
