//! Which client a proxy has forwarded a request for.

use std::net::{IpAddr, SocketAddr};

use warp::http::HeaderMap;

use super::request::Sender;
use crate::config::network::Network;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The proxies that the operator trusts to name their clients (`TRUSTED_PROXIES`).
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<Network>,
}

impl TrustedProxies {
    /// Trusts the proxies of these networks.
    pub fn new(networks: Vec<Network>) -> Self {
        Self { networks }
    }

    /// Returns who has sent a request that has come from `peer`.
    ///
    /// The client is the rightmost address of `X-Forwarded-For` that is not a trusted proxy itself. What stands to the left
    /// of it is what the client claims. If there is no such address, the client is the peer.
    pub fn sender(&self, peer: IpAddr, headers: &HeaderMap) -> Sender {
        let peer = peer.to_canonical();
        let client = if self.is_trusted(peer) {
            self.forwarded_for(headers).unwrap_or(peer)
        } else {
            peer
        };
        Sender { peer, client }
    }

    fn forwarded_for(&self, headers: &HeaderMap) -> Option<IpAddr> {
        for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
            for text in value.to_str().ok()?.rsplit(',') {
                // Whatever follows an address that cannot be read may be invented.
                let address = address_of(text.trim())?.to_canonical();
                if !self.is_trusted(address) {
                    return Some(address);
                }
            }
        }
        None
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(address))
    }
}

/// Reads an address. Some proxies add the port of the client, and brackets around an IPv6 address.
fn address_of(text: &str) -> Option<IpAddr> {
    let address = text.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(with_port).or_else(bracketed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_rightmost_address_that_no_trusted_proxy_has() {
        let networks = ["10.0.0.0/8", "::1"].map(|network| network.parse().unwrap());
        let proxies = TrustedProxies::new(networks.into());
        for (peer, given, client) in [
            ("10.0.0.1", &["192.0.2.1"][..], "192.0.2.1"),
            ("::ffff:10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("::1", &["198.51.100.7, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            ("::1", &["192.0.2.1", "10.0.0.2"], "192.0.2.1"),
            ("::1", &["2001:db8::1"], "2001:db8::1"),
            ("::1", &["192.0.2.1:4711"], "192.0.2.1"),
            ("::1", &["[2001:db8::1]:80, 10.0.0.2:1"], "2001:db8::1"),
            ("::1", &["[2001:db8::1]"], "2001:db8::1"),
            ("::1", &["192.0.2.1, unknown"], "::1"),
            ("::1", &["10.0.0.2"], "::1"),
            ("::1", &[], "::1"),
            ("192.0.2.9", &["192.0.2.1"], "192.0.2.9"),
        ] {
            let mut headers = HeaderMap::new();
            for value in given {
                headers.append(X_FORWARDED_FOR, value.parse().unwrap());
            }
            let sender = proxies.sender(peer.parse().unwrap(), &headers);
            assert_eq!(sender.client.to_string(), client, "{peer} {given:?}");
        }
    }
}
