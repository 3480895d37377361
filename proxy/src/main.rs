//! `pontoon-proxy`: see `pontoon-proxy --help`.

use clap::Parser as _;
use pontoon_proxy::bootstrap::{Args, Bootstrap};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let bootstrap = Bootstrap::from_args(Args::parse())?;
    pontoon_proxy::run(bootstrap, pontoon_proxy::start_logging())
}
