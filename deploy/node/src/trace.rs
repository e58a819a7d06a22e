//! `caisson trace`: prints the stages of a pod's start, which its shim has kept.

use std::time::Duration;

use anyhow::{bail, Result};
use caisson_node::{
    config::NodeConfig,
    control::{Answer, Request, Stage},
};

use crate::ask;

/// The time limit for the shim's answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Prints one line for each stage, in the order in which they began.
pub fn run(config: &NodeConfig, pod: &str) -> Result<()> {
    let (found, Answer::Trace(mut stages)) = ask::ask(config, pod, &Request::Trace, LIMIT)? else {
        bail!("pod {pod}: its shim answers something else");
    };
    stages.sort_by(|one, other| one.begin.total_cmp(&other.begin));
    println!(
        "{:>10} {:>10} {:>10}  STAGE",
        "BEGIN ms", "END ms", "TOOK ms"
    );
    for stage in stages {
        println!("{}", line(&stage, &found.id));
    }
    Ok(())
}

fn line(stage: &Stage, pod: &str) -> String {
    let Stage {
        name,
        of,
        begin,
        end,
    } = stage;
    let of = match of {
        Some(of) if of != pod => format!(" of {of}"),
        _ => String::new(),
    };
    format!(
        "{begin:>10.1} {end:>10.1} {:>10.1}  {name}{of}",
        end - begin
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_of_a_container_is_named_with_it() {
        let stage = |of: &str| Stage {
            name: "created".to_owned(),
            of: Some(of.to_owned()),
            begin: 12.0,
            end: 20.5,
        };
        let expected = "      12.0       20.5        8.5  created";
        assert_eq!(line(&stage("pod"), "pod"), expected);
        assert_eq!(line(&stage("web"), "pod"), format!("{expected} of web"));
    }
}
