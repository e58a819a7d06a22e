//! Egress: which connections a pod may open. `caisson.dev/egress` says it for a pod, `egress` in
//! `[network]` for a node.
//!
//! ```text
//! egress = "open" | "deny" | "allow:" entry { "," entry }
//! entry  = what [ ":" port ]
//! what   = NAME | "*." NAME | IPV4 [ "/" LENGTH ] | IPV6 [ "/" LENGTH ]
//!        | "[" IPV6 [ "/" LENGTH ] "]"
//! port   = 1 … 65535, but not 53
//! ```
//!
//! - Spaces around an entry do not count, nor does the case of a name, nor a dot at its end.
//! - `*.NAME` is every name below `NAME`, however deep, but not `NAME` itself.
//! - IPv6 with a port is in brackets.
//! - An entry with a port is for TCP and UDP, one without for every port and protocol.
//! - No entry has port 53: names are resolved by the shim alone.
//!
//! A pod can only narrow what its node allows: each of its entries must lie within one of the
//! node's. What the pod says then holds, or what the node says if the pod says nothing.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{error::shorten, Error, Result};

/// The annotation.
pub const KEY: &str = "caisson.dev/egress";

/// The most entries of a list.
pub const MAX_ENTRIES: usize = 4096;
/// The port of DNS, which no entry may have.
pub const DNS_PORT: u16 = 53;
/// The longest name and the longest label of one (RFC 1035, 2.3.4), without the dot at the end.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// What a pod may open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Egress {
    /// Everything; there is no filter.
    #[default]
    Open,
    /// Nothing.
    Deny,
    /// What one of the entries names.
    Allow(Vec<Entry>),
}

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub to: Target,
    /// `None` is every port, and protocols without ports.
    pub port: Option<u16>,
}

/// Where connections may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The addresses of this name, in lower case, without a dot at the end.
    Name(String),
    /// The addresses of every name that ends with a dot and this.
    Below(String),
    Net {
        net: IpNet,
        /// Whether the entry also opens what is closed to lists: the node's own addresses and those
        /// of a cloud's metadata. It must be one of those addresses for that.
        named: bool,
    },
}

/// Why a text is no egress.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Egress {
    /// Parses the value of the annotation.
    pub fn parse(value: &str) -> Result<Self> {
        value.parse().map_err(|Malformed(reason)| refused(reason))
    }

    /// What holds for a pod that asks for `wanted` on a node with this egress.
    ///
    /// # Errors
    /// The pod asks for more than the node allows.
    pub fn narrow(&self, wanted: Option<&Self>) -> Result<Self> {
        let Some(wanted) = wanted else {
            return Ok(self.clone());
        };
        let wider = |what: &str| {
            refused(format!(
                "{what} is more than the node allows, whose network.egress is {:?}",
                shorten(&self.to_string())
            ))
        };
        match (self, wanted) {
            (Self::Open, _) | (_, Self::Deny) => Ok(wanted.clone()),
            (Self::Deny | Self::Allow(_), Self::Open) => Err(wider("open")),
            (Self::Deny, Self::Allow(_)) => Err(wider("a list")),
            (Self::Allow(most), Self::Allow(wanted)) => {
                let mut narrowed = Vec::new();
                for entry in wanted {
                    let mut around = most.iter().filter(|most| most.has(entry)).peekable();
                    if around.peek().is_none() {
                        return Err(wider(&shorten(&entry.to_string())));
                    }
                    let mut entry = entry.clone();
                    if let Target::Net { net, named } = &mut entry.to {
                        *named &= around.any(|most| most.names(net));
                    }
                    narrowed.push(entry);
                }
                Ok(Self::Allow(narrowed))
            }
        }
    }

    /// Returns the entries; none if everything or nothing is allowed.
    pub fn entries(&self) -> &[Entry] {
        match self {
            Self::Allow(entries) => entries,
            _ => &[],
        }
    }

    /// Returns the ports at which a name may be reached, or `None` if it may not. `name` is in
    /// lower case and without a dot at the end.
    pub fn ports_of(&self, name: &str) -> Option<Vec<Option<u16>>> {
        let has = |entry: &&Entry| match &entry.to {
            Target::Name(own) => own == name,
            Target::Below(parent) => is_below(name, parent),
            Target::Net { .. } => false,
        };
        let ports: Vec<_> = self.entries().iter().filter(has).map(|e| e.port).collect();
        (!ports.is_empty()).then_some(ports)
    }

    /// Whether an entry has a name, so that the pod needs DNS.
    pub fn has_names(&self) -> bool {
        let is_name = |entry: &Entry| !matches!(entry.to, Target::Net { .. });
        self.entries().iter().any(is_name)
    }
}

