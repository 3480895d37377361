//! `pontoon check`: flags in, a report out. What is checked is in [`crate::check`].

use clap::Args;

use super::output::print;
use super::{CliError, Format};
use crate::check::{self, Options, Outcome};
use crate::kubernetes;
use crate::objects::Controller;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Before the installation: whether the cluster takes it, and you may install.
    #[arg(long)]
    pre: bool,
    /// The namespace that Pontoon is in, or is to be in.
    #[arg(long, env = "PONTOON_NAMESPACE", value_name = "NAME", default_value = "pontoon-system")]
    namespace: String,
    /// The controllerName of its GatewayClasses.
    #[arg(
        long,
        env = "PONTOON_CONTROLLER_NAME",
        value_name = "DOMAIN/PATH",
        default_value_t = Controller::default()
    )]
    controller_name: Controller,
    /// This machine's applications call pods: it is a failure if it cannot reach them.
    #[arg(long, conflicts_with = "pre")]
    from_vm: bool,
    /// What else has to be reached from here; may be given several times.
    #[arg(long, value_name = "HOST:PORT", value_parser = target, conflicts_with = "pre")]
    reach: Vec<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

fn target(text: &str) -> Result<String, String> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) => Ok(text.to_owned()),
        _ => Err("expected HOST:PORT, such as 10.0.0.5:8080 or orders.example:80".to_owned()),
    }
}

pub(super) async fn run(args: CheckArgs) -> Result<(), CliError> {
    let CheckArgs { pre, namespace, controller_name, from_vm, reach, output } = args;
    let client = kubernetes::connect().await;
    let client = client.map(|(client, _)| client).map_err(|error| error.to_string());
    let options = Options { pre, namespace, controller: controller_name, from_vm, reach };
    let report = check::run(client, &options).await;
    print(output, &report, |report| report.to_string())?;
    match report.count(Outcome::Failed) {
        0 => Ok(()),
        1 => Err(CliError::Other("1 check has failed".to_owned())),
        count => Err(CliError::Other(format!("{count} checks have failed"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_a_port() {
        for good in ["10.0.0.5:8080", "[fd00::1]:80", "orders.example:1"] {
            assert_eq!(target(good).as_deref(), Ok(good));
        }
        for bad in ["10.0.0.5", ":80", "orders:http", "orders:0", "orders:70000", ""] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
