//! `pontoon-proxy`: see `pontoon-proxy --help`.

use std::process::ExitCode;

use clap::Parser as _;
use pontoon_proxy::bootstrap::{Args, Bootstrap};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let bootstrap = Bootstrap::from_args(Args::parse())?;
    pontoon_proxy::run(bootstrap, pontoon_proxy::start_logging())
}
