//! Notices when the host's clock is set.

use std::{
    fs::File,
    io::{self, Read},
};

use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags,
    Timespec,
};
use tokio::io::unix::AsyncFd;

/// A timer that ends never, but when the clock is set (timerfd_create(2),
/// `TFD_TIMER_CANCEL_ON_SET`).
pub struct Clock {
    timer: AsyncFd<File>,
}

impl Clock {
    pub fn watch() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = File::from(timerfd_create(TimerfdClockId::Realtime, flags)?);
        // SAFETY: the descriptor is open, and only dropping the value closes it.
        let timer = unsafe { AsyncFd::register(timer) }?;
        let clock = Self { timer };
        clock.arm()?;
        Ok(clock)
    }

    fn arm(&self) -> io::Result<()> {
        const ZERO: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let never = Itimerspec {
            it_interval: ZERO,
            it_value: Timespec {
                tv_sec: i64::MAX,
                ..ZERO
            },
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(self.timer.get_ref(), flags, &never)?;
        Ok(())
    }

    /// Resolves when the clock has been set since the last call.
    pub async fn stepped(&self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            match ready.try_io(|timer| timer.get_ref().read(&mut [0; 8])) {
                Ok(Err(error)) if error.raw_os_error() != Some(libc::ECANCELED) => {
                    return Err(error);
                }
                Ok(_) => return self.arm(),
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn clock_that_is_not_set_is_quiet() {
        let clock = Clock::watch().unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(50), clock.stepped()).await;
        assert!(quiet.is_err());
    }
}
