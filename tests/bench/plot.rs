//! Draws the times as a picture, by gnuplot.

use std::{fmt::Write, path::Path, process::Command, time::Duration};

use anyhow::Result;
use caisson_tests::command;

use crate::table::{millis, Series};

/// How long gnuplot may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Writes a PNG with a panel for each measurement. A panel has a box for each series: the median,
/// the quartiles, and the times beyond one and a half times their distance.
pub fn write(panels: &[(&str, Vec<&Series>)], to: &Path) -> Result<()> {
    let mut script = format!(
        "set terminal pngcairo size 1500,500\nset output {:?}\nset multiplot layout 1,{}\n\
         set style data boxplot\nset boxwidth 0.5\nset style fill solid 0.3\nunset key\n\
         set yrange [0:*]\nset ylabel 'ms'\nset xtics rotate by -30\nset grid y\n",
        to.display().to_string(),
        panels.len()
    );
    for (title, series) in panels {
        writeln!(script, "set title {title:?}\n$times << END")?;
        for (at, series) in series.iter().enumerate() {
            for time in series.in_order() {
                writeln!(script, "{} {}", at + 1, millis(time))?;
            }
        }
        let names = series.iter().enumerate();
        let names = names.map(|(at, series)| format!("{:?} {}", series.name(), at + 1));
        let boxes = (1..=series.len()).map(|at| format!("$times using ({at}):($1=={at}?$2:NaN)"));
        let (names, boxes): (Vec<_>, Vec<_>) = (names.collect(), boxes.collect());
        writeln!(
            script,
            "END\nset xrange [0.5:{}.5]\nset xtics ({})\nplot {}",
            series.len(),
            names.join(", "),
            boxes.join(", ")
        )?;
    }
    let mut gnuplot = Command::new("gnuplot");
    command::run(&mut gnuplot, Some(script.into_bytes().into()), LIMIT)?.ok()?;
    Ok(())
}