impl Entry {
    /// Whether everything that the other entry allows is allowed by this one.
    fn has(&self, other: &Self) -> bool {
        let port = self.port.is_none() || self.port == other.port;
        port && match (&self.to, &other.to) {
            (Target::Name(own), Target::Name(other)) => own == other,
            (Target::Below(parent), Target::Name(name)) => is_below(name, parent),
            (Target::Below(own), Target::Below(other)) => own == other || is_below(other, own),
            (Target::Net { net, .. }, Target::Net { net: other, .. }) => net.contains(other),
            _ => false,
        }
    }

    /// Whether this entry is this address and opens it even if it is closed to lists.
    fn names(&self, address: &IpNet) -> bool {
        matches!(&self.to, Target::Net { net, named } if *named && net == address)
    }
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent)
        .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

fn refused(reason: String) -> Error {
    Error::Annotation {
        key: KEY.to_owned(),
        reason,
    }
}

impl FromStr for Egress {
    type Err = Malformed;

    fn from_str(text: &str) -> std::result::Result<Self, Malformed> {
        let list = match text.trim() {
            "open" => return Ok(Self::Open),
            "deny" => return Ok(Self::Deny),
            other => other.strip_prefix("allow:").ok_or_else(|| {
                Malformed(format!(
                    "{:?} is none of open, deny and allow: ENTRY, …",
                    shorten(other)
                ))
            })?,
        };
        let entries: Vec<_> = list.split(',').map(str::trim).collect();
        if entries.len() > MAX_ENTRIES {
            return Err(Malformed(format!(
                "the list has {} entries, {MAX_ENTRIES} are possible",
                entries.len()
            )));
        }
        let entries = entries.into_iter().map(Entry::from_str);
        Ok(Self::Allow(entries.collect::<std::result::Result<_, _>>()?))
    }
}

impl FromStr for Entry {
    type Err = Malformed;

    fn from_str(text: &str) -> std::result::Result<Self, Malformed> {
        let bad = |reason: &str| Malformed(format!("{:?} {reason}", shorten(text)));
        let (what, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (what, after) = rest.split_once(']').ok_or_else(|| bad("lacks a ]"))?;
                if !what.contains(':') {
                    return Err(bad("has brackets around something that is not IPv6"));
                }
                match after {
                    "" => (what, None),
                    after => {
                        let port = after.strip_prefix(':');
                        let after_bracket = || bad("has something other than :PORT after the ]");
                        (what, Some(port.ok_or_else(after_bracket)?))
                    }
                }
            }
            // More than one colon is IPv6 without a port.
            None => match text.split_once(':') {
                Some((what, port)) if !port.contains(':') => (what, Some(port)),
                _ => (text, None),
            },
        };
        let port = match port {
            None => None,
            Some(port) => {
                let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
                let number = port.parse().ok().filter(|port| *port != 0 && is_number);
                Some(number.ok_or_else(|| bad("has no port between 1 and 65535"))?)
            }
        };
        if port == Some(DNS_PORT) {
            return Err(bad("has port 53, but names are resolved by the shim alone"));
        }
        let to = Target::parse(what).map_err(|reason| bad(&reason))?;
        Ok(Self { to, port })
    }
}

