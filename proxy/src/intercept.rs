//! `pontoon-proxy intercept`: brings an application's connections to the sidecar without the application's knowing.
//! What the rules are is decided by a plain function ([`ruleset`]); they are one nftables table of our own, put in
//! force in one transaction over netlink, so that the machine needs neither `nft` nor `ip`.

mod kernel;
mod netlink;
mod options;
mod policy;
mod ruleset;
mod show;

use std::io::Write as _;

use clap::Subcommand;

pub use options::{Mode, Options, Up};

/// Of the sub-command `intercept`.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Put the rules in force. What an earlier `up` left is replaced, all at once.
    Up(Box<Up>),
    /// Take all of it away again.
    Down,
    /// What is in force, with what it has matched.
    Show {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Why interception could not be set up, taken down or looked at.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// An option that cannot be used.
    #[error("{option} is {value:?}: {expected}")]
    Option {
        /// The flag.
        option: &'static str,
        /// What it is.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The kernel does not let us.
    #[error(
        "{doing}: not permitted; this needs CAP_NET_ADMIN in this network namespace: run it as root, by a systemd \
         unit with AmbientCapabilities=CAP_NET_ADMIN, or in an init container with the capability NET_ADMIN"
    )]
    Permission {
        /// What was tried.
        doing: &'static str,
    },
    /// The kernel cannot do it.
    #[error(
        "{doing}: the kernel does not support it; it needs nf_tables with {needs} (Linux 5.4 or newer, modules included)"
    )]
    Unsupported {
        /// What was tried.
        doing: &'static str,
        /// What of nf_tables.
        needs: &'static str,
    },
    /// Anything else.
    #[error("{doing}: {source}")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// Standard output does not take it.
    #[error("cannot print: {0}")]
    Print(std::io::Error),
}

impl InterceptError {
    fn kernel(doing: &'static str, source: std::io::Error) -> Self {
        const ENOENT: i32 = 2;
        const EPERM: i32 = 1;
        const EACCES: i32 = 13;
        const EOPNOTSUPP: i32 = 95;
        const EPROTONOSUPPORT: i32 = 93;
        const EAFNOSUPPORT: i32 = 97;
        match source.raw_os_error() {
            Some(EPERM | EACCES) => Self::Permission { doing },
            // A chain type or an expression for which there is no module is not there.
            Some(ENOENT | EOPNOTSUPP | EPROTONOSUPPORT | EAFNOSUPPORT) => {
                Self::Unsupported { doing, needs: "NAT, fib, redirect and, for --mode tproxy, tproxy" }
            }
            _ => Self::Kernel { doing, source },
        }
    }
}

/// Does what the sub-command says, in the network namespace of the process.
///
/// # Errors
/// When an option cannot be used, or the kernel refuses.
pub fn run(command: Command) -> Result<(), InterceptError> {
    match command {
        Command::Up(up) => {
            let dry_run = up.dry_run;
            let options = Options::try_from(*up)?;
            let ruleset = ruleset::of(&options);
            if dry_run {
                return print(&format!("{ruleset}{}", policy::text(&options)));
            }
            up_with(&options, &ruleset)
        }
        Command::Down => {
            kernel::remove()?;
            policy::down()
        }
        Command::Show { json } => {
            let shown = show::read()?;
            print(&if json { shown.json() } else { shown.to_string() })
        }
    }
}

/// Routes are there before the rules that need them, and stay as long as those do.
fn up_with(options: &Options, ruleset: &ruleset::Ruleset) -> Result<(), InterceptError> {
    if options.needs_policy_routing() {
        policy::up()?;
        kernel::replace(ruleset)
    } else {
        kernel::replace(ruleset)?;
        policy::down()
    }
}

fn print(text: &str) -> Result<(), InterceptError> {
    std::io::stdout().write_all(text.as_bytes()).map_err(InterceptError::Print)
}
