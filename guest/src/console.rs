//! Writes the log as lines to the console, which the host reads from the serial port.
//!
//! A line is `caisson-agent LEVEL message key=value ...`.

use std::{fs::File, io::Write, sync::OnceLock};

use log::{kv, Level, LevelFilter, Log, Metadata, Record};

static SINK: OnceLock<File> = OnceLock::new();
static LOGGER: Logger = Logger;

/// Sends the log to `sink` from now on. A second call changes nothing.
pub fn init(sink: File, level: LevelFilter) {
    if SINK.set(sink).is_ok() && log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

/// Makes a panic write to the log and end the process: PID 1 must not go on without one of its
/// threads.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        log::error!("panic: {info}");
        std::process::abort();
    }));
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // ttrpc logs each connection that a client closes as an error.
        metadata.level() <= log::max_level()
            && (metadata.level() <= Level::Info || metadata.target().starts_with("caisson"))
            && !metadata.target().starts_with("ttrpc")
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line(format!(
            "caisson-agent {} {}",
            record.level(),
            record.args()
        ));
        // Can't fail: a `Line` takes every pair.
        let _ = record.key_values().visit(&mut line);
        // One line is one write, so that lines of several threads do not mix.
        let mut text = line.0.replace(['\n', '\r'], " ");
        text.push('\n');
        if let Some(mut sink) = SINK.get() {
            // There is nowhere to report that the log is gone.
            let _ = sink.write_all(text.as_bytes());
        }
    }

    fn flush(&self) {}
}

struct Line(String);

impl<'kvs> kv::VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        self.0.push_str(&format!(" {key}={value}"));
        Ok(())
    }
}
