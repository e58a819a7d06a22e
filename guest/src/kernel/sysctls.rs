//! Raises kernel parameters to those of the node, which the kernel's command line has as
//! `caisson.sysctls=NAME=NUMBER,…`.

use std::fs;

use crate::{Error, Result};

/// Sets each parameter that is higher on the node. One that does not exist belongs to a module that
/// is not loaded, or to another kernel.
pub fn raise() -> Result<()> {
    let path = "/proc/cmdline";
    let line = fs::read_to_string(path).map_err(Error::file("read", path))?;
    for (name, wanted) in parse(&line) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let own = fs::read_to_string(&path).ok();
        let own = own.and_then(|own| own.trim().parse::<u64>().ok());
        if own.is_some_and(|own| own < wanted) {
            fs::write(&path, wanted.to_string()).map_err(Error::file("write", path))?;
        }
    }
    Ok(())
}

fn parse(line: &str) -> impl Iterator<Item = (&str, u64)> {
    let mut words = line.split_whitespace();
    let all = words.find_map(|word| word.strip_prefix("caisson.sysctls="));
    let pairs = all.unwrap_or_default().split(',');
    pairs.filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name, value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_among_the_kernels_words() {
        let line = "quiet caisson.sysctls=kernel.pid_max=4194304,fs.nr_open=x panic=-1";
        assert_eq!(
            parse(line).collect::<Vec<_>>(),
            [("kernel.pid_max", 4_194_304)]
        );
        assert_eq!(parse("quiet").count(), 0);
    }
}
