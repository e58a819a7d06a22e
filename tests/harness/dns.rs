//! A server of DNS for tests, whose names the test sets while it runs.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{IpAddr, TcpListener, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{rdata::CNAME, Name, RData, Record, RecordType},
};

/// The port of DNS.
const PORT: u16 = 53;
/// The longest answer by UDP.
const UDP_SIZE: usize = 1232;

/// What a name stands for.
#[derive(Debug, Clone)]
enum Meaning {
    Addresses(Vec<IpAddr>),
    Alias(String),
}

#[derive(Debug, Default)]
struct Zone {
    names: HashMap<String, (Meaning, u32)>,
    asked: Vec<String>,
}

/// A server that runs until the process ends.
#[derive(Debug, Clone)]
pub struct Dns {
    zone: Arc<Mutex<Zone>>,
}

impl Dns {
    /// Starts a server at an address of this machine.
    pub fn start(address: IpAddr) -> Result<Self> {
        let dns = Self {
            zone: Arc::default(),
        };
        let udp = UdpSocket::bind((address, PORT)).context("port 53 for UDP")?;
        let tcp = TcpListener::bind((address, PORT)).context("port 53 for TCP")?;
        let by_udp = dns.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                if let Some(answer) = by_udp.answer(&buffer[..length], UDP_SIZE) {
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        let by_tcp = dns.clone();
        thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                let _ = by_tcp.connection(stream);
            }
        });
        Ok(dns)
    }

    /// Sets the addresses of a name, with a TTL of a second.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        let meaning = Meaning::Addresses(addresses.to_vec());
        self.zone().names.insert(name.to_owned(), (meaning, 1));
    }

    /// Makes a name an alias of another.
    pub fn alias(&self, name: &str, target: &str) {
        let meaning = Meaning::Alias(target.to_owned());
        self.zone().names.insert(name.to_owned(), (meaning, 1));
    }

    /// Whether somebody has asked for a name.
    pub fn was_asked(&self, name: &str) -> bool {
        self.zone().asked.iter().any(|asked| asked == name)
    }

    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self, mut stream: std::net::TcpStream) -> std::io::Result<()> {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut request = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut request)?;
        let answer = self.answer(&request, u16::MAX.into()).unwrap_or_default();
        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
        stream.write_all(&answer)
    }

    fn answer(&self, request: &[u8], most: usize) -> Option<Vec<u8>> {
        let request = Message::from_vec(request).ok()?;
        let query = request.queries.first()?.clone();
        let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        let mut owner = query.name.clone();
        let mut zone = self.zone();
        zone.asked.push(text(&owner));
        loop {
            let Some((meaning, ttl)) = zone.names.get(&text(&owner)) else {
                if owner == query.name {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                break;
            };
            match meaning {
                Meaning::Alias(target) => {
                    let target = Name::from_ascii(format!("{target}.")).ok()?;
                    let data = RData::CNAME(CNAME(target.clone()));
                    answer.add_answer(Record::from_rdata(owner, *ttl, data));
                    owner = target;
                }
                Meaning::Addresses(addresses) => {
                    for address in addresses {
                        let data = match (address, query.query_type) {
                            (IpAddr::V4(address), RecordType::A) => RData::A((*address).into()),
                            (IpAddr::V6(address), RecordType::AAAA) => {
                                RData::AAAA((*address).into())
                            }
                            _ => continue,
                        };
                        answer.add_answer(Record::from_rdata(owner.clone(), *ttl, data));
                    }
                    break;
                }
            }
        }
        let bytes = answer.to_vec().ok()?;
        match bytes.len() <= most {
            true => Some(bytes),
            false => answer.truncate().to_vec().ok(),
        }
    }
}

fn text(name: &Name) -> String {
    let text = name.to_lowercase().to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}
