//! What a running process is told by signals: SIGHUP reads its file again, SIGUSR2 starts the program anew, which
//! then takes over.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tracing_subscriber::filter::Targets;

use super::{DEFAULT_LOG, LOG, LogFilter, systemd};
use crate::admin::Admin;
use crate::bootstrap::placed;

/// Reads the bootstrap's file again, and the system's resolvers. What is logged, who is asked by DNS (unless flags or the
/// environment say it) and static resources change at once; what of the rest has changed is told, and takes an upgrade.
/// A file that cannot be used changes nothing.
pub(super) fn reload(admin: &Arc<Admin>) {
    systemd::reloading();
    match admin.bootstrap.file.as_deref() {
        None => {
            tracing::info!("there is no file to read again");
            set_upstreams(admin, None);
        }
        Some(file) => {
            let taken = take_up(admin, file);
            if let Err(error) = &taken {
                tracing::error!(%error, "the file cannot be used; nothing has changed");
            }
            admin.reread.send_replace(Some((SystemTime::now(), taken)));
        }
    }
    systemd::ready();
}

/// Gives what is wrong with the file.
fn take_up(admin: &Admin, file: &Path) -> Result<(), String> {
    let again = admin.bootstrap.again().map_err(|error| error.to_string())?;
    if admin.bootstrap.envoy.is_some() {
        let changed =
            admin.discovery.refix(again.resources).map_err(|problem| placed(Some(file), &problem))?;
        for problem in &changed.failed {
            let problem = placed(Some(file), problem);
            tracing::error!(%problem, "could be used and a moment later could not; its last good version goes on");
        }
        tracing::info!(changed = ?changed.put, removed = ?changed.removed, "static resources are in force");
    }
    for differs in again.differing {
        tracing::warn!("in the bootstrap, {differs}");
    }
    match again.others {
        Ok(fields) if fields.is_empty() => {}
        Ok(fields) => tracing::warn!(
            fields = fields.join(", "),
            "differ in the file from what is in force, and take an upgrade (SIGUSR2) or a restart"
        ),
        Err(error) => {
            tracing::warn!(%error, "the file could not be had with the flags of this process at a start")
        }
    }
    match std::env::var_os(LOG) {
        Some(_) => tracing::info!("what is logged is {LOG}'s to say"),
        None => set_log(&admin.logging, again.log.as_deref().unwrap_or(DEFAULT_LOG)),
    }
    set_upstreams(admin, again.dns_upstreams);
    tracing::info!("the file is read again");
    Ok(())
}

fn set_upstreams(admin: &Admin, written: Option<Vec<SocketAddr>>) {
    let Some(dns) = &admin.dns else { return };
    match admin.bootstrap.dns_upstreams(written) {
        Ok(Some(upstreams)) => {
            tracing::info!(?upstreams, "who is asked by DNS");
            dns.ask_others(&upstreams);
        }
        Ok(None) => tracing::info!("who is asked by DNS is --dns-upstream's to say"),
        Err(error) => tracing::error!(%error, "who is asked by DNS stays as it was"),
    }
}

pub(super) fn set_log(logging: &LogFilter, log: &str) {
    match log.parse::<Targets>().map(|filter| logging.reload(filter)) {
        Ok(Ok(())) => tracing::info!(log, "what is logged"),
        Ok(Err(error)) => tracing::error!(%error, "what is logged cannot be changed"),
        Err(error) => tracing::error!(log, %error, "is no log filter; nothing has changed"),
    }
}

/// Starts the program that is in this one's place now. It takes over when it is ready; should it end before, this
/// process serves on.
pub(super) fn upgrade(admin: &Arc<Admin>, program: &Path) {
    if admin.bootstrap.upgrade_socket.is_none() {
        tracing::error!("cannot be upgraded: there is no --upgrade-socket for the new process to ask at");
        return;
    }
    systemd::reloading();
    match crate::upgrade::successor(program).spawn() {
        Ok(mut child) => {
            tracing::info!(pid = child.id(), program = %program.display(), "the new process is started");
            tokio::spawn(async move {
                if let Ok(status) = child.wait().await {
                    tracing::error!(%status, "the new process has ended; serving on");
                    systemd::ready();
                }
            });
        }
        Err(error) => {
            tracing::error!(%error, program = %program.display(), "cannot be started; serving on");
            systemd::ready();
        }
    }
}
