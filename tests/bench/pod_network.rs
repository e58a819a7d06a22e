//! Measures TCP from pod to pod over the CNI bridge.

use std::time::Duration;

use anyhow::{Context, Result};
use caisson_tests::{
    cri::{Container, CriNode, Pod},
    Runtime,
};

use crate::table::{heading, Series};

const SWALLOW: u16 = 9000;
const ECHO: u16 = 9001;
/// The amount of data, which takes a second or so with either runtime.
const MIB: u32 = 64;
const ROUND_TRIPS: &str = "200";

/// Two pods of one runtime: one with a client, one with two servers.
struct Pair<'p> {
    client: Container<'p>,
    _servers: [Container<'p>; 2],
    address: String,
    transfers: Series,
    round_trips: Series,
}

/// Prints throughput and latency, measured for the runtimes in turns.
pub fn measure(node: &CriNode, rounds: usize) -> Result<()> {
    let pod = |runtime| node.pod().runtime(runtime).start();
    let runc = [pod(Runtime::Runc)?, pod(Runtime::Runc)?];
    let caisson = [pod(Runtime::Caisson)?, pod(Runtime::Caisson)?];
    let mut pairs = [Pair::of("runc", &runc)?, Pair::of("Caisson", &caisson)?];
    for _ in 0..rounds {
        for pair in &mut pairs {
            pair.round()?;
        }
    }
    heading(&format!("\nTCP from pod to pod: {MIB} MiB one way"));
    for pair in &pairs {
        pair.transfers.print();
        let seconds = pair.transfers.median().as_secs_f64();
        println!("    {:.0} MiB/s", f64::from(MIB) / seconds);
    }
    heading("TCP from pod to pod: one byte there and back");
    for pair in &pairs {
        pair.round_trips.print_microseconds();
    }
    Ok(())
}

impl<'p> Pair<'p> {
    fn of(name: &'static str, [near, far]: &'p [Pod<'_>; 2]) -> Result<Self> {
        let client = near.container("busybox").args(["sleep", "10000"]).start()?;
        let servers = [server(far, "swallow", SWALLOW)?, server(far, "echo", ECHO)?];
        Ok(Self {
            client,
            _servers: servers,
            address: far.ipv4()?.to_string(),
            transfers: Series::new(name),
            round_trips: Series::new(name),
        })
    }

    fn round(&mut self) -> Result<()> {
        let time = self.ask("send", SWALLOW, &MIB.to_string())?;
        self.transfers.add(time);
        let time = self.ask("round-trips", ECHO, ROUND_TRIPS)?;
        self.round_trips.add(time);
        Ok(())
    }

    fn ask(&self, what: &str, port: u16, count: &str) -> Result<Duration> {
        let address = format!("{}:{port}", self.address);
        let output = self.client.exec(["probe", what, &address, count])?;
        let line = output.ok()?.line();
        let number = line.split(' ').next().and_then(|text| text.parse().ok());
        Ok(Duration::from_micros(number.context(line)?))
    }
}

fn server<'p>(pod: &'p Pod<'_>, what: &str, port: u16) -> Result<Container<'p>> {
    let address = format!("0.0.0.0:{port}");
    let container = pod.container("busybox").args(["probe", what, &address]);
    let container = container.start()?;
    container.wait_for_output("listening")?;
    Ok(container)
}
