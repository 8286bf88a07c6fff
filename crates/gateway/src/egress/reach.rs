//! From a name to a connection: resolved once, checked, and connected to what was checked.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use caisson_domain::checks::{Check, stands};
use caisson_domain::egress::{AddressRange, Host, Target};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::address;
use super::config::EgressUpstreams;
use super::fault::Fault;
use super::policy::Ground;
use crate::bounds::{Bounds, EGRESS_ADDRESSES, EGRESS_LOOKUPS};

/// Finds a name's addresses.
pub(crate) type Resolve = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Connects to an address.
pub(crate) type Dial = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

/// The operating system's connections.
pub(crate) fn tcp() -> Dial {
    Arc::new(|address| TcpStream::connect(address).boxed())
}

/// The operating system's resolver, for at most [`EGRESS_LOOKUPS`] names at once.
pub(crate) fn system() -> Resolve {
    let ask = |name: &str| Ok((name, 0_u16).to_socket_addrs()?.map(|one| one.ip()).collect());
    blocking(EGRESS_LOOKUPS, Arc::new(ask))
}

type Ask = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// A resolver that blocks. A lookup cannot be given up, so it holds its place until it has ended, whoever waits for it.
fn blocking(places: usize, ask: Ask) -> Resolve {
    let places = Arc::new(Semaphore::new(places));
    Arc::new(move |name| {
        let (places, ask) = (Arc::clone(&places), Arc::clone(&ask));
        async move {
            let place = places.acquire_owned().await.map_err(io::Error::other)?;
            let lookup = tokio::task::spawn_blocking(move || {
                let found = ask(&name);
                drop(place);
                found
            });
            lookup.await.map_err(io::Error::other)?
        }
        .boxed()
    })
}

/// Names to addresses to connections.
pub(crate) struct Reach {
    resolve: Resolve,
    dial: Dial,
    hosts: Vec<(String, IpAddr)>,
    allow_private: Vec<AddressRange>,
}

impl Reach {
    pub(crate) fn new(upstreams: &EgressUpstreams, (resolve, dial): (Resolve, Dial)) -> Self {
        let (hosts, allow_private) = (upstreams.hosts.clone(), upstreams.allow_private.clone());
        Self { resolve, dial, hosts, allow_private }
    }

    /// Connects to an address of the target that may be reached: what is only learned reaches public ones alone. The name is resolved here and nowhere else: what is
    /// connected to is what was checked, whatever the name leads to a moment later.
    pub(super) async fn connect(
        &self,
        target: &Target,
        ground: Ground,
        bounds: &Bounds,
    ) -> Result<TcpStream, Fault> {
        let mut addresses = match ground {
            Ground::Rule => self.addresses(target, bounds).await?,
            Ground::Learning => self.among(target, &[], bounds).await?,
        };
        if !stands(Check::EgressPinned) {
            addresses = self.found(target, bounds).await?;
        }
        let end = Instant::now() + bounds.egress_connect;
        let mut fault = Fault::Unreachable;
        for address in addresses {
            match timeout_at(end, (self.dial)(SocketAddr::new(address, target.port))).await {
                Ok(Ok(stream)) => {
                    // Nagle's algorithm would only delay; without it nothing else changes.
                    let _slower = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => tracing::debug!(error = %error, "an address of a host took no connection"),
                Err(_) => {
                    fault = Fault::ConnectTimeout;
                    break;
                }
            }
        }
        Err(fault)
    }

    /// What the target's name leads to.
    async fn found(&self, target: &Target, bounds: &Bounds) -> Result<Vec<IpAddr>, Fault> {
        let name = match &target.host {
            Host::Address(address) => return Ok(vec![*address]),
            Host::Name(name) => name,
        };
        let known: Vec<IpAddr> =
            self.hosts.iter().filter(|(host, _)| host == name).map(|(_, address)| *address).collect();
        if known.is_empty() { self.look_up(name, bounds).await } else { Ok(known) }
    }

    /// The addresses of the target that may be reached.
    pub(crate) async fn addresses(&self, target: &Target, bounds: &Bounds) -> Result<Vec<IpAddr>, Fault> {
        self.among(target, &self.allow_private, bounds).await
    }

    /// The addresses of the target that are public or in one of the ranges.
    async fn among(
        &self,
        target: &Target,
        opened: &[AddressRange],
        bounds: &Bounds,
    ) -> Result<Vec<IpAddr>, Fault> {
        let mut found = self.found(target, bounds).await?;
        found.dedup();
        let Some(first) = found.first().copied() else { return Err(Fault::Unresolved) };
        let refused =
            |address: &IpAddr| address::refused(*address, opened).filter(|_| stands(Check::EgressAddresses));
        let what = refused(&first);
        found.retain(|address| refused(address).is_none());
        found.truncate(EGRESS_ADDRESSES);
        match what {
            Some(what) if found.is_empty() => Err(Fault::PrivateAddress { address: first, what }),
            Some(_) | None => Ok(found),
        }
    }

    async fn look_up(&self, name: &str, bounds: &Bounds) -> Result<Vec<IpAddr>, Fault> {
        match timeout(bounds.egress_resolve, (self.resolve)(name.to_owned())).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "a name was not resolved");
                Err(Fault::Unresolved)
            }
            Err(_) => Err(Fault::ResolveTimeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_lookup_holds_its_place_until_it_has_ended() {
        let (go_on, held) = channel::<()>();
        let held = Mutex::new(held);
        let ask: Ask = Arc::new(move |name| {
            if name == "slow.example" {
                held.lock().unwrap().recv().map_err(io::Error::other)?;
            }
            Ok(vec![IpAddr::from([1, 1, 1, 1])])
        });
        let resolve = blocking(1, ask);
        // Whoever asked has left, and the lookup goes on.
        assert!(timeout(Duration::from_millis(50), resolve("slow.example".to_owned())).await.is_err());
        let mut next = Box::pin(resolve("next.example".to_owned()));
        assert!(timeout(Duration::from_millis(50), next.as_mut()).await.is_err());
        go_on.send(()).unwrap();
        assert_eq!(next.await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn the_systems_resolver_knows_this_machine() {
        let found = system()("localhost".to_owned()).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
