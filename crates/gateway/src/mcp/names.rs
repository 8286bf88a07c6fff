//! Names to addresses for the HTTP client: looked up once for a connection, checked, and connected to what was checked.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use caisson_domain::egress::{Host, Target};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::fault::Fault;
use crate::bounds::Bounds;
use crate::egress::Reach;

/// Why a name has no address for a connection; it comes back inside the client's own error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no address of the name may be connected to")]
pub(super) struct NoAddress(pub(super) Fault);

impl NoAddress {
    /// The one inside an error of the client.
    pub(super) fn within(error: &(dyn Error + 'static)) -> Option<Fault> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(Self(fault)) = error.downcast_ref() {
                return Some(fault.clone());
            }
            next = error.source();
        }
        None
    }
}

/// The client's resolver. Addresses in URLs never come here: [`super`] checks them itself.
#[derive(Clone)]
pub(super) struct Names {
    pub(super) reach: Arc<Reach>,
    pub(super) bounds: Bounds,
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let fault = |fault| Box::new(NoAddress(fault)) as Box<dyn Error + Send + Sync>;
            let host = Host::parse(name.as_str()).map_err(|_| fault(Fault::Unresolved))?;
            // The client puts the URL's port in place of none.
            let found = this.reach.addresses(&Target { host, port: 0 }, &this.bounds).await;
            let found = found.map_err(|refused| fault(refused.into()))?;
            Ok(Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}
