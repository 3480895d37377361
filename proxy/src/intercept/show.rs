//! What is in force, read from the kernel.

use std::fmt;

use serde_json::json;

use super::kernel::{self, Table};
use super::{InterceptError, policy};

/// Rules and routing as they are.
#[derive(Debug)]
pub(super) struct Shown {
    /// `None`: there is no table.
    table: Option<Table>,
    routing: Vec<String>,
}

pub(super) fn read() -> Result<Shown, InterceptError> {
    Ok(Shown { table: kernel::read()?, routing: policy::read()? })
}

impl Shown {
    pub(super) fn json(&self) -> String {
        let none = Table::default();
        let Table { chains, rules } = self.table.as_ref().unwrap_or(&none);
        let rules: Vec<_> = rules
            .iter()
            .map(|rule| json!({ "chain": rule.chain, "rule": rule.text, "packets": rule.packets }))
            .collect();
        let shown = json!({
            "up": self.table.is_some(), "chains": chains, "rules": rules, "routing": self.routing,
        });
        format!("{shown:#}\n")
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.table {
            None => writeln!(f, "no interception")?,
            Some(Table { chains, rules }) => {
                for chain in chains {
                    writeln!(f, "{chain}")?;
                    for rule in rules.iter().filter(|rule| rule.chain == *chain) {
                        let text = rule.text.as_deref().unwrap_or("(a rule that is not ours)");
                        writeln!(f, "  {:>10}  {text}", rule.packets)?;
                    }
                }
            }
        }
        for line in &self.routing {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}
