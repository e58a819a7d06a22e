//! The addresses that the resolver has given to the guest, each of which is open for a time.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use caisson_node::traffic::egress::{Filter, PINS};
use rustix::time::{clock_gettime, ClockId};

/// The shortest time for which an address is open. Programs look a name up some time before they
/// connect, and many names have a TTL of seconds.
const SHORTEST: Duration = Duration::from_secs(60);
/// The longest. A TTL of days would keep addresses open that have had another owner for long.
pub const LONGEST: Duration = Duration::from_secs(60 * 60);
/// An address stays open for so long after the guest's own cache forgets it.
const GRACE: Duration = Duration::from_secs(10);

/// The pinned addresses of a pod.
pub struct Pins {
    filter: Arc<Filter>,
    until: Mutex<HashMap<(IpAddr, Option<u16>), Duration>>,
}

/// Why an address is not pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("the pod has {PINS} addresses by name, which is the limit")]
    Full,
    #[error(transparent)]
    Kernel(#[from] io::Error),
}

impl Pins {
    pub fn new(filter: Arc<Filter>) -> Self {
        Self {
            filter,
            until: Mutex::default(),
        }
    }

    /// Opens an address at some ports for the TTL of its record. An address that is open stays so
    /// for the longer of the two times.
    pub fn pin(
        &self,
        address: IpAddr,
        ports: &[Option<u16>],
        ttl: Duration,
    ) -> Result<(), PinError> {
        let now = now();
        let until = now + ttl.clamp(SHORTEST, LONGEST) + GRACE;
        let mut pinned = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        for port in ports {
            let key = (address, *port);
            if pinned.get(&key).is_some_and(|pinned| *pinned >= until) {
                continue;
            }
            if pinned.len() >= PINS as usize && !pinned.contains_key(&key) {
                self.forget(&mut pinned, now)?;
            }
            self.filter.pin(address, *port, until)?;
            pinned.insert(key, until);
        }
        Ok(())
    }

    /// Forgets what is not open any more, to make room.
    fn forget(
        &self,
        pinned: &mut HashMap<(IpAddr, Option<u16>), Duration>,
        now: Duration,
    ) -> Result<(), PinError> {
        let over = pinned.iter().filter(|(_, until)| **until <= now);
        let over: Vec<_> = over.map(|(key, _)| *key).collect();
        for (address, port) in &over {
            self.filter.unpin(*address, *port)?;
            pinned.remove(&(*address, *port));
        }
        match over.is_empty() {
            true => Err(PinError::Full),
            false => Ok(()),
        }
    }
}

/// The time of the clock that the filter reads.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    )
}
