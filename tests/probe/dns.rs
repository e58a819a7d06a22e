//! Asks a server of DNS.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, RecordType},
};

/// How long the server has for its answer.
const LIMIT: Duration = Duration::from_secs(8);

/// Asks a server at `ADDRESS:PORT` for the records of a type. Returns the response code and the
/// addresses, or `truncated`.
pub fn query(server: &str, name: &str, kind: &str, by_tcp: bool) -> io::Result<String> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).map_err(io::Error::other)?;
    let kind: RecordType = kind.parse().map_err(io::Error::other)?;
    message.add_query(Query::query(name, kind));
    let request = message.to_vec().map_err(io::Error::other)?;
    let answer = match by_tcp {
        true => over_tcp(server, &request)?,
        false => over_udp(server, &request)?,
    };
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    if answer.metadata.truncation {
        return Ok("truncated".to_owned());
    }
    let mut words = vec![format!("{:?}", answer.metadata.response_code)];
    for record in &answer.answers {
        match &record.data {
            RData::A(address) => words.push(address.to_string()),
            RData::AAAA(address) => words.push(address.to_string()),
            _ => {}
        }
    }
    Ok(words.join(" "))
}

fn over_udp(server: &str, request: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(server)?;
    socket.send(request)?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn over_tcp(server: &str, request: &[u8]) -> io::Result<Vec<u8>> {
    let server = server.parse().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&(request.len() as u16).to_be_bytes())?;
    stream.write_all(request)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}
