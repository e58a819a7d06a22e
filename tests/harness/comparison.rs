//! Compares the results that another project's tests have with runc and with Caisson, for the
//! terminal and for `docs/conformance.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
};

use anyhow::{ensure, Context, Result};

use crate::{
    exceptions::{self, Exceptions, Outcome},
    ginkgo::Ended,
    paths,
};

/// The page with a section for each project's tests.
const PAGE: &str = "docs/conformance.md";

/// The results of a run with each runtime, and the verdicts.
pub struct Comparison {
    rows: Vec<Row>,
}

/// A test's results with runc and with Caisson, and the verdict.
struct Row {
    name: String,
    runc: Ended,
    caisson: Ended,
    note: std::result::Result<String, &'static str>,
}

impl Comparison {
    /// Judges the results. Every test that ran with runc has to have run with Caisson.
    pub fn new(
        runc: BTreeMap<String, Ended>,
        mut caisson: BTreeMap<String, Ended>,
        exceptions: &Exceptions,
    ) -> Result<Self> {
        ensure!(!runc.is_empty(), "no test has such a name");
        let rows = runc.into_iter().map(|(name, runc)| {
            let caisson = caisson
                .remove(&name)
                .with_context(|| format!("{name} did not run with Caisson"))?;
            let note = exceptions.judge(&name, runc.outcome, caisson.outcome);
            let note = note.map(str::to_owned);
            Ok(Row {
                name,
                runc,
                caisson,
                note,
            })
        });
        Ok(Self {
            rows: rows.collect::<Result<_>>()?,
        })
    }

    /// Returns whether every test ended as it has to.
    pub fn is_good(&self) -> bool {
        self.rows.iter().all(|row| row.note.is_ok())
    }

    /// Returns whether each of these tests ran.
    pub fn has_all(&self, names: &BTreeSet<String>) -> bool {
        self.rows.len() == names.len()
    }

    /// Returns a line for each test that did not pass with both runtimes, and the sums.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let note = match &row.note {
                Ok(_) => row.reason().to_owned(),
                Err(wrong) => format!("<-- {wrong}: {} {}", row.runc.why, row.caisson.why),
            };
            if !row.passed_with_both() || row.note.is_err() {
                let (runc, caisson) = (row.runc.outcome, row.caisson.outcome);
                let _ = writeln!(text, "{runc:<8} {caisson:<8} {}\n    {note}", row.name);
            }
        }
        let (runc, caisson) = self.sums();
        let _ = writeln!(text, "\nrunc:    {runc}\ncaisson: {caisson}");
        text
    }

    /// Writes a section of `docs/conformance.md`, in place of the one with this heading.
    pub fn write(&self, heading: &str, introduction: &str) -> Result<()> {
        let path = paths::workspace().join(PAGE);
        let page = fs::read_to_string(&path).context(PAGE)?;
        let section = format!("## {heading}\n\n{introduction}\n{}", self.markdown());
        fs::write(&path, with_section(&page, heading, &section)).context(PAGE)
    }

    fn markdown(&self) -> String {
        let (runc, caisson) = self.sums();
        let mut text = format!("| | |\n|---|---|\n| runc | {runc} |\n| Caisson | {caisson} |\n");
        let others = self.rows.iter().filter(|row| !row.passed_with_both());
        for (index, row) in others.enumerate() {
            if index == 0 {
                text += "\n### Not passed with both\n\n";
                text += "| test | runc | Caisson | why |\n|---|---|---|---|\n";
            }
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                cell(&row.name),
                row.runc.outcome,
                row.caisson.outcome,
                cell(row.reason())
            );
        }
        text += "\n### Passed with both\n";
        let mut groups: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.passed_with_both()) {
            groups.entry(group(&row.name)).or_default().push(row);
        }
        for (group, rows) in groups {
            let _ = writeln!(
                text,
                "\n#### {}\n\n| test | runc, s | Caisson, s |\n|---|---:|---:|",
                cell(group)
            );
            for row in rows {
                let _ = writeln!(
                    text,
                    "| {} | {:.0} | {:.0} |",
                    cell(row.name[group.len()..].trim()),
                    row.runc.seconds,
                    row.caisson.seconds
                );
            }
        }
        text
    }

    /// Returns how many tests passed, failed and were skipped, with runc and with Caisson.
    fn sums(&self) -> (String, String) {
        let sum = |ended: fn(&Row) -> &Ended| {
            exceptions::count(self.rows.iter().map(|row| ended(row).outcome))
        };
        (sum(|row| &row.runc), sum(|row| &row.caisson))
    }
}