impl Target {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        let looks_like_address = text.contains([':', '/'])
            || name.rsplit('.').next().is_some_and(|last| {
                !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
            });
        if looks_like_address {
            return net(text);
        }
        let (name, below) = match name.strip_prefix("*.") {
            Some(parent) => (parent, true),
            None => (name, false),
        };
        if name.len() > MAX_NAME || !name.split('.').all(is_label) {
            return Err("is no name, *.NAME, address or CIDR".to_owned());
        }
        Ok(match below {
            true => Self::Below(name.to_owned()),
            false => Self::Name(name.to_owned()),
        })
    }
}

fn net(text: &str) -> std::result::Result<Target, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text
            .parse::<IpNet>()
            .map_err(|_| "is no address and no CIDR".to_owned())?,
    };
    if net.trunc() != net {
        let right = net.trunc();
        return Err(format!("has bits behind its prefix; {right} has none"));
    }
    if let IpAddr::V6(address) = net.addr() {
        if address.to_ipv4_mapped().is_some() {
            return Err("is IPv4 in the form of IPv6; write it as IPv4".to_owned());
        }
    }
    let named = net.prefix_len() == net.max_prefix_len();
    Ok(Target::Net { net, named })
}

fn is_label(label: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(known)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl TryFrom<String> for Egress {
    type Error = Malformed;

    fn try_from(text: String) -> std::result::Result<Self, Malformed> {
        text.parse()
    }
}

impl From<Egress> for String {
    fn from(egress: Egress) -> Self {
        egress.to_string()
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Deny => f.write_str("deny"),
            Self::Allow(entries) => {
                let entries: Vec<_> = entries.iter().map(Entry::to_string).collect();
                write!(f, "allow: {}", entries.join(", "))
            }
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_address = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let what = match &self.to {
            Target::Name(name) => name.clone(),
            Target::Below(parent) => format!("*.{parent}"),
            Target::Net { net, .. } if is_address(net) => net.addr().to_string(),
            Target::Net { net, .. } => net.to_string(),
        };
        match self.port {
            None => f.write_str(&what),
            Some(port) if what.contains(':') => write!(f, "[{what}]:{port}"),
            Some(port) => write!(f, "{what}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(text: &str) -> Egress {
        Egress::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn error(text: &str) -> String {
        Egress::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn whatever_is_parsed_is_shown_in_the_same_form() {
        for text in [
            "open",
            "deny",
            "allow: example.org",
            "allow: *.svc.cluster.local:443, 10.0.0.0/8, 192.0.2.7:8080",
            "allow: 2001:db8::/32, [2001:db8::/32]:443, [2001:db8::1]:443, 2001:db8::1",
        ] {
            assert_eq!(egress(text).to_string(), text);
        }
        let same = egress("allow:EXAMPLE.org.,[2001:DB8::1] , 10.0.0.1/32");
        let shown = "allow: example.org, 2001:db8::1, 10.0.0.1";
        assert_eq!(same.to_string(), shown);
    }

    #[test]
    fn entry_that_is_malformed_is_refused_saying_why() {
        for (text, part) in [
            ("", "none of open, deny"),
            ("allow", "none of open, deny"),
            ("Open", "none of open, deny"),
            ("allow:", "\"\" is no name"),
            ("allow: a.org,", "\"\" is no name"),
            ("allow: *", "is no name"),
            ("allow: a.*.org", "is no name"),
            ("allow: *.", "is no name"),
            ("allow: -a.org", "is no name"),
            ("allow: a..org", "is no name"),
            ("allow: a b", "is no name"),
            ("allow: https://a.org", "no port"),
            ("allow: a.org/x", "no address and no CIDR"),
            ("allow: a.org:", "no port"),
            ("allow: a.org:0", "no port"),
            ("allow: a.org:+80", "no port"),
            ("allow: a.org:65536", "no port"),
            ("allow: a.org:53", "port 53"),
            ("allow: [2001:db8::1]:53", "port 53"),
            ("allow: 10.0.0.1/8", "10.0.0.0/8 has none"),
            ("allow: 10.0.0.0/33", "no CIDR"),
            ("allow: 10.0.0.256", "no address"),
            ("allow: 10.0.", "no address"),
            ("allow: 1.2.3", "no address"),
            ("allow: ::ffff:10.0.0.1", "write it as IPv4"),
            ("allow: [2001:db8::1", "lacks a ]"),
            ("allow: [2001:db8::1]443", "after the ]"),
            ("allow: [10.0.0.1]:80", "not IPv6"),
        ] {
            let error = error(text);
            assert!(error.contains(part), "{text:?}: {error}");
            assert!(error.starts_with("annotation caisson.dev/egress: "));
        }
        assert!(error(&format!("allow: {}", "a.org,".repeat(5000))).contains("4096"));
    }

    #[test]
    fn name_has_the_ports_of_the_entries_that_match() {
        let list = egress("allow: a.org:80, a.org:443, *.a.org, b.org, 10.0.0.0/8");
        assert_eq!(list.ports_of("a.org"), Some(vec![Some(80), Some(443)]));
        assert_eq!(list.ports_of("x.y.a.org"), Some(vec![None]));
        for other in ["xa.org", "org", ".a.org", "c.org", "10.0.0.1"] {
            assert_eq!(list.ports_of(other), None, "{other}");
        }
        assert_eq!(Egress::Open.ports_of("a.org"), None);
    }

    #[test]
    fn pod_that_says_nothing_gets_what_the_node_says() {
        for node in ["open", "deny", "allow: a.org"].map(egress) {
            assert_eq!(node.narrow(None).unwrap(), node);
        }
    }

    #[test]
    fn pod_narrows_what_the_node_allows() {
        for (node, pod) in [
            ("open", "open"),
            ("open", "allow: a.org"),
            ("deny", "deny"),
            ("allow: a.org", "deny"),
            (
                "allow: *.a.org, b.org",
                "allow: x.a.org:80, *.y.a.org, b.org",
            ),
            (
                "allow: 10.0.0.0/8:443",
                "allow: 10.1.0.0/16:443, 10.0.0.1:443",
            ),
        ] {
            let narrowed = egress(node).narrow(Some(&egress(pod))).unwrap();
            assert_eq!(narrowed.to_string(), pod, "{node}");
        }
    }

    #[test]
    fn pod_that_asks_for_more_than_the_node_allows_is_refused_by_the_entry() {
        for (node, pod, entry) in [
            ("deny", "open", "open is more"),
            ("deny", "allow: a.org", "a list is more"),
            ("allow: a.org", "open", "open is more"),
            ("allow: a.org", "allow: a.org, b.org", "b.org is more"),
            ("allow: a.org:443", "allow: a.org", "a.org is more"),
            ("allow: a.org:443", "allow: a.org:80", "a.org:80 is more"),
            ("allow: *.a.org", "allow: a.org", "a.org is more"),
            ("allow: x.a.org", "allow: *.a.org", "*.a.org is more"),
            (
                "allow: 10.0.0.0/16",
                "allow: 10.0.0.0/8",
                "10.0.0.0/8 is more",
            ),
            ("allow: 0.0.0.0/0", "allow: ::/0", "::/0 is more"),
            ("allow: 0.0.0.0/0", "allow: a.org", "a.org is more"),
        ] {
            let refused = egress(node).narrow(Some(&egress(pod))).unwrap_err();
            let refused = refused.to_string();
            assert!(refused.contains(entry), "{node}, {pod}: {refused}");
            assert!(refused.contains("network.egress"), "{refused}");
        }
    }

    #[test]
    fn closed_address_is_opened_by_its_own_entry_if_the_node_has_it_too() {
        let named = |node: &str, pod: &str| {
            let narrowed = egress(node).narrow(Some(&egress(pod))).unwrap();
            let [Entry {
                to: Target::Net { named, .. },
                ..
            }] = narrowed.entries()
            else {
                panic!("{narrowed}");
            };
            *named
        };
        let own = "allow: 169.254.169.254";
        assert!(named("open", own));
        assert!(named(own, own));
        assert!(named("allow: 0.0.0.0/0, 169.254.169.254", own));
        assert!(!named("allow: 0.0.0.0/0", own));
        assert!(!named("open", "allow: 169.254.0.0/16"));
    }
}
