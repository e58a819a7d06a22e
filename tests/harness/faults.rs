//! A TCP relay on loopback in front of a server. It can be slow, cut the answers short, or be down.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        Arc, Mutex, MutexGuard, PoisonError,
    },
    thread,
    time::Duration,
};

use anyhow::Result;

/// What the relay does to the server's answers.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Passes them on unchanged.
    None,
    /// Ends each connection after this number of bytes.
    Cut(usize),
    /// Passes on this number of bytes every tenth of a second.
    Slow(usize),
    /// Accepts connections and closes them at once.
    Down,
}

/// A running relay. Once dropped, it accepts no more connections.
pub struct Relay {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    server: String,
    fault: Mutex<Fault>,
    connections: AtomicUsize,
    /// The bytes that clients have sent.
    asked: Mutex<Vec<u8>>,
    end: AtomicBool,
}

impl Relay {
    /// Starts a relay to a server, `HOST:PORT`.
    pub fn start(server: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            server: server.to_owned(),
            fault: Mutex::new(Fault::None),
            connections: AtomicUsize::new(0),
            asked: Mutex::default(),
            end: AtomicBool::new(false),
        });
        let accepting = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.end.load(Ordering::Relaxed) {
                    return;
                }
                accepting.connections.fetch_add(1, Ordering::Relaxed);
                let state = accepting.clone();
                // If a relayed connection breaks, the other side sees that too.
                thread::spawn(move || state.relay(client));
            }
        });
        Ok(Self { address, state })
    }

    /// Returns host and port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Sets the fault from now on, also for existing connections.
    pub fn set(&self, fault: Fault) {
        *self.state.fault() = fault;
    }

    /// Returns how many connections there have been.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Returns how often clients have sent a text, for example a request line or a header.
    pub fn asked(&self, text: &str) -> usize {
        let asked = self
            .state
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&asked).matches(text).count()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.end.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn fault(&self) -> MutexGuard<'_, Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relay(self: Arc<Self>, mut client: TcpStream) -> std::io::Result<()> {
        if matches!(*self.fault(), Fault::Down) {
            return client.shutdown(Shutdown::Both);
        }
        let mut server = TcpStream::connect(&self.server)?;
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        let state = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from_client.read(&mut buffer) {
                let mut asked = state.asked.lock().unwrap_or_else(PoisonError::into_inner);
                asked.extend(&buffer[..length]);
                drop(asked);
                if to_server.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            let _ = to_server.shutdown(Shutdown::Write);
        });
        let mut buffer = vec![0; 64 * 1024];
        let mut carried = 0;
        loop {
            let fault = *self.fault();
            let most = match fault {
                Fault::Slow(bytes) => bytes.min(buffer.len()),
                _ => buffer.len(),
            };
            let mut length = server.read(&mut buffer[..most])?;
            match fault {
                Fault::Cut(bytes) => length = length.min(bytes.saturating_sub(carried)),
                Fault::Slow(_) => thread::sleep(Duration::from_millis(100)),
                Fault::Down => length = 0,
                Fault::None => {}
            }
            if length == 0 {
                server.shutdown(Shutdown::Both).ok();
                return client.shutdown(Shutdown::Both);
            }
            client.write_all(&buffer[..length])?;
            carried += length;
        }
    }
}
