use clap::Parser;

use super::*;
use crate::intercept::{InterceptError, Up, policy};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    up: Up,
}

fn options(flags: &str) -> Result<Options, InterceptError> {
    let line = Line::try_parse_from(["up"].into_iter().chain(flags.split_whitespace())).unwrap();
    Options::try_from(line.up)
}

/// Flags and the rules that they give, side by side in `golden/NAME.nft`.
#[test]
fn goldens() {
    for (name, flags) in [
        ("default", ""),
        ("tproxy", "--mode tproxy"),
        ("outbound", "--no-inbound --ipv4-only --outbound-port 4140"),
        ("inbound", "--no-outbound --inbound-port 4143 --only-inbound-port 8080,9000-9100"),
        ("dns", "--no-inbound --dns-port 15053"),
        ("dns-alone", "--no-inbound --no-outbound --dns-port 15053"),
        (
            "exclusions",
            "--mark 0x2a --exclude-mark 7,0x8 --exclude-uid 1337,0 --exclude-gid 1338 \
             --exclude-outbound-port 3306,5000-5010 --exclude-outbound-cidr 10.0.0.0/8,fd00::/8,192.0.2.7/32 \
             --exclude-outbound-interface docker0,veth* --exclude-inbound-port 22 \
             --exclude-inbound-cidr 172.16.0.0/12,2001:db8::/33 --exclude-inbound-interface mgmt",
        ),
    ] {
        let options = options(flags).unwrap();
        let made = format!("# {flags}\n{}{}", of(&options), policy::text(&options));
        let path = format!("{}/src/intercept/golden/{name}.nft", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let right = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(made == right, "{name} differs: run this test with UPDATE=1 and look at the change\n{made}");
    }
}

#[test]
fn what_bears_the_proxys_mark_is_never_touched() {
    for flags in ["", "--mode tproxy", "--dns-port 53 --exclude-uid 0", "--mark 9 --ipv4-only"] {
        let options = options(flags).unwrap();
        let outbound = of(&options).chains.into_iter().find(|chain| chain.name == "outbound").unwrap();
        let position = |wanted: &dyn Fn(&Rule) -> bool| outbound.rules.iter().position(wanted).unwrap();
        let mark = position(&|rule| *rule == alone(Match::Mark(options.mark)));
        let first = position(&|rule| matches!(rule.verdict, Verdict::Redirect(_)));
        assert!(mark < first, "{flags}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (flags, option) in [
        ("--mark 0", "--mark"),
        ("--exclude-mark 1502", "--exclude-mark"),
        ("--outbound-port 0", "--outbound-port"),
        ("--inbound-port 15001", "--inbound-port"),
        ("--dns-port 15001", "--dns-port"),
        ("--no-outbound --no-inbound", "--no-outbound"),
        ("--exclude-inbound-port 9-8", "--exclude-inbound-port"),
        ("--exclude-inbound-port 0", "--exclude-inbound-port"),
        ("--exclude-outbound-port ssh", "--exclude-outbound-port"),
        ("--exclude-outbound-interface a-name-of-16-byte", "--exclude-outbound-interface"),
        ("--exclude-inbound-interface a\"b", "--exclude-inbound-interface"),
    ] {
        let error = options(flags).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{option} is")), "{flags}: {error}");
    }
}
