//! Tests that many containers leave nothing behind, and that cpus work right for long.

use std::time::Duration;

use anyhow::{Context, Result};
use caisson_tests::{image, node::LIMIT, Leftovers, Node};

/// The number is 15 in CI. `make soak` sets `CAISSON_TEST_SOAK=200`.
fn containers() -> Result<usize> {
    Ok(std::env::var("CAISSON_TEST_SOAK").map_or(Ok(15), |text| text.parse())?)
}

/// One test covers both, one after another and then ten at a time, since what is left is counted
/// over both.
#[test]
fn containers_in_a_row_and_ten_at_once_succeed_and_leave_nothing() -> Result<()> {
    let node = Node::shared();
    node.image("busybox")?;
    let before = Leftovers::count(node);
    for number in 1..=containers()? {
        let output = node
            .container("busybox")
            .memory_mib(128)
            .sh(&format!("echo {number}"))
            .run()?
            .ok()?;
        assert_eq!(output.line(), number.to_string());
        if number % 10 == 0 {
            println!("{number} containers");
        }
    }
    let together: Vec<_> = (0..10)
        .map(|number| {
            node.container("busybox")
                .memory_mib(128)
                .sh(&format!("echo {number}"))
                .spawn()
        })
        .collect::<Result<_>>()?;
    for (number, running) in together.into_iter().enumerate() {
        let output = running.finish(LIMIT)?.ok()?;
        assert_eq!(output.line(), number.to_string());
    }
    Leftovers::none_since(node, &before)
}

/// The time is 10 s in CI. `make soak` sets `CAISSON_TEST_SOAK_SECONDS=3600`.
fn duration() -> Result<Duration> {
    let seconds = std::env::var("CAISSON_TEST_SOAK_SECONDS").map_or(Ok(10), |text| text.parse());
    Ok(Duration::from_secs(seconds?))
}

/// A template has one cpu of two in use, so one of these was plugged in. Each executes programs
/// from fresh pages: an emulator that runs several cpus at once might execute what was there before
/// (QEMU's work item 4669).
#[test]
fn cpu_that_was_plugged_in_computes_as_the_first_does() -> Result<()> {
    let time = duration()?;
    let numbers: String = (1..=500).map(|number| format!("{number}\n")).collect();
    let expected = image::sha256(numbers.as_bytes())?;
    let work = format!(
        "work() {{
            rounds=0
            end=$(($(date +%s) + {}))
            while [ $(date +%s) -lt $end ]; do
                cp /bin/busybox /tmp/busybox$1
                [ \"$(/tmp/busybox$1 seq 1 500 | /tmp/busybox$1 sha256sum)\" = '{expected}  -' ] \
                    || {{ echo wrong; exit; }}
                rm /tmp/busybox$1
                rounds=$((rounds + 1))
            done
            echo $rounds
        }}
        taskset -p 1 $$ >/dev/null; work 1 > /tmp/first &
        taskset -p 2 $$ >/dev/null; work 2 > /tmp/second; wait
        cat /tmp/first /tmp/second",
        time.as_secs()
    );
    let container = Node::shared().container("busybox").cpus(2).memory_mib(256);
    let output = container.sh(&work).within(time + LIMIT).run()?.ok()?.text();
    let rounds: Vec<u32> = output
        .lines()
        .map(|line| line.parse().with_context(|| output.clone()))
        .collect::<Result<_>>()?;
    println!("rounds of each cpu: {rounds:?}");
    assert_eq!(rounds.len(), 2);
    assert!(rounds.iter().all(|rounds| *rounds > 0));
    Ok(())
}
