//! What the guest is answered: the addresses of names that its egress has, which are open from then
//! on, and no other name.

use std::{net::IpAddr, time::Duration};

use caisson_oci::Egress;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};

use super::{
    pins::{Pins, LONGEST},
    upstream::{Upstream, UDP_SIZE},
};

/// The most records of one answer that the guest gets: a reply of UDP has room for fewer, and each
/// address takes room in the filter.
const MAX_RECORDS: usize = 128;
/// The longest chain of CNAMEs. Resolvers follow some ten.
const MAX_CHAIN: usize = 16;
/// The length of a message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// Answers a pod's queries.
pub struct Answerer {
    pub egress: Egress,
    pub upstream: Upstream,
    pub pins: Pins,
}

impl Answerer {
    /// Returns the answer to a message of the guest, of at most `limit` bytes, or none if the
    /// message is so wrong that nobody could wait for an answer.
    pub async fn answer(&self, request: &[u8], by_udp: bool) -> Option<Vec<u8>> {
        let request = match Message::from_vec(request) {
            Ok(request) => request,
            Err(_) => return malformed(request),
        };
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let response = self.respond(&request).await;
        let limit = match by_udp {
            true => request.max_payload().min(UDP_SIZE).into(),
            false => usize::from(u16::MAX),
        };
        match response.to_vec() {
            Ok(bytes) if bytes.len() <= limit => Some(bytes),
            // The guest asks again by TCP.
            _ => response.truncate().to_vec().ok(),
        }
    }

    async fn respond(&self, request: &Message) -> Message {
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.queries.clone_from(&request.queries);
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_SIZE).set_version(0);
            response.set_edns(edns);
        }
        let [query] = &request.queries[..] else {
            response.metadata.response_code = ResponseCode::FormErr;
            return response;
        };
        match self.resolve(request.metadata.op_code, query).await {
            Ok((code, answers)) => {
                response.metadata.response_code = code;
                response.answers = answers;
            }
            Err(code) => response.metadata.response_code = code,
        }
        response
    }

    /// Returns what the guest may know of a name, all addresses of which are open then.
    async fn resolve(
        &self,
        op_code: OpCode,
        query: &Query,
    ) -> Result<(ResponseCode, Vec<Record>), ResponseCode> {
        if op_code != OpCode::Query || query.query_class != DNSClass::IN {
            return Err(ResponseCode::Refused);
        }
        let ports = plain(&query.name).and_then(|name| self.egress.ports_of(&name));
        // A resolver goes on to the next domain of its search list.
        let ports = ports.ok_or(ResponseCode::NXDomain)?;
        if !matches!(query.query_type, RecordType::A | RecordType::AAAA) {
            // The name has no such records, as far as the guest is concerned.
            return Ok((ResponseCode::NoError, Vec::new()));
        }
        let asked = Query::query(query.name.to_lowercase(), query.query_type);
        let answer = self.upstream.ask(&asked).await.map_err(|error| {
            log::debug!("ask the pod's servers for {}: {error}", asked.name);
            ResponseCode::ServFail
        })?;
        let mut records = chain(&asked, answer.answers);
        for record in &mut records {
            let ttl = Duration::from_secs(record.ttl.into());
            record.ttl = record.ttl.min(LONGEST.as_secs() as u32);
            let address: IpAddr = match &record.data {
                RData::A(address) => address.0.into(),
                RData::AAAA(address) => address.0.into(),
                _ => continue,
            };
            self.pins.pin(address, &ports, ttl).map_err(|error| {
                log::info!("open an address of {}: {error}", asked.name);
                ResponseCode::ServFail
            })?;
        }
        // The guest's own case of letters, by which it may recognise the answer.
        for record in &mut records {
            if record.name == asked.name {
                record.name = query.name.clone();
            }
        }
        Ok((answer.metadata.response_code, records))
    }
}

/// Returns a name as an egress has it, or none if no egress can have it. A label with a dot in it
/// would look like two.
fn plain(name: &Name) -> Option<String> {
    let text = name.to_lowercase().to_ascii();
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let text = text.strip_suffix('.').unwrap_or(&text);
    text.bytes().all(known).then(|| text.to_owned())
}

/// Returns the records that answer a question: the chain of CNAMEs that begins with its name, and
/// the addresses of the last one. Whatever else a server adds is left out.
fn chain(asked: &Query, records: Vec<Record>) -> Vec<Record> {
    let mut found: Vec<Record> = Vec::new();
    let mut owner = asked.name.clone();
    for _ in 0..MAX_CHAIN {
        let alias = records.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == owner => Some((record, target.0.clone())),
            _ => None,
        });
        let Some((record, target)) = alias else { break };
        found.push(record.clone());
        owner = target;
    }
    let is_answer = |record: &Record| {
        record.record_type() == asked.query_type
            && record.dns_class == DNSClass::IN
            && record.name == owner
    };
    found.extend(records.into_iter().filter(is_answer).take(MAX_RECORDS));
    found
}

/// Returns an answer to what can't be read, if it has an id.
fn malformed(request: &[u8]) -> Option<Vec<u8>> {
    if request.len() < HEADER {
        return None;
    }
    let id = u16::from_be_bytes([request[0], request[1]]);
    // The highest bit of the flags marks an answer.
    let is_query = request[2] & 0x80 == 0;
    let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    is_query.then(|| message.to_vec().ok()).flatten()
}
