//! Tests that many containers leave nothing behind.

use anyhow::Result;
use caisson_tests::{node::LIMIT, Leftovers, Node};

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
