//! The objects of the quickstart: the files of `deploy/quickstart/` with this run's ports filled in.

use std::path::Path;

use anyhow::Context as _;

const FILES: &[(&str, &str)] = &[
    ("gateway.yaml", include_str!("../../../deploy/quickstart/gateway.yaml")),
    ("migration.yaml", include_str!("../../../deploy/quickstart/migration.yaml")),
];

/// Where things listen in this run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    /// The gateway's listener.
    pub(super) gateway: u16,
    /// The gateway's admin port.
    pub(super) gateway_admin: u16,
    /// The registry.
    pub(super) eureka: u16,
    /// xDS.
    pub(super) xds: u16,
    /// The HTTP API.
    pub(super) api: u16,
    /// The target pool's two instances.
    pub(super) targets: [u16; 2],
}

/// Writes the objects into `dir`.
pub(super) fn write(dir: &Path, addresses: &Addresses) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for (name, template) in FILES {
        let path = dir.join(name);
        std::fs::write(&path, fill(template, addresses))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn fill(template: &str, addresses: &Addresses) -> String {
    template
        .replace("${GATEWAY_PORT}", &addresses.gateway.to_string())
        .replace("${TARGET_1_PORT}", &addresses.targets[0].to_string())
        .replace("${TARGET_2_PORT}", &addresses.targets[1].to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled() {
        let addresses =
            Addresses { gateway: 1, gateway_admin: 2, eureka: 3, xds: 4, api: 5, targets: [6, 7] };
        for (name, template) in FILES {
            assert!(!fill(template, &addresses).contains("${"), "{name} has a placeholder left");
        }
    }
}
