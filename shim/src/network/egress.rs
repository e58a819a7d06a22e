//! What a pod may open connections to, by [`caisson_node::traffic::egress`].

use std::{io, net::IpAddr, os::fd::AsFd, sync::Arc};

use caisson_node::traffic::{
    egress::{self, Filter},
    netlink::Netlink,
    tc,
};
use caisson_oci::Egress;

use super::{
    error::NetworkError,
    interface::{self, Interface},
    resolver::{Link, Resolver},
};

/// A pod's egress that is not open.
pub struct Guard {
    filter: Arc<Filter>,
    egress: Egress,
    /// The way to the resolver, until it runs.
    link: Option<Link>,
    resolver: Option<Resolver>,
}

impl Guard {
    /// Makes the filter; none if the egress is open. Runs in the node's network namespace, whose
    /// addresses are closed to the pod. `servers` are those of DNS that the pod has.
    pub async fn new(egress: &Egress, servers: Vec<IpAddr>) -> Result<Option<Self>, NetworkError> {
        if *egress == Egress::Open {
            return Ok(None);
        }
        // Without names, nothing is resolved.
        let servers = if egress.has_names() {
            servers
        } else {
            Vec::new()
        };
        let made = || {
            let node = interface::addresses(&mut Netlink::open()?)?;
            let filter = Filter::new(egress, &node)?;
            for server in &servers {
                filter.add_server(*server)?;
            }
            Ok(filter)
        };
        let filter = made().map_err(|source| NetworkError::Egress { source })?;
        let link = match servers.is_empty() {
            true => None,
            false => Some(Link::new(servers).await?),
        };
        Ok(Some(Self {
            filter: Arc::new(filter),
            egress: egress.clone(),
            link,
            resolver: None,
        }))
    }

    /// Holds what passes between an interface and its tap to the egress, before anything passes.
    /// Both have hooks.
    pub fn hold(
        &mut self,
        netlink: &mut Netlink,
        interface: &Interface,
        tap: u32,
        own_addresses: bool,
    ) -> Result<(), NetworkError> {
        let link = self.link.as_mut();
        let resolver = link.map(|link| link.connect(netlink, interface, tap));
        let resolver = resolver.transpose();
        let resolver = resolver.map_err(|source| NetworkError::Resolver { source })?;
        let filtered = self.filter(netlink, interface, tap, own_addresses, resolver);
        filtered.map_err(|source| NetworkError::Egress { source })
    }

    fn filter(
        &self,
        netlink: &mut Netlink,
        interface: &Interface,
        tap: u32,
        own_addresses: bool,
        resolver: Option<egress::Resolver>,
    ) -> io::Result<()> {
        for address in interface.nets() {
            self.filter.add_address(address)?;
        }
        for gateway in interface.gateways() {
            self.filter.add_link(gateway.into())?;
        }
        let outward = self.filter.outward(own_addresses, resolver)?;
        tc::run_first(netlink, tap, outward.as_fd())?;
        let inward = self.filter.inward()?;
        tc::run_first(netlink, interface.index, inward.as_fd())
    }

    /// Starts the resolver, if there is one.
    pub async fn start(&mut self) -> Result<(), NetworkError> {
        if let Some(link) = self.link.take() {
            let (egress, filter) = (self.egress.clone(), self.filter.clone());
            self.resolver = Some(Resolver::start(link, egress, filter).await?);
        }
        Ok(())
    }

    /// Returns what is allowed and how many frames were dropped.
    pub fn state(&self) -> io::Result<(Egress, u64)> {
        Ok((self.egress.clone(), self.filter.denied()?))
    }
}
