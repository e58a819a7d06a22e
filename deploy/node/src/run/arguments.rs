//! The arguments of `caisson run`.

use std::path::PathBuf;

use anyhow::{bail, ensure, Context, Result};
use clap::{Args, ValueEnum};

/// Runs an image or a folder in a VM of its own. Its exit code is the command's; 125 where it could
/// not be run.
#[derive(Args)]
pub struct Arguments {
    /// An archive of an image (OCI layout, `docker save`), or a folder, which is used as it is:
    /// writes go there
    pub image: PathBuf,
    /// Memory limit of the container, in MiB unless it says otherwise: 256, 256MiB, 2GiB
    #[arg(long, value_parser = mib)]
    pub memory: Option<u64>,
    /// Cpus of the container, such as 1.5
    #[arg(long, value_parser = cpus)]
    pub cpus: Option<f64>,
    /// A skill to plug in at /opt/skills/NAME: by its digest, or a squashfs file that is added to
    /// the store
    #[arg(long, value_name = "[NAME=]sha256:HEX|FILE")]
    pub skill: Vec<String>,
    /// A home that is kept under this name, at the user's home
    #[arg(long, value_name = "NAME")]
    pub home: Option<String>,
    /// Sets a variable; without a value it is taken from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Runs as this user of the image: name or number, perhaps with :group
    #[arg(short, long)]
    pub user: Option<String>,
    /// Working directory
    #[arg(short, long)]
    pub workdir: Option<String>,
    /// Runs this instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Whether the command gets a terminal: auto is where stdin and stdout are one
    #[arg(
        short,
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "auto",
        default_missing_value = "always"
    )]
    pub tty: Tty,
    /// Shows the shim's log
    #[arg(long)]
    pub verbose: bool,
    /// The command and its arguments; the image's, when not said
    #[arg(last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tty {
    Auto,
    Always,
    Never,
}

/// Parses `256`, `256MiB`, `256M`, `2GiB` or `2G` to MiB.
fn mib(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "m" | "mib" => 1,
        "g" | "gib" => 1024,
        other => bail!("{other:?} is not MiB or GiB"),
    };
    let number: u64 = digits.parse().context("not a number of MiB")?;
    match number.checked_mul(unit) {
        Some(mib @ 1..=0xfff_ffff) => Ok(mib),
        _ => bail!("out of range"),
    }
}

fn cpus(text: &str) -> Result<f64> {
    let cpus: f64 = text.parse()?;
    ensure!(cpus > 0.0 && cpus <= 4096.0, "out of range");
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &[&str]) -> Result<Arguments, clap::Error> {
        Line::try_parse_from([&["run"], line].concat()).map(|line| line.arguments)
    }

    #[test]
    fn memory_is_in_mib_unless_it_says_otherwise() {
        for (text, expected) in [("256", 256), ("256MiB", 256), ("64m", 64), ("2GiB", 2048)] {
            assert_eq!(mib(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "0",
            "MiB",
            "1KiB",
            "-1",
            "1.5G",
            "99999999999999999999G",
        ] {
            assert!(mib(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_that_are_none_are_refused() {
        assert_eq!(parse(&["--cpus", "0.5", "i"]).unwrap().cpus, Some(0.5));
        for text in ["0", "-1", "NaN", "inf", "two"] {
            assert!(parse(&["--cpus", text, "i"]).is_err(), "{text}");
        }
    }

    #[test]
    fn command_keeps_its_own_options() {
        let arguments = parse(&["-t", "image.tar", "--", "ls", "--env", "-t"]).unwrap();
        assert_eq!(arguments.command, ["ls", "--env", "-t"]);
        assert_eq!(arguments.tty, Tty::Always);
        assert_eq!(parse(&["image.tar"]).unwrap().tty, Tty::Auto);
        assert_eq!(parse(&["--tty=never", "i"]).unwrap().tty, Tty::Never);
    }
}
