//! `pontoon-e2e GROUP`: the groups of tests against real programs. `cargo xtask e2e GROUP` builds what they need
//! and says where it is.

mod groups;

use std::process::ExitCode;

use anyhow::bail;

// The thread that starts a process must outlive it, so there is but one.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let group = arguments.next().unwrap_or_default();
    let result = match group.as_str() {
        "conformance" => groups::conformance::run(arguments.collect()).await,
        "envoy" => groups::envoy::run(arguments.collect()).await,
        "equal" => groups::equal::run(arguments.collect()).await,
        "go-control-plane" => groups::go_control_plane::run(arguments.collect()).await,
        "grpc" => groups::grpc::run(arguments.collect()).await,
        "h2spec" => groups::h2spec::run(arguments.collect()).await,
        "kubernetes" => groups::kubernetes::run(arguments.collect()).await,
        "network" => groups::network::run(arguments.collect()).await,
        "spring" => groups::spring::run(arguments.collect()).await,
        _ => usage(&group),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage(group: &str) -> anyhow::Result<bool> {
    bail!(
        "there is no group {group:?}; there are: conformance, envoy, equal, go-control-plane, grpc, h2spec, kubernetes, network, spring"
    );
}
