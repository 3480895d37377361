//! The book: `docs/` as mdBook builds it, and the check that no page is left out of its table of contents.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::step::Steps;
use crate::tools::Tools;

/// Builds the book into `target/book`.
pub(crate) fn build(workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<()> {
    let wrong = unlisted(&workspace.join("docs"))?;
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    let mdbook = tools.mdbook(steps)?;
    let mut command = Command::new(mdbook);
    command.arg("build").arg(workspace.join("docs"));
    steps.run("book", &mut command).map(drop)
}

/// Links of Markdown pages to files that are not there.
#[cfg(test)]
fn lost_links(workspace: &Path) -> anyhow::Result<Vec<String>> {
    let docs = workspace.join("docs");
    let mut pages = Vec::new();
    collect(&docs, &docs, &mut pages)?;
    let top = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|page| workspace.join(page));
    let mut lost = Vec::new();
    for page in pages.iter().map(|page| docs.join(page)).chain(top) {
        let text =
            std::fs::read_to_string(&page).with_context(|| format!("{} cannot be read", page.display()))?;
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap_or_default();
            if !page.parent().is_some_and(|folder| folder.join(file).exists()) {
                lost.push(format!("{} links to {link}", page.display()));
            }
        }
    }
    Ok(lost)
}

/// Pages that `SUMMARY.md` does not list and links in it that lead nowhere, as paths below `docs/`.
fn unlisted(docs: &Path) -> anyhow::Result<Vec<String>> {
    let summary =
        std::fs::read_to_string(docs.join("SUMMARY.md")).context("docs/SUMMARY.md cannot be read")?;
    let listed: Vec<&str> = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    let mut pages = Vec::new();
    collect(docs, docs, &mut pages)?;
    let mut wrong: Vec<String> = pages
        .iter()
        .filter(|page| *page != "SUMMARY.md" && !listed.contains(&page.as_str()))
        .map(|page| format!("{page} is not in SUMMARY.md"))
        .collect();
    let lost = listed.iter().filter(|link| !pages.iter().any(|page| page == *link));
    wrong.extend(lost.map(|link| format!("SUMMARY.md lists {link}, which is not there")));
    Ok(wrong)
}

fn collect(root: &Path, folder: &Path, pages: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            collect(root, &path, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path.strip_prefix(root)?.display().to_string());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_in_the_table_of_contents() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        assert_eq!(unlisted(&docs).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_link_leads_somewhere() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        assert_eq!(lost_links(&workspace).unwrap(), Vec::<String>::new());
    }
}
