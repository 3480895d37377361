//! `pontoon inject`: what the webhook does, on files. It needs no running control plane and no cluster.

use std::io::Read as _;
use std::path::PathBuf;

use clap::Args;

use super::CliError;
use super::output::line;
use crate::infrastructure::provision::PullPolicy;
use crate::inject::{Interception, Settings, workload};

/// What is the same for all pods, wherever they are injected.
#[derive(Debug, Clone, Args)]
pub(super) struct SettingsArgs {
    /// The image of pontoon-proxy.
    #[arg(
        long,
        env = "PONTOON_PROXY_IMAGE",
        value_name = "NAME:TAG",
        default_value = concat!("pontoon.dev/pontoon-proxy:", env!("CARGO_PKG_VERSION"))
    )]
    proxy_image: String,
    /// When nodes fetch it. Default: as Kubernetes has it by the image's tag.
    #[arg(long, env = "PONTOON_PROXY_IMAGE_PULL_POLICY", value_enum, value_name = "POLICY")]
    proxy_image_pull_policy: Option<PullPolicy>,
    /// The control plane as pods reach it.
    #[arg(
        long,
        env = "PONTOON_XDS_SERVER",
        value_name = "URI",
        default_value = "http://pontoon.pontoon-system.svc:18000"
    )]
    xds_server: String,
    /// For pods whose annotations do not say: how connections come to the sidecar.
    #[arg(long, env = "PONTOON_INTERCEPTION", value_enum, default_value_t)]
    interception: Interception,
}

impl SettingsArgs {
    pub(super) fn settings(&self) -> Settings {
        Settings {
            image: self.proxy_image.clone(),
            pull_policy: self.proxy_image_pull_policy,
            xds_server: self.xds_server.clone(),
            interception: self.interception,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct InjectArgs {
    /// A YAML file of workloads; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Prints the file's objects with sidecars in their pods. What is left as it is, and why, goes to standard error, and so
/// does what has no effect.
pub(super) fn run(args: &InjectArgs) -> Result<(), CliError> {
    let shown = args.file.display();
    let mut text = String::new();
    let read = match args.file.as_os_str().as_encoded_bytes() {
        b"-" => std::io::stdin().read_to_string(&mut text).map(drop),
        _ => std::fs::read_to_string(&args.file).map(|read| text = read),
    };
    read.map_err(|error| CliError::Other(format!("cannot read {shown}: {error}")))?;
    let mut documents = workload::read(&text).map_err(|error| {
        CliError::Other(format!("{shown}:{}:{}: not YAML: {}", error.at.line, error.at.column, error.message))
    })?;
    if documents.is_empty() {
        eprintln!("{shown}: no objects in it");
    }
    let settings = args.settings.settings();
    let mut out = Vec::with_capacity(documents.len());
    for document in &mut documents {
        let notes = workload::inject_object(document, &settings)
            .map_err(|error| CliError::Other(format!("{shown}: {error}")))?;
        for note in notes {
            eprintln!("{}: {}", note.object, note.said);
        }
        out.push(serde_saphyr::to_string(document).map_err(|error| CliError::Other(error.to_string()))?);
    }
    line(out.join("---\n").trim_end())
}