impl Row {
    /// Returns why the test did not pass with both: the exception's reason, or the test's own.
    fn reason(&self) -> &str {
        let note = self.note.as_deref().unwrap_or_else(|wrong| wrong);
        if note.is_empty() {
            &self.runc.why
        } else {
            note
        }
    }

    fn passed_with_both(&self) -> bool {
        self.runc.outcome == Outcome::Passed && self.caisson.outcome == Outcome::Passed
    }
}

/// Returns the group, such as `[sig-node]`, that the tests' owners put into a name.
fn group(name: &str) -> &str {
    name.find(']').map_or("", |end| &name[..=end])
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('[', "\\[")
}

/// Returns a page in which this section takes the place of the one with the same heading, or comes
/// last. A section ends where the next heading of its level begins.
fn with_section(page: &str, heading: &str, section: &str) -> String {
    let heading = format!("\n## {heading}\n");
    let Some(start) = page.find(&heading).map(|at| at + 1) else {
        return format!("{page}\n{section}");
    };
    match page[start..].find("\n## ") {
        Some(length) => format!("{}{section}{}", &page[..start], &page[start + length..]),
        None => format!("{}{section}", &page[..start]),
    }
}

#[cfg(test)]
mod tests {
    use super::{with_section, Comparison, Ended, Exceptions, Outcome};

    fn ended(outcome: Outcome, why: &str) -> Ended {
        Ended {
            outcome,
            seconds: 1.6,
            why: why.into(),
        }
    }

    #[test]
    fn tables_name_what_did_not_pass_with_both() {
        let exceptions = "[runc]\n[caisson]\n\"[a] host\" = \"refused\"\n";
        let exceptions = Exceptions::parse(exceptions).unwrap();
        let passed = ended(Outcome::Passed, "");
        let skipped = ended(Outcome::Skipped, "no AppArmor");
        let all = |host| {
            let names = ["[a] good", "[a] host", "[b] profile"].map(String::from);
            names
                .into_iter()
                .zip([passed.clone(), host, skipped.clone()])
                .collect()
        };
        let failed = ended(Outcome::Failed, "expected no error");
        let comparison = Comparison::new(all(passed.clone()), all(failed), &exceptions).unwrap();
        assert!(comparison.is_good());
        assert_eq!(
            comparison.markdown(),
            "| | |\n|---|---|\n\
             | runc | 2 passed, 0 failed, 1 skipped |\n\
             | Caisson | 1 passed, 1 failed, 1 skipped |\n\n\
             ### Not passed with both\n\n\
             | test | runc | Caisson | why |\n|---|---|---|---|\n\
             | \\[a] host | passed | FAILED | refused |\n\
             | \\[b] profile | skipped | skipped | no AppArmor |\n\n\
             ### Passed with both\n\n\
             #### \\[a]\n\n\
             | test | runc, s | Caisson, s |\n|---|---:|---:|\n\
             | good | 2 | 2 |\n"
        );
        let better = Comparison::new(all(passed.clone()), all(passed.clone()), &exceptions);
        assert!(!better.unwrap().is_good());
        assert!(Comparison::new(all(passed.clone()), [].into(), &exceptions).is_err());
    }

    #[test]
    fn section_takes_the_place_of_the_one_with_its_heading() {
        let page = "# Page\n\n## one\n\nold\n\n### part\n\n## two\n\nold\n";
        assert_eq!(
            with_section(page, "one", "## one\n\nnew\n"),
            "# Page\n\n## one\n\nnew\n\n## two\n\nold\n"
        );
        assert_eq!(
            with_section(page, "two", "## two\n\nnew\n"),
            "# Page\n\n## one\n\nold\n\n### part\n\n## two\n\nnew\n"
        );
        assert_eq!(
            with_section("# Page\n", "one", "## one\n"),
            "# Page\n\n## one\n"
        );
    }
}
